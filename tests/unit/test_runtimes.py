"""Which runtimes stacks may name: those that the engine has, each time that it has come back."""

import asyncio
import logging
from pathlib import Path

import pytest
from tests.fakes import until

from runner.adapters.docker.client import EngineInfo
from runner.app import runtimes
from runner.app.runtimes import Runtimes
from runner.errors import ConfigError, EngineGone
from runner.job import Bytes
from runner.stacks.catalog import Catalog
from runner.stacks.images import Image
from runner.stacks.revisions import Ledger


class Engine:
    """Has some runtimes, and may be away."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)
        self.away = 0

    async def info(self) -> EngineInfo:
        if self.away:
            self.away -= 1
            raise EngineGone("no connection")
        return EngineInfo(version="1", cpus=1, memory=Bytes(1), cgroup_version=2, root=Path("/"), runtimes=self.names)


class NoImages:
    async def inspect(self, name: str) -> Image | None:
        raise AssertionError(name)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "py").mkdir()
    (tmp_path / "py/stack.toml").write_text('runtime = "kata"')
    return Catalog(tmp_path, NoImages(), Ledger(tmp_path / "state"), runtimes=("runc", "kata"))


async def test_a_stack_whose_runtime_the_engine_lacks_cannot_be_used(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    looking = Runtimes(allowed=("runc", "kata"), engine=Engine("runc"), catalog=catalog)
    catalog.check("py")
    with caplog.at_level(logging.ERROR):
        await looking.at_start()
        await looking.at_start()
    with pytest.raises(ConfigError, match='the engine does not know "kata"'):
        catalog.check("py")
    assert [record.getMessage() for record in caplog.records] == ["a runtime is missing"]


async def test_an_engine_that_has_come_back_may_have_others(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_AGAIN", 0.001)
    engine = Engine("runc")
    looking = Runtimes(allowed=("runc", "kata"), engine=engine, catalog=catalog)
    await looking.at_start()
    engine.names, engine.away = frozenset({"runc", "kata"}), 2
    running = asyncio.create_task(looking.run())
    try:
        looking.engine_returned()
        await until(lambda: usable(catalog))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert engine.away == 0


def usable(catalog: Catalog) -> bool:
    try:
        catalog.check("py")
    except ConfigError:
        return False
    return True

"""What `runner check` says when the engine fails over the registry."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.app import check
from runner.app.finding import Remedy
from runner.errors import EngineGone
from runner.settings import Settings, load_settings
from runner.stacks.catalog import Listed


async def test_an_engine_that_fails_over_the_registry_hides_no_other_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def info() -> SimpleNamespace:
        return SimpleNamespace(runtimes={"runc"}, cgroup_version="2", version="1", cpus=1, memory=1, root=tmp_path)

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(info=info)

    async def listed(*_: object) -> Sequence[Listed]:
        return [Listed(name="py", fault="is not built")]

    async def gone(_: Settings) -> None:
        raise EngineGone("it did not answer within 30 s")

    monkeypatch.setattr(check, "open_client", opened)
    monkeypatch.setattr(check, "list_stacks", listed)
    monkeypatch.setattr(check, "look_at_registry", gone)
    found = {finding.name: finding async for finding in check._engine(load_settings({}))}
    assert found["registry"].remedy is Remedy.SERVICE
    assert "did not answer" in found["registry"].detail
    assert found["stack py"].detail == "is not built"

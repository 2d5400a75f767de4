"""What a probe of a network takes for an answer; the engine is not asked."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tests.engine_log import EngineLog
from tests.fakes import until

from runner.adapters.docker import probe
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import Site
from runner.adapters.docker.probe import Probes
from runner.adapters.docker.removal import Removal
from runner.errors import EngineError


class TwoContainers:
    """An engine, and who removes; the neighbour is `running` when it is asked for again, or gone if that is None."""

    def __init__(self) -> None:
        self.running: bool | None = True
        self.ended = False
        self.left: set[str] = set()

    async def create(self, name: str, _body: Mapping[str, Any]) -> str:
        self.left.add(name)
        return name

    async def start(self, _container: str) -> None:
        return

    async def wait(self, _container: str) -> bool:
        self.ended = True
        return True

    async def read_log(self, _container: str, take: Callable[[int, bytes], None], *, follow: bool) -> None:
        assert not follow
        take(1, b"198.18.0.2:9 silent silent\n")

    async def inspect(self, container: str) -> dict[str, Any] | None:
        assert container.endswith("-neighbour")
        if self.ended and self.running is None:
            return None
        networks = {"runner0": {"IPAddress": "198.18.0.2"}}
        return {
            "State": {"Running": not self.ended or self.running},
            "NetworkSettings": {"Networks": networks},
        }

    async def remove(self, name: str) -> None:
        self.left.remove(name)


class Hung(TwoContainers):
    """One whose probe ends when it is `released`, and that removes nothing; who asks for it is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.asked: list[str] = []

    async def wait(self, container: str) -> bool:
        await self.released.wait()
        return await super().wait(container)

    async def remove(self, name: str) -> None:
        self.asked.append(name)
        await asyncio.Event().wait()


def probes_of(engine: TwoContainers) -> Probes:
    return Probes(
        client=cast("EngineClient", engine),
        removal=cast("Removal", engine),
        census=Census(EngineLog()),
        site=Site(worker="w1", boot="b", init=Path("/init"), hosts=Path("/hosts")),
    )


async def run(probes: Probes) -> str:
    return await probes.run("runner0", "image", lambda neighbour, _: [f"{neighbour}:9"])


async def probed(engine: TwoContainers) -> str:
    probes = probes_of(engine)
    try:
        return await run(probes)
    finally:
        assert not engine.left
        assert not probes.names()


async def test_the_silence_of_a_neighbour_that_runs_counts() -> None:
    assert await probed(TwoContainers()) == "198.18.0.2:9 silent silent\n"


@pytest.mark.parametrize("running", [False, None])
async def test_that_of_one_that_ended_does_not(running: bool | None) -> None:  # noqa: FBT001 - a case's parameter
    engine = TwoContainers()
    engine.running = running

    with pytest.raises(EngineError, match="the neighbour in a probe of runner0 ended before the probe did"):
        await probed(engine)


async def test_who_ends_waits_a_moment_for_all_to_be_removed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CLEAR_AT_THE_END", timedelta(milliseconds=10))
    engine = Hung()
    probes = probes_of(engine)
    running = asyncio.create_task(run(probes))
    await until(lambda: len(engine.left) == 2)

    running.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait({running})

    assert running.cancelled()
    assert sorted(engine.asked) == sorted(engine.left)
    assert not probes.names(), "the sweep is to remove them"


async def test_the_answer_of_a_probe_counts_though_what_it_left_cannot_be_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_CLEAR", timedelta(milliseconds=10))
    engine = Hung()
    engine.released.set()
    probes = probes_of(engine)

    assert await run(probes) == "198.18.0.2:9 silent silent\n"
    assert len(engine.asked) == 2
    assert not probes.names()


async def test_a_second_cancel_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CLEAR_AT_THE_END", timedelta(hours=1))
    engine = Hung()
    running = asyncio.create_task(run(probes_of(engine)))
    await until(lambda: len(engine.left) == 2)

    for _ in range(2):
        running.cancel()
        await until(lambda: len(engine.asked) == 2)
    async with asyncio.timeout(30):
        await asyncio.wait({running})

    assert running.cancelled()

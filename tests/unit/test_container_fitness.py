"""When jobs cannot be started, a container of our own tells whose fault that is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fakes import until

from runner.adapters.docker import fitness
from runner.adapters.docker.fitness import Fitness
from runner.errors import EngineError, EngineUnfit, ImageMissing, StartError
from runner.job import Stack

STACK = Stack(
    name="gpu",
    revision="1",
    image="sha256:" + 64 * "0",
    devices=("/dev/none",),
    cap_add=("CHOWN",),
    runtime="kata",
)


class Engine:
    """Fails to start probes with `error`, while there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.probed: list[Stack] = []
        self.told: list[str | None] = []
        self.fitness = Fitness(self.probe)

    async def probe(self, stack: Stack) -> None:
        self.probed.append(stack)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    def fails(self, times: int) -> None:
        for _ in range(times):
            self.fitness.failed(STACK)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "_FIRST_PAUSE", 0.001)


@asynccontextmanager
async def watched(engine: Engine) -> AsyncIterator[None]:
    watching = asyncio.create_task(engine.fitness.run(engine.told.append))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_after_three_failures_in_a_row_nothing_is_started_until_a_probe_is() -> None:
    engine = Engine()
    engine.error = EngineError("no bridge")
    async with watched(engine):
        engine.fails(3)
        await until(lambda: engine.told)
        with pytest.raises(EngineUnfit, match="cannot start a container: no bridge"):
            engine.fitness.check()
        await until(lambda: len(engine.probed) > 2)
        engine.error = None
        await until(lambda: len(engine.told) == 2)
        engine.fitness.check()
    assert engine.told == ["the engine cannot start a container: no bridge", None]


async def test_a_start_that_succeeds_in_between_proves_the_engine() -> None:
    engine = Engine()
    async with watched(engine):
        engine.fails(2)
        engine.fitness.started()
        engine.fails(2)
        await asyncio.sleep(0.01)
    assert engine.probed == []


async def test_jobs_that_cannot_be_started_do_not_stop_a_worker_whose_engine_works() -> None:
    engine = Engine()
    async with watched(engine):
        engine.fails(3)
        await until(lambda: engine.probed)
        await asyncio.sleep(0.01)
        engine.fails(2)
        await asyncio.sleep(0.01)
    assert (engine.told, len(engine.probed)) == ([], 1)
    [probe] = engine.probed
    assert (probe.image, probe.runtime, probe.devices, probe.cap_add) == (STACK.image, "kata", (), ())


@pytest.mark.parametrize("error", [ImageMissing("No such image"), StartError("no such user")])
async def test_an_engine_that_says_what_it_lacks_works(error: Exception) -> None:
    engine = Engine()
    engine.error = error
    async with watched(engine):
        engine.fails(3)
        await until(lambda: engine.probed)
        await asyncio.sleep(0.01)
    assert engine.told == []


async def test_a_full_disk_is_looked_into_at_once() -> None:
    engine = Engine()
    engine.error = EngineUnfit("its disk is full")
    async with watched(engine):
        engine.fitness.failed(STACK, surely=True)
        await until(lambda: engine.told)

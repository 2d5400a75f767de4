import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.faults.fleet import Fleet, open_fleet
from tests.faults.held_runtime import HeldRuntime
from tests.faults.place import Place, open_place
from tests.services import Broker, Endpoint, Engine

from runner.adapters.amqp.link import BROKER_FAULTS

OpenFleet = Callable[[Broker], Awaitable[Fleet]]

_OFTEN = "[{rabbit, [{channel_tick_interval, 1000}]}].\n"
"""Has the broker look every second, instead of every minute, whether a consumer has held a delivery for too long."""


@pytest.fixture(scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """A broker of this module's own. It closes the channel of whoever holds a delivery for ten seconds."""
    folder = tmp_path_factory.mktemp("strict") / "broker"
    folder.mkdir()
    (folder / "advanced.config").write_text(_OFTEN)
    async with Broker(folder, conf=["consumer_timeout = 10000"]) as broker:
        yield broker


@pytest.fixture(scope="module")
async def usual(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """A broker that allows one minute, and looks once a minute, as brokers do."""
    async with Broker(tmp_path_factory.mktemp("usual") / "broker", conf=["consumer_timeout = 60000"]) as broker:
        yield broker


@pytest.fixture
async def fleets(engine: Endpoint, busybox_image: str, tmp_path: Path) -> AsyncIterator[OpenFleet]:
    """Makes fleets, each with its witness, for the length of a test."""
    async with AsyncExitStack() as stack:
        count = 0

        async def make(broker: Broker) -> Fleet:
            nonlocal count
            count += 1
            folder = tmp_path / f"fleet{count}"
            opened = open_fleet(broker=broker.url, engine=engine.url, image=busybox_image, folder=folder)
            fleet = await stack.enter_async_context(opened)
            await stack.enter_async_context(_listening(fleet))
            return fleet

        yield make


@pytest.fixture(scope="module")
async def lasting(
    request: pytest.FixtureRequest, broker: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    """The daemon that lives through all of a module's tests, on an engine with these flags; `WARM` containers wait."""
    folder, flags = tmp_path_factory.mktemp("lasting"), getattr(request, "param", ())
    (folder / "site").mkdir()
    held, warm = HeldRuntime(folder=folder / "runtime"), getattr(request.module, "WARM", 0)
    async with (
        Engine(folder / "engine", flags=(*flags, *held.install())) as engine,
        open_place(engine, broker, folder / "site", warm=warm, held=held) as place,
    ):
        yield place
        await place.leave()
        assert await place.site.messages() == {}


@pytest.fixture
async def place(lasting: Place) -> AsyncIterator[Place]:
    """The same, at peace again after each test."""
    yield lasting
    await lasting.calm_down()


@asynccontextmanager
async def _listening(fleet: Fleet) -> AsyncIterator[None]:
    """Has the fleet's witness listen, and come back whenever the broker does."""

    async def listen() -> None:
        while True:
            # There may be no broker, or no exchange yet.
            with contextlib.suppress(*BROKER_FAULTS):
                await fleet.listen()
            await asyncio.sleep(0.2)

    task = asyncio.get_running_loop().create_task(listen())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

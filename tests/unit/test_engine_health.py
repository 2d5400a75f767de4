"""When the engine counts as gone, and how soon that is seen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from tests.fakes import until

from runner.adapters.docker import health
from runner.adapters.docker.client import EngineClient, EngineUnreachable
from runner.adapters.docker.health import EngineHealth
from runner.errors import EngineGone


class Client:
    """Answers pings with `error`, if there is one."""

    def __init__(self) -> None:
        self.doubted = asyncio.Event()
        self.error: Exception | None = None
        self.pings = 0

    async def ping(self) -> None:
        self.pings += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


class House:
    def __init__(self) -> None:
        self.client = Client()
        self.told: list[bool] = []
        self.health = EngineHealth(
            client=cast(EngineClient, self.client), changed=lambda up, _why: self.told.append(up)
        )

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While it is up, and every ping that nobody asks for is far off."""
        watching = asyncio.create_task(self.health.run())
        try:
            await until(lambda: self.told == [True])
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_SOON", 0.001)
    monkeypatch.setattr(health, "_EVERY", 3600.0)


async def test_a_call_without_an_answer_has_the_engine_looked_at_at_once() -> None:
    house = House()
    async with house.watched():
        house.client.error = EngineUnreachable("nobody listens")
        house.client.doubted.set()
        await until(lambda: house.told == [True, False])
        assert house.client.pings == 2
        house.client.error = None
        await until(lambda: house.told == [True, False, True])


async def test_one_that_is_slow_has_three_chances() -> None:
    house = House()
    async with house.watched():
        house.client.error = EngineGone("no answer")
        house.client.doubted.set()
        await until(lambda: house.told == [True, False])
        assert house.client.pings == 4


async def test_a_container_that_hangs_says_nothing_of_the_engine() -> None:
    house = House()
    async with house.watched():
        house.client.doubted.set()
        await until(lambda: house.client.pings == 2)
        assert house.told == [True]

"""A launch may be cancelled at any moment, and the engine may answer late: nothing is left in the end."""

import asyncio
import random
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.engine_house import House, open_house
from tests.proxy import Proxy
from tests.services import Endpoint, Engine, build_busybox

from runner.adapters.docker.client import TIME_LIMITS, Operation
from runner.errors import EngineGone

pytestmark = pytest.mark.engine

ROUNDS = 30
SLACK = 6  # dockerd's own descriptors come and go; one a round would be many more
SLEEPS = ("sleep", "1000")


def open_files(engine: Engine) -> int:
    assert engine.process is not None
    return len(list(Path(f"/proc/{engine.process.pid}/fd").iterdir()))


async def settled_files(engine: Engine, most: int) -> int:
    """How many descriptors dockerd has, once they are few enough or have had their time."""
    for _ in range(300):
        if open_files(engine) <= most:
            break
        await asyncio.sleep(0.1)
    return open_files(engine)


async def cancelled_launch(house: House, after: float) -> None:
    attempt = house.attempt(*SLEEPS, stdin=b"x" * 100_000, payload=b"{}")
    launch = asyncio.create_task(house.launch(attempt))
    await asyncio.wait({launch}, timeout=after)
    launch.cancel()
    await asyncio.wait({launch})
    async with asyncio.timeout(30):
        await house.engine.discard(attempt)
    assert await house.client.inspect(attempt.container_name) is None


async def test_a_launch_cancelled_at_any_moment(tmp_path: Path, state_dir: Path, namespace: str) -> None:
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)  # noqa: S311
    async with Engine(tmp_path / "engine") as engine:
        image = await build_busybox(engine.url)
        async with open_house(engine.url, namespace, state_dir, image) as house:
            await asyncio.gather(*(cancelled_launch(house, 0.2) for _ in range(3)))
        before = open_files(engine)
        async with open_house(engine.url, namespace, state_dir, image) as house:
            delays = [chance.uniform(0.001, 0.4) for _ in range(ROUNDS - 6)] + [0.001, 0.002, 0.004, 0.008, 0.015, 0.03]
            for group in range(0, ROUNDS, 3):
                async with asyncio.TaskGroup() as tasks:
                    for delay in delays[group : group + 3]:
                        tasks.create_task(cancelled_launch(house, delay))
            assert await house.names() == set()
            assert house.folders() == set()
            assert house.engine.names() == set()
            assert house.connections() == 0
            assert house.log.created == house.log.removed
        assert await settled_files(engine, before + SLACK) <= before + SLACK


async def test_a_create_that_lands_after_all(
    engine: Endpoint, busybox_image: str, namespace: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TIME_LIMITS, Operation.CREATE, timedelta(seconds=1))
    async with (
        Proxy(engine.url) as proxy,
        open_house(proxy.url, namespace, state_dir, busybox_image) as house,
        open_house(engine.url, namespace, state_dir, busybox_image) as direct,
    ):
        await house.client.info()
        proxy.black_hole(to_client=False)  # requests are on their way, and take long
        attempt = house.attempt(*SLEEPS)
        with pytest.raises(EngineGone):
            await house.launch(attempt)
        discard = asyncio.create_task(house.engine.discard(attempt))
        proxy.heal()
        async with asyncio.timeout(30):
            await discard
        assert await direct.names() == set()
        assert house.log.failures["create", "timeout"] == 1
        assert house.log.created == house.log.removed


async def test_a_discard_that_is_cancelled_leaves_the_rest_to_the_sweep(
    engine: Endpoint, busybox_image: str, namespace: str, state_dir: Path
) -> None:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as house:
        attempt = house.attempt(*SLEEPS)
        await house.launch(attempt)
        discard = asyncio.create_task(house.engine.discard(attempt))
        await asyncio.sleep(0)
        discard.cancel()
        with pytest.raises(asyncio.CancelledError):
            await discard
        assert house.engine.names() == set()
        assert await house.sweep.once(grace=timedelta(0)) == 0
        assert await house.names() == set()
        assert house.folders() == set()
        assert (house.log.created, house.log.removed) == (1, 1)
        assert house.connections() == 0


async def test_starts_are_few_at_a_time_and_all_come_through(
    engine: Endpoint, busybox_image: str, namespace: str, state_dir: Path
) -> None:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as house:

        async def one(number: int) -> int | None:
            attempt = house.attempt("sh", "-c", f"exit {number}")
            container = await house.engine.launch(attempt, lambda _stream, _data: None)
            end = await container.wait()
            await house.engine.discard(attempt)
            return end.code

        async with asyncio.timeout(120):
            assert await asyncio.gather(*map(one, range(24))) == list(range(24))
        assert (house.log.created, house.log.removed) == (24, 24)
        assert house.connections() == 0

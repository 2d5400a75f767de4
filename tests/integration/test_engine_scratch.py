"""Scratch disks with an engine that crashes, and with launches that are broken off: none is left or lost early."""

import asyncio
import random
from pathlib import Path

import pytest
from tests.e2e.daemon import eventually
from tests.integration.engine_house import House, open_house
from tests.integration.test_scratch_disks import gone
from tests.services import Endpoint, Engine, build_busybox

from runner.job import Bytes, Limits

pytestmark = pytest.mark.engine

ROUNDS = 6
LIMITS = Limits(scratch=Bytes(8 * 2**20))
KEEPS = "echo kept >/scratch/a; echo up; while [ ! -s $JOB_PROGRESS_FILE ]; do sleep 0.1; done; cat /scratch/a"


async def cleared(house: House) -> None:
    """Nothing is left of any job."""
    assert await house.names() == set()
    await eventually(lambda: gone(house.state_dir), "no scratch disk is left")


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="containers die with it"),
        pytest.param(("--live-restore",), id="containers live on", marks=pytest.mark.slow),
    ],
)
async def test_an_engine_that_crashes(tmp_path: Path, namespace: str, flags: tuple[str, ...]) -> None:
    async with Engine(tmp_path / "engine", flags=flags) as engine:
        image = await build_busybox(engine.url)
        async with open_house(engine.url, namespace, tmp_path / "state", image) as house:
            attempt = house.attempt("sh", "-c", KEEPS, limits=LIMITS)
            container = await house.launch(attempt)
            await house.heard(b"up")
            waiting = asyncio.create_task(container.wait())
            await engine.kill()
            await engine.start()
            (house.state_dir / "jobs" / attempt.claim / "progress").write_text("go on")
            async with asyncio.timeout(60):
                end = await waiting
            if flags:
                assert (end.code, bytes(house.out)) == (0, b"up\nkept\n")
            else:
                assert end.lost == "the engine stopped, and the job with it"
            await house.engine.discard(attempt)
            await cleared(house)


async def test_launches_cancelled_at_any_moment(
    engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str
) -> None:
    chance = random.Random(seed := random.randrange(2**32))  # noqa: S311
    print(f"seed {seed}")  # noqa: T201

    async def broken_off(after: float) -> None:
        attempt = house.attempt("sleep", "1000", limits=LIMITS)
        launch = asyncio.create_task(house.launch(attempt))
        await asyncio.wait({launch}, timeout=after)
        launch.cancel()
        await asyncio.wait({launch})
        await house.engine.discard(attempt)

    async with open_house(engine.url, namespace, state_dir, busybox_image) as house:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for _ in range(ROUNDS):
                tasks.create_task(broken_off(chance.uniform(0.001, 0.6)))
        await cleared(house)

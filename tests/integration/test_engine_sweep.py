"""What is left of an earlier life is found and removed, and nothing else is."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint

from runner.adapters.docker import launch as launch_module
from runner.adapters.docker.files import JobFolder

pytestmark = pytest.mark.engine

SLEEPS = ("sleep", "1000")
NOW = timedelta(0)


@pytest.fixture
async def earlier(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    """The same worker's next life."""
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened
        await opened.sweep.once(grace=NOW)


async def test_everything_that_was_left_is_gone_after_the_start(earlier: House, house: House) -> None:
    running, created, ended = (earlier.attempt(*command) for command in (SLEEPS, SLEEPS, ("true",)))
    await earlier.launch(running)
    await (await earlier.launch(ended)).wait()
    await earlier.client.create(
        created.container_name, {"Image": house.image, "Cmd": ["true"], "Labels": {"runner.worker": house.worker}}
    )
    JobFolder(house.state_dir / "jobs" / "stray").create()
    assert len(await house.names()) == 3
    await house.sweep.at_start()
    assert await house.names() == set()
    assert house.folders() == set()
    assert (house.log.created, house.log.removed, house.log.orphans) == (3, 3, 3)
    assert house.connections() == 0


async def test_what_a_task_owns_is_left_alone(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    await house.launch(attempt)
    assert await house.sweep.once(grace=NOW) == 0
    assert await house.names() == {attempt.container_name}
    assert house.folders() == {attempt.claim}
    await house.engine.discard(attempt)


async def test_what_is_young_may_still_find_its_owner(earlier: House, house: House) -> None:
    attempt = earlier.attempt(*SLEEPS)
    await earlier.launch(attempt)
    assert await house.sweep.once(grace=timedelta(minutes=5)) == 1
    assert await house.names() == {attempt.container_name}
    assert house.folders() == {attempt.claim}
    assert await house.sweep.once(grace=NOW) == 0
    assert await house.names() == set()


async def test_other_workers_are_none_of_our_business(
    engine: Endpoint, busybox_image: str, house: House, tmp_path: Path
) -> None:
    async with open_house(engine.url, f"{house.worker}x", tmp_path / "other", busybox_image) as other:
        attempt = other.attempt(*SLEEPS)
        await other.launch(attempt)
        await house.sweep.at_start()
        assert await other.names() == {attempt.container_name}
        await other.engine.discard(attempt)


async def test_a_container_that_somebody_else_removed_is_counted_out(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    container = await house.launch(attempt)
    waiting = asyncio.create_task(container.wait())
    await house.client.delete(attempt.container_name)
    async with asyncio.timeout(30):
        assert (await waiting).lost == "its container was removed from outside"
    await house.engine.discard(attempt)
    assert (house.log.created, house.log.removed) == (1, 1)


async def test_files_that_resist_are_counted_until_they_are_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, faults = JobFolder.remove, [OSError("busy"), OSError("still busy")]

    def resist(folder: JobFolder) -> None:
        if faults:
            raise faults.pop()
        remove(folder)

    monkeypatch.setattr(launch_module, "_FILES_PAUSE", 0.01)
    monkeypatch.setattr(JobFolder, "remove", resist)
    async with asyncio.timeout(30):
        assert (await house.run("true")).code == 0
    assert house.folders() == set()
    assert house.log.cleanups_failed == 2


async def test_a_container_that_nobody_accounts_for_is_seen_while_there_is_no_job(house: House) -> None:
    found = [await house.audited()]
    await house.client.create(
        f"runner-{house.worker}-stray",
        {"Image": house.image, "Cmd": ["true"], "Labels": {"runner.worker": house.worker}},
    )
    found += [await house.audited(), await house.audited()]
    assert await house.sweep.once(grace=NOW, idle=lambda: True) == 0
    found += [house.log.unaccounted, await house.audited()]
    assert found == [0, 0, 1, 1, 0]


async def test_a_container_of_a_job_is_accounted_for(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    await house.launch(attempt)
    found = [await house.audited() for _ in range(3)]
    discarding = asyncio.create_task(house.engine.discard(attempt))
    while not discarding.done():
        found.append(await house.audited())
    await discarding
    found += [await house.audited() for _ in range(3)]
    assert set(found) == {0}


async def test_nothing_is_judged_when_a_job_comes_while_the_engine_is_asked(house: House) -> None:
    await house.client.create(
        f"runner-{house.worker}-stray",
        {"Image": house.image, "Cmd": ["true"], "Labels": {"runner.worker": house.worker}},
    )
    idle = iter((True, False) * 3)
    for _ in range(3):
        assert await house.sweep.once(grace=timedelta(minutes=5), idle=lambda: next(idle)) == 1
    assert house.log.unaccounted == 0
    assert next(idle, None) is None

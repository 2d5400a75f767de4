"""The engine stops, crashes, hangs, or somebody else meddles while a job runs: what is said of the job is true."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint, Engine, build_busybox
from tests.shims import shim_of, stop_shim

from runner.adapters.docker.client import TIME_LIMITS, Operation
from runner.errors import EngineGone, EngineUnfit

pytestmark = pytest.mark.engine

SLEEPS = ("sh", "-c", "echo up; exec sleep 1000")
HANDLES_TERM = ("sh", "-c", "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.1; done")
IGNORES_TERM = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")


@asynccontextmanager
async def own_engine(tmp_path: Path, worker: str, *flags: str) -> AsyncIterator[tuple[Engine, House]]:
    async with Engine(tmp_path / "engine", flags=flags) as engine:
        image = await build_busybox(engine.url)
        async with open_house(engine.url, worker, tmp_path / "state", image) as house:
            yield engine, house


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened
        assert await opened.names() == set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call has a second, so that a test need not wait for minutes; a start may take longer on a busy machine."""
    for operation in set(Operation) - {Operation.CREATE, Operation.START}:
        monkeypatch.setitem(TIME_LIMITS, operation, timedelta(seconds=1))


async def test_an_engine_that_is_shut_down_loses_its_jobs(tmp_path: Path, namespace: str) -> None:
    """With a job that takes SIGTERM the init still reports; with one that does not, the engine kills the init.

    One that handles it ends as it likes.
    """
    async with own_engine(tmp_path, namespace) as (engine, house):
        attempts = [house.attempt(*command) for command in (SLEEPS, IGNORES_TERM, HANDLES_TERM)]
        containers = []
        for attempt in attempts:
            containers.append(await house.launch(attempt))
            await house.heard(b"up")
        waits = [asyncio.create_task(container.wait()) for container in containers]
        await engine.restart()
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*waits)
        assert [end.lost for end in ends] == ["the engine stopped, and the job with it"] * 3
        assert [(end.code, end.signal) for end in ends] == [(None, None)] * 3
        for attempt in attempts:
            await house.engine.discard(attempt)
        assert await house.names() == set()
        assert house.connections() == 0


async def test_an_engine_that_crashes_loses_its_jobs(tmp_path: Path, namespace: str) -> None:
    async with own_engine(tmp_path, namespace) as (engine, house):
        attempt = house.attempt(*SLEEPS)
        container = await house.launch(attempt)
        waiting = asyncio.create_task(container.wait())
        await engine.kill()
        with pytest.raises(EngineGone):
            await house.client.ping()
        await engine.start()
        async with asyncio.timeout(60):
            assert (await waiting).lost == "the engine stopped, and the job with it"
        await house.engine.discard(attempt)
        assert await house.names() == set()
        assert house.log.created == house.log.removed


async def test_an_engine_that_lets_containers_live_has_kept_their_log(tmp_path: Path, namespace: str) -> None:
    async with own_engine(tmp_path, namespace, "--live-restore") as (engine, house):
        script = (
            "n=0; while [ ! -s $JOB_PROGRESS_FILE ]; do n=$((n + 1)); echo up $n; sleep 0.1; done; printf last; exit 3"
        )
        attempt = house.attempt("sh", "-c", script)
        container = await house.launch(attempt)
        waiting = asyncio.create_task(container.wait())
        await house.heard(b"up")
        await engine.kill()
        await engine.start()
        assert not waiting.done()
        (house.state_dir / "jobs" / attempt.claim / "progress").write_text("go on")
        async with asyncio.timeout(60):
            end = await waiting
        assert (end.code, end.signal, end.lost, end.complete) == (3, None, None, True)
        *counted, last = house.out.decode().split("\n")
        assert counted == [f"up {number}" for number in range(1, len(counted) + 1)]
        assert last == "last"
        await house.engine.discard(attempt)
        assert await house.names() == set()


async def test_a_job_can_be_killed_after_its_connection_broke(tmp_path: Path, namespace: str) -> None:
    async with own_engine(tmp_path, namespace, "--live-restore") as (engine, house):
        attempt = house.attempt(*IGNORES_TERM)
        container = await house.launch(attempt)
        waiting = asyncio.create_task(container.wait())
        await house.heard(b"up")
        await engine.kill()
        await engine.start()
        await container.terminate()
        await container.kill()
        async with asyncio.timeout(60):
            end = await waiting
        assert (end.code, end.signal, end.lost, end.complete) == (None, 9, None, True)
        await house.engine.discard(attempt)


async def test_a_launch_without_an_engine(tmp_path: Path, namespace: str, busybox_image: str) -> None:
    url = f"unix://{tmp_path}/nothing.sock"
    async with open_house(url, namespace, tmp_path / "state", busybox_image) as house:
        attempt = house.attempt(*SLEEPS)
        with pytest.raises(EngineUnfit):
            await house.launch(attempt)
        assert house.log.failures["create", "connection"] == 1
        async with asyncio.timeout(30):
            await house.engine.discard(attempt)  # there is nothing of it, and no engine to ask
        assert house.folders() == house.engine.names() == set()
        with pytest.raises(EngineGone):
            await house.sweep.once(grace=timedelta(0))


@pytest.mark.usefixtures("impatient")
async def test_an_engine_that_hangs_is_gone_until_it_goes_on(tmp_path: Path, namespace: str) -> None:
    async with own_engine(tmp_path, namespace) as (engine, house):
        attempt = house.attempt(*SLEEPS)
        container = await house.launch(attempt)
        await house.heard(b"up")
        await engine.pause()
        with pytest.raises(EngineGone):
            await house.client.ping()
        with pytest.raises(EngineGone):
            await container.terminate()
        discard = asyncio.create_task(house.engine.discard(attempt))
        async with asyncio.timeout(30):
            while not house.log.cleanups_failed:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        assert not discard.done()
        await engine.resume()
        async with asyncio.timeout(30):
            await discard
        assert await house.names() == set()
        assert house.log.failures["ping", "timeout"] == 1


async def test_a_first_process_killed_from_outside_is_a_signal_and_no_loss(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    container = await house.launch(attempt)
    waiting = asyncio.create_task(container.wait())
    await house.heard(b"up")
    await house.client.signal(container.id, signal.SIGKILL)
    async with asyncio.timeout(30):
        end = await waiting
    assert (end.signal, end.lost, end.complete, bytes(house.out)) == (9, None, False, b"up\n")
    await house.engine.discard(attempt)


async def test_a_job_that_somebody_stops_while_the_engine_stays_up_ended_as_it_did(house: House) -> None:
    attempt = house.attempt(*HANDLES_TERM)
    container = await house.launch(attempt)
    waiting = asyncio.create_task(container.wait())
    await house.heard(b"up")
    await house.client.signal(container.id, signal.SIGTERM)
    async with asyncio.timeout(30):
        end = await waiting
    assert (end.code, end.lost, bytes(house.out)) == (0, None, b"up\nsaved\n")
    await house.engine.discard(attempt)


async def test_a_container_removed_from_outside_is_lost(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    container = await house.launch(attempt)
    waiting = asyncio.create_task(container.wait())
    await house.client.delete(container.id)
    async with asyncio.timeout(30):
        assert (await waiting).lost == "its container was removed from outside"
    await house.engine.discard(attempt)


async def test_a_job_that_kills_itself_is_held_for_a_moment_and_one_that_fails_is_not(house: House) -> None:
    loop = asyncio.get_running_loop()
    attempt = house.attempt("sh", "-c", "kill -9 $$")
    container = await house.launch(attempt)
    began = loop.time()
    end = await container.wait()
    assert (end.signal, end.lost, end.complete) == (9, None, True)
    assert loop.time() - began >= 2.5
    await house.engine.discard(attempt)

    attempt = house.attempt("sh", "-c", "exit 3")
    container = await house.launch(attempt)
    calls = house.log.calls.total()
    assert (await container.wait()).code == 3
    assert house.log.calls.total() == calls
    await house.engine.discard(attempt)


@pytest.mark.usefixtures("impatient")
async def test_a_container_that_cannot_be_removed_holds_up_no_other(house: House) -> None:
    stuck = [house.attempt(*SLEEPS) for _ in range(6)]
    shims = []
    for attempt in stuck:
        container = await house.launch(attempt)
        shims.append(shim_of(container.id))
    try:
        for shim in shims:
            await stop_shim(shim)
        discards = [asyncio.create_task(house.engine.discard(attempt)) for attempt in stuck]
        async with asyncio.timeout(30):
            assert (await house.run("true")).code == 0
        assert not any(discard.done() for discard in discards)
        assert house.engine.names() == {attempt.container_name for attempt in stuck}
    finally:
        for shim in shims:
            os.kill(shim, signal.SIGCONT)
    async with asyncio.timeout(60):
        await asyncio.gather(*discards)
    assert house.log.created == house.log.removed

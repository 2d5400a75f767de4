"""A container that an earlier life of the daemon left is gone on with, and its log is whole or said not to be."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint, Engine, build_busybox

from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.nonces import Nonces
from runner.errors import EngineError, NeverStarted
from runner.job import Attempt, Bytes, Exit, Limits

pytestmark = pytest.mark.engine

GO = "while [ ! -s $JOB_PROGRESS_FILE ]; do sleep 0.05; done"
"""What a job says to wait for `let_go`."""
COUNTS = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; echo err $i >&2; done"
SLEEPS = ("sh", "-c", "echo up; exec sleep 1000")
MIB = 2**20


@pytest.fixture
async def earlier(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    """The same worker's next life."""
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened
        assert await opened.names() == set()
        assert opened.folders() == set()
        assert opened.connections() == 0
        assert opened.log.living == 0


def let_go(house: House, attempt: Attempt) -> None:
    (house.state_dir / "jobs" / attempt.claim / "progress").write_text("go on")


async def leave(earlier: House, attempt: Attempt, until: bytes = b"") -> DockerContainer:
    """Start it, and once it has written that let go of it as a daemon does that is killed."""
    container = await earlier.launch(attempt)
    await earlier.heard(until)
    await earlier.engine.close()
    return container


async def has_on_record(house: House, attempt: Attempt, text: bytes) -> None:
    """Return when the engine's own log has that of the job, too: an engine that is killed before never will."""
    found = bytearray()
    async with asyncio.timeout(30):
        while text not in found:
            found.clear()
            await house.client.read_log(attempt.container_name, lambda _, data: found.extend(data), follow=False)


async def leave_to_its_end(earlier: House, attempt: Attempt) -> None:
    await leave(earlier, attempt)
    let_go(earlier, attempt)
    while (await earlier.inspect(attempt))["State"]["Status"] != "exited":
        await earlier.client.wait(attempt.container_name)


async def adopt(house: House, attempt: Attempt) -> DockerContainer:
    house.out.clear()
    house.err.clear()
    return await house.engine.adopt(attempt, house.hear)


async def see_out(house: House, attempt: Attempt) -> Exit:
    """Adopt it, and wait for its end."""
    try:
        container = await adopt(house, attempt)
        async with asyncio.timeout(60):
            return await container.wait()
    finally:
        await house.engine.discard(attempt)


async def test_a_job_goes_on_where_it_was(earlier: House, house: House) -> None:
    talk = f"echo before; echo careful >&2; {GO}; echo after; printf last; printf words >&2"
    attempt = house.attempt("sh", "-c", f"{talk}; echo 1 > $JOB_OUTPUT_FILE; exit 3", payload=b"{}", stdin=b"read me")
    first = await leave(earlier, attempt, b"before")
    container = await adopt(house, attempt)
    assert (container.id, container.started, container.ended) == (first.id, first.started, None)
    waiting = asyncio.create_task(container.wait())
    await house.heard(b"before\n")
    let_go(house, attempt)
    async with asyncio.timeout(30):
        end = await waiting
    assert (end.code, end.lost, end.output, end.complete) == (3, None, b"1\n", True)
    assert end.usage.memory_peak_bytes is not None
    assert (bytes(house.out), bytes(house.err)) == (b"before\nafter\nlast", b"careful\nwords")
    assert container.ended is not None
    assert container.started < container.ended <= datetime.now(UTC)
    await house.engine.discard(attempt)


async def test_one_that_says_nothing_is_known_to_have_started(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", f"printf quiet; {GO}")
    await leave(earlier, attempt)
    container = await adopt(house, attempt)
    assert container.ended is None
    let_go(house, attempt)
    async with asyncio.timeout(30):
        end = await container.wait()
    assert (end.code, end.complete, bytes(house.out)) == (0, True, b"quiet")
    await house.engine.discard(attempt)


async def test_one_that_ended_while_nobody_watched(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", f"{GO}; {COUNTS}; printf end; exit 4")
    await leave_to_its_end(earlier, attempt)
    back = datetime.now(UTC)
    container = await adopt(house, attempt)
    assert container.ended is not None
    assert container.ended < back
    end = await container.wait()
    assert await container.wait() == end
    assert (end.code, end.complete) == (4, True)
    assert bytes(house.out) == b"".join(b"line %d\n" % number for number in range(1, 401)) + b"end"
    assert bytes(house.err) == b"".join(b"err %d\n" % number for number in range(1, 401))
    await container.terminate()
    await container.kill()
    await house.engine.discard(attempt)


async def test_output_is_the_same_whenever_the_daemon_came_back(earlier: House, house: House) -> None:
    script = f"{COUNTS}; head -c 100000 /dev/zero | tr '\\0' x; printf 'ÄÖ€ %s' tail"
    whole = b"".join(b"line %d\n" % number for number in range(1, 401)) + b"x" * 100_000 + "ÄÖ€ tail".encode()
    for until in (b"", b"line 1\n", b"line 200\n", b"line 400\n", b"x" * 50_000):
        attempt = house.attempt("sh", "-c", script)
        await leave(earlier, attempt, until)
        end = await see_out(house, attempt)
        assert (end.code, end.complete) == (0, True)
        assert bytes(house.out) == whole


async def test_a_wait_that_was_cancelled_goes_on(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", f"echo up; {GO}; echo down")
    await leave(earlier, attempt, b"up")
    container = await adopt(house, attempt)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await container.wait()
    let_go(house, attempt)
    async with asyncio.timeout(30):
        end = await container.wait()
    assert (end.code, end.complete, bytes(house.out)) == (0, True, b"up\ndown\n")
    await house.engine.discard(attempt)


async def test_an_adopted_job_can_be_ended(earlier: House, house: House) -> None:
    stubborn = house.attempt("sh", "-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done")
    await leave(earlier, stubborn, b"up")
    container = await adopt(house, stubborn)
    waiting = asyncio.create_task(container.wait())
    await container.terminate()
    await house.heard(b"no")
    await container.kill()
    async with asyncio.timeout(30):
        end = await waiting
    assert (end.signal, end.lost, end.complete) == (9, None, True)
    await house.engine.discard(stubborn)


async def test_what_is_discarded_while_it_runs_is_lost(earlier: House, house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    await leave(earlier, attempt, b"up")
    container = await adopt(house, attempt)
    waiting = asyncio.create_task(container.wait())
    await house.engine.discard(attempt)
    async with asyncio.timeout(30):
        assert (await waiting).lost == "its container was removed from outside"


async def test_text_that_is_not_utf8_is_told_but_not_called_complete(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", f"{GO}; printf 'caf\\351 \\377\\n'; echo fine")
    await leave_to_its_end(earlier, attempt)
    end = await see_out(house, attempt)
    assert (end.code, end.complete) == (0, False)
    assert bytes(house.out) == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\nfine\n".encode()


async def test_all_that_is_kept_of_a_log_is_there_to_be_read_again(earlier: House, house: House) -> None:
    limits = Limits(cpus=1.0, log_bytes=Bytes(MIB))
    attempt = house.attempt("sh", "-c", f"{GO}; yes 'eleven byte' | head -c {MIB}", limits=limits)
    await leave_to_its_end(earlier, attempt)
    end = await see_out(house, attempt)
    assert (end.code, end.complete, len(house.out)) == (0, True, MIB)


async def test_a_log_that_lost_its_beginning_is_not_called_complete(earlier: House, house: House) -> None:
    limits = Limits(cpus=1.0, log_bytes=Bytes(4096))
    script = f"yes 0123456 | head -c {MIB}; echo halfway; {GO}; echo the end"
    running, ended = (house.attempt("sh", "-c", script, limits=limits) for _ in range(2))
    first = await leave(earlier, running, b"halfway")
    await leave_to_its_end(earlier, ended)
    container = await adopt(house, running)
    assert abs(container.started - first.started) < timedelta(seconds=5)
    let_go(house, running)
    async with asyncio.timeout(60):
        end = await container.wait()
    assert (end.code, end.complete) == (0, False)
    assert house.out.endswith(b"0123456\nhalfway\nthe end\n")
    await house.engine.discard(running)
    end = await see_out(house, ended)
    assert (end.code, end.complete) == (0, False)
    assert house.out.endswith(b"0123456\nhalfway\nthe end\n")


async def test_input_that_went_with_the_daemon_is_missed(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", "echo up; sleep 1000", stdin=b"x" * 100_000)
    await leave(earlier, attempt, b"up")
    with pytest.raises(EngineError, match="had not read all of its input"):
        await adopt(house, attempt)
    await house.engine.discard(attempt)


async def test_input_that_fits_into_the_pipe_is_all_there(earlier: House, house: House) -> None:
    attempt = house.attempt("sh", "-c", f"echo up; {GO}; wc -c", stdin=b"x" * 60_000)
    await leave(earlier, attempt, b"up")
    let_go(house, attempt)
    end = await see_out(house, attempt)
    assert (end.code, bytes(house.out)) == (0, b"up\n60000\n")


async def test_containers_without_a_job_are_not_adopted(earlier: House, house: House) -> None:
    gone, created, idle = (house.attempt(*SLEEPS) for _ in range(3))
    with pytest.raises(NeverStarted, match="was gone when"):
        await adopt(house, gone)
    body = {"Image": house.image, "Labels": {"runner.worker": house.worker, "runner.boot": house.engine._site.boot}}
    await earlier.client.create(created.container_name, body | {"Cmd": ["true"]})
    with pytest.raises(NeverStarted, match="ended before the job was started"):
        await adopt(house, created)
    sleeping = await earlier.client.create(idle.container_name, body | {"Cmd": ["sleep", "1000"]})
    await earlier.client.start(sleeping)
    with pytest.raises(NeverStarted, match="ended before the job was started"):
        await adopt(house, idle)
    for attempt in (gone, created, idle):
        await house.engine.discard(attempt)


async def test_a_machine_that_was_started_anew_has_no_jobs(earlier: House, house: House) -> None:
    attempt = house.attempt("true")
    await leave(earlier, attempt)
    house.engine._site = replace(house.engine._site, boot="another")
    with pytest.raises(EngineError, match="the machine was started anew"):
        await adopt(house, attempt)
    await house.engine.discard(attempt)


async def test_a_job_that_the_engine_may_have_ended_is_lost(earlier: House, house: House) -> None:
    """Nobody watched, and nothing else explains it; one that ends like that under our eyes has ended by itself."""
    unseen, seen = house.attempt(*SLEEPS), house.attempt("sh", "-c", f"{GO}; kill -9 $$")
    await leave(earlier, unseen, b"up")
    await leave(earlier, seen)
    await house.client.signal(unseen.container_name, signal.SIGTERM)
    while (await house.inspect(unseen))["State"]["Status"] != "exited":
        await house.client.wait(unseen.container_name)
    end = await see_out(house, unseen)
    assert (end.signal, end.lost) == (None, "the engine stopped, and the job with it")
    container = await adopt(house, seen)
    let_go(house, seen)
    async with asyncio.timeout(30):
        end = await container.wait()
    assert (end.signal, end.lost) == (9, None)
    await house.engine.discard(seen)


async def test_an_engine_that_is_away_is_waited_for(tmp_path: Path, namespace: str) -> None:
    async with Engine(tmp_path / "engine", flags=["--live-restore"]) as engine:
        image = await build_busybox(engine.url)
        async with open_house(engine.url, namespace, tmp_path / "state", image) as earlier:
            attempt = earlier.attempt("sh", "-c", f"echo up; {GO}; echo down")
            await leave(earlier, attempt, b"up")
        async with open_house(engine.url, namespace, tmp_path / "state", image) as house:
            await has_on_record(house, attempt, b"up\n")
            await engine.kill()
            adopting = asyncio.create_task(adopt(house, attempt))
            await engine.start()
            async with asyncio.timeout(30):
                container = await adopting
            waiting = asyncio.create_task(container.wait())
            await house.heard(b"up\n")
            await engine.kill()
            await engine.start()
            let_go(house, attempt)
            async with asyncio.timeout(30):
                end = await waiting
            assert (end.code, end.lost, end.complete, bytes(house.out)) == (0, None, True, b"up\ndown\n")
            await house.engine.discard(attempt)
            assert await house.names() == set()


async def test_what_is_kept_is_removed_when_nobody_wants_it_any_more(earlier: House, house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    await leave(earlier, attempt, b"up")
    house.engine.keep(attempt.container_name)
    assert await house.sweep.once(grace=timedelta(0)) == 0
    assert await house.names() == {attempt.container_name}
    assert house.folders() == {attempt.claim}
    house.engine.drop(attempt.container_name)
    async with asyncio.timeout(30):
        while house.engine.names():
            await house.client.wait(attempt.container_name)
    assert await house.names() == set()
    assert house.folders() == set()


def test_a_claim_has_the_same_nonce_in_every_life(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    nonce = Nonces(path).of("claim")
    assert len(nonce) == 32
    assert nonce.isascii()
    assert Nonces(path).of("claim") == nonce
    assert Nonces(path).of("claim2") != nonce
    assert path.stat().st_mode & 0o777 == 0o600
    assert Nonces(tmp_path / "other").of("claim") != nonce
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]
    path.write_bytes(b"short")
    with pytest.raises(EngineError, match="is damaged"):
        Nonces(path).of("claim")

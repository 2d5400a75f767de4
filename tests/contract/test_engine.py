"""What every engine does, the real one and the fake."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path

import pytest
from tests.attempts import make_attempt
from tests.engine_log import EngineLog
from tests.fake_engine import FakeEngine, Script
from tests.services import Endpoint

from runner.adapters.docker.config import LABEL_WORKER
from runner.adapters.docker.engine import open_engine
from runner.errors import ImageMissing, NeverStarted, StartError
from runner.job import Attempt, Exit, Limits, Stream
from runner.ports import Engine

MISSING_IMAGE = "sha256:" + 64 * "1"
TOO_MANY_CPUS = Limits(cpus=4096)

SPEAKS = ("sh", "-c", "echo out; echo err >&2; exit 3")
GIVES = ("sh", "-c", 'printf 42 > "$JOB_OUTPUT_FILE"')
TELLS = ("sh", "-c", 'printf half > "$JOB_PROGRESS_FILE"; echo told; exec sleep 1000')
SLEEPS = ("sh", "-c", "echo up; exec sleep 1000")
IGNORES_TERM = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done")
MISSING = ("no-such-command",)
NOT_EXECUTABLE = ("/etc",)
NO_IMAGE = ("never", "run")
IMPOSSIBLE = ("true", "impossible")

SCRIPTS = {
    SPEAKS: Script(output=[(Stream.OUT, b"out\n"), (Stream.ERR, b"err\n")], end=Exit(code=3, complete=True)),
    GIVES: Script(end=Exit(code=0, output=b"42", complete=True)),
    TELLS: Script(output=[(Stream.OUT, b"told\n")], progress=b"half"),
    SLEEPS: Script(output=[(Stream.OUT, b"up\n")]),
    IGNORES_TERM: Script(output=[(Stream.OUT, b"up\n")], ignores_term=True),
    MISSING: Script(end=Exit(exec_errno=errno.ENOENT, complete=True)),
    NOT_EXECUTABLE: Script(end=Exit(exec_errno=errno.EACCES, complete=True)),
    NO_IMAGE: Script(error=ImageMissing("No such image")),
    IMPOSSIBLE: Script(error=StartError("Range of CPUs is from 0.01 to 2.00")),
}


@dataclass
class House:
    """An engine with what the tests need to know about it."""

    engine: Engine
    worker: str
    image: str
    left: Callable[[], Awaitable[int]]
    heard: dict[Stream, bytes] = field(default_factory=lambda: {Stream.OUT: b"", Stream.ERR: b""})
    spoke: asyncio.Event = field(default_factory=asyncio.Event)

    def attempt(self, *command: str, limits: Limits | None = None, image: str | None = None) -> Attempt:
        return make_attempt(*command, worker=self.worker, image=image or self.image, limits=limits)

    def hear(self, stream: Stream, data: bytes) -> None:
        self.heard[stream] += data
        self.spoke.set()


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.engine)])
def services(request: pytest.FixtureRequest) -> tuple[Endpoint, str] | None:
    if request.param == "fake":
        return None
    return request.getfixturevalue("engine"), request.getfixturevalue("busybox_image")


@pytest.fixture
async def house(services: tuple[Endpoint, str] | None, namespace: str, state_dir: Path) -> AsyncIterator[House]:
    if services is None:
        fake = FakeEngine(SCRIPTS)

        async def live() -> int:
            return len(fake.live)

        yield House(engine=fake, worker=namespace, image="sha256:" + 64 * "0", left=live)
        return
    endpoint, image = services
    async with open_engine(url=endpoint.url, worker=namespace, state_dir=state_dir, observer=EngineLog()) as opened:

        async def left() -> int:
            files = list((state_dir / "jobs").iterdir()) if (state_dir / "jobs").exists() else []
            return len(await opened.client.labelled(f"{LABEL_WORKER}={namespace}")) + len(files)

        yield House(engine=opened.engine, worker=namespace, image=image, left=left)


async def run(house: House, *command: str) -> Exit:
    attempt = house.attempt(*command)
    try:
        await house.engine.prepare(attempt)
        container = await house.engine.launch(attempt, house.hear)
        async with asyncio.timeout(30):
            return await container.wait()
    finally:
        await house.engine.discard(attempt)
        assert await house.left() == 0


async def test_all_output_has_come_before_the_end(house: House) -> None:
    end = await run(house, *SPEAKS)
    assert (end.code, end.signal, end.lost, end.complete) == (3, None, None, True)
    assert house.heard == {Stream.OUT: b"out\n", Stream.ERR: b"err\n"}


async def test_the_output_file_is_handed_over(house: House) -> None:
    assert (await run(house, *GIVES)).output == b"42"


@pytest.mark.parametrize(("command", "number"), [(MISSING, errno.ENOENT), (NOT_EXECUTABLE, errno.EACCES)])
async def test_a_command_that_cannot_be_executed(house: House, command: tuple[str, ...], number: int) -> None:
    end = await run(house, *command)
    assert (end.code, end.signal, end.exec_errno) == (None, None, number)


async def test_the_container_says_what_it_is_and_what_the_job_tells(house: House) -> None:
    attempt = house.attempt(*TELLS)
    try:
        container = await house.engine.launch(attempt, house.hear)
        async with asyncio.timeout(30):
            await house.spoke.wait()
        assert container.progress() == b"half"
        assert len(container.id) == 64
        assert container.started.tzinfo is UTC
    finally:
        await house.engine.discard(attempt)


async def test_terminate_ends_a_job_that_does_not_mind(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    try:
        container = await house.engine.launch(attempt, house.hear)
        assert container.progress() is None
        await container.terminate()
        async with asyncio.timeout(30):
            end = await container.wait()
        assert (end.code, end.signal, end.lost) == (None, 15, None)
    finally:
        await house.engine.discard(attempt)


async def test_kill_ends_a_job_that_ignores_terminate(house: House) -> None:
    attempt = house.attempt(*IGNORES_TERM)
    try:
        container = await house.engine.launch(attempt, house.hear)
        async with asyncio.timeout(30):
            await house.spoke.wait()
        await container.terminate()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await container.wait()
        await container.kill()
        async with asyncio.timeout(30):
            end = await container.wait()
        assert (end.code, end.signal, end.lost, end.complete) == (None, 9, None, True)
    finally:
        await house.engine.discard(attempt)


async def test_a_job_that_has_ended_takes_signals_and_tells_its_end_again(house: House) -> None:
    attempt = house.attempt(*SPEAKS)
    try:
        container = await house.engine.launch(attempt, house.hear)
        end = await container.wait()
        await container.terminate()
        await container.kill()
        assert await container.wait() == end
    finally:
        await house.engine.discard(attempt)


async def test_what_is_discarded_while_it_runs_is_lost(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    container = await house.engine.launch(attempt, house.hear)
    waiting = asyncio.create_task(container.wait())
    await house.engine.discard(attempt)
    async with asyncio.timeout(30):
        end = await waiting
    assert end.lost is not None
    assert await house.left() == 0


async def test_a_later_life_hears_everything_from_the_beginning(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    first = await house.engine.launch(attempt, house.hear)
    await house.spoke.wait()
    house.engine.keep(attempt.container_name)
    later = House(engine=house.engine, worker=house.worker, image=house.image, left=house.left)
    container = await house.engine.adopt(attempt, later.hear)
    assert (container.id, container.started, container.ended) == (first.id, first.started, None)
    waiting = asyncio.create_task(container.wait())
    async with asyncio.timeout(30):
        await later.spoke.wait()
        await container.terminate()
        end = await waiting
    assert (end.signal, end.lost, end.complete) == (15, None, True)
    assert later.heard == {Stream.OUT: b"up\n", Stream.ERR: b""}
    await house.engine.discard(attempt)
    assert await house.left() == 0


async def test_nothing_to_adopt(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    house.engine.keep(attempt.container_name)
    with pytest.raises(NeverStarted):
        await house.engine.adopt(attempt, house.hear)
    await house.engine.discard(attempt)
    house.engine.drop(attempt.container_name)
    assert await house.left() == 0


async def test_a_missing_image(house: House) -> None:
    attempt = house.attempt(*NO_IMAGE, image=MISSING_IMAGE)
    with pytest.raises(ImageMissing):
        await house.engine.launch(attempt, house.hear)
    await house.engine.discard(attempt)
    assert await house.left() == 0


async def test_limits_that_the_engine_refuses(house: House) -> None:
    attempt = house.attempt(*IMPOSSIBLE, limits=TOO_MANY_CPUS)
    with pytest.raises(StartError, match="Range of CPUs"):
        await house.engine.launch(attempt, house.hear)
    await house.engine.discard(attempt)
    assert await house.left() == 0


async def test_a_launch_that_is_cancelled_leaves_nothing_once_discarded(house: House) -> None:
    attempt = house.attempt(*SLEEPS)
    launch = asyncio.create_task(house.engine.launch(attempt, house.hear))
    await asyncio.sleep(0)
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await house.engine.discard(attempt)
    assert await house.left() == 0


async def test_discard_may_come_twice_or_for_nothing(house: House) -> None:
    await house.engine.discard(house.attempt(*SLEEPS))
    attempt = house.attempt(*SPEAKS)
    await house.engine.launch(attempt, house.hear)
    await house.engine.discard(attempt)
    await house.engine.discard(attempt)
    assert await house.left() == 0

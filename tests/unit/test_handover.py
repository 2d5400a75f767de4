"""A job that is given to a container that waited, where the engine fails meanwhile."""

import asyncio
import errno
import struct
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.attempts import make_attempt
from tests.fakes import until

from runner.adapters.docker import container, handover
from runner.adapters.docker.files import JobFolder, JobFolders
from runner.adapters.docker.handover import Handover
from runner.adapters.docker.launch import Launch
from runner.adapters.docker.sandbox import GOOD_FOR, Sandbox
from runner.errors import EngineError, EngineGone, EngineUnfit
from runner.job import Attempt, Bytes

NONCE = 16 * b"s" + 16 * b"e"


class Launches:
    """One launch, which an engine that is away cannot unmake."""

    def __init__(self, becoming: Coroutine[Any, Any, Sandbox]) -> None:
        self.launch = Launch(becoming=asyncio.create_task(becoming), former="warm-w1-1")
        self.unmade: list[str] = []

    def find(self, _name: str) -> Launch:
        return self.launch

    def own(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self.task = task
        return task

    async def unmake(self, claim: str) -> None:
        self.unmade.append(claim)
        await asyncio.Event().wait()


class Attachment:
    """The streams of a container whose init is there, or was."""

    def __init__(self, *, ended: bool = False) -> None:
        self.ended = ended
        self.sent = b""

    def listen(self, on_data: object, on_end: object) -> None:
        """Nothing will come."""

    def send(self, data: bytes) -> None:
        self.sent += data

    def end_input(self) -> None:
        """There was none but what was sent."""


def sandbox(folder: JobFolder, attachment: Attachment) -> Sandbox:
    return Sandbox(None, "c", attachment, folder, Bytes(0))  # type: ignore[arg-type]


def handover_of(launches: Launches, tmp_path: Path) -> Handover:
    folders = JobFolders(jobs=tmp_path / "jobs")
    return Handover(warm=None, launches=launches, census=None, site=None, folders=folders)  # type: ignore[arg-type]


@pytest.fixture
def attempt() -> Attempt:
    return make_attempt("true", claim="c1", payload=b"data")


async def test_a_job_is_passed_on_when_its_container_can_neither_be_renamed_nor_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attempt: Attempt
) -> None:
    async def become() -> Sandbox:
        raise EngineGone("the engine does not listen")

    monkeypatch.setattr(handover, "REMAKE_PATIENCE", 0.01)
    launches = Launches(become())
    with pytest.raises(EngineUnfit, match="cannot be used or removed: the engine does not listen"):
        await handover_of(launches, tmp_path).expected(attempt)
    assert launches.unmade == ["c1"]
    launches.task.cancel()


async def test_a_job_is_passed_on_when_its_container_died_with_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attempt: Attempt
) -> None:
    dead = sandbox(JobFolder(tmp_path / "jobs" / "c1"), Attachment(ended=True))

    async def become() -> Sandbox:
        return dead

    monkeypatch.setattr(handover, "REMAKE_PATIENCE", 0.01)
    launches = Launches(become())
    with pytest.raises(EngineUnfit, match="it ended"):
        await handover_of(launches, tmp_path).expected(attempt)
    launches.task.cancel()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param(errno.ENOSPC, EngineUnfit, id="full"),
        pytest.param(errno.EDQUOT, EngineUnfit, id="quota"),
        pytest.param(errno.EIO, EngineError, id="broken"),
    ],
)
async def test_a_payload_that_cannot_be_written_is_the_platforms_failure_and_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attempt: Attempt, code: int, kind: type[EngineError]
) -> None:
    def fail(_folder: JobFolder, _payload: bytes) -> None:
        raise OSError(code, "cannot be written")

    monkeypatch.setattr(JobFolder, "write_payload", fail)
    streams = Attachment()
    waiting = sandbox(JobFolder(tmp_path / "jobs" / "c1"), streams)
    with pytest.raises(EngineError, match="the job's files cannot be made") as caught:
        await waiting.run(attempt, NONCE, lambda _stream, _data: None, warm=True)
    assert type(caught.value) is kind
    assert streams.sent == b""


async def test_what_the_init_is_told_is_good_for_less_than_its_word_is_awaited(tmp_path: Path) -> None:
    assert GOOD_FOR.total_seconds() < container._BEGIN_LIMIT
    streams, before = Attachment(), datetime.now(UTC)
    running = sandbox(JobFolder(tmp_path / "jobs" / "c1"), streams).run(
        make_attempt("true", claim="c1"), NONCE, lambda _stream, _data: None, warm=True
    )
    task = asyncio.create_task(running)
    await until(lambda: streams.sent)
    task.cancel()
    tag, length, milliseconds = struct.unpack("<BIQ", streams.sent[-13:])
    assert (tag, length) == (11, 8)
    until_when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    assert before + GOOD_FOR - timedelta(milliseconds=1) <= until_when <= datetime.now(UTC) + GOOD_FOR

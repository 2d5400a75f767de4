"""What a job's end is when its host, or the place that it wrote its results to, has failed it."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.excess import Excess
from runner.adapters.docker.files import OUTPUT, JobFolder
from runner.adapters.docker.replay import STDERR, STDOUT
from runner.job import Bytes, Exit, Limits

MIB = 2**20
END = b"<end--nonce--16>"
LIMITS = Limits(memory=Bytes(16 * MIB), disk=Bytes(64 * MIB))
KILLED, FAILED = 9, 3 << 8


class Heard:
    """An attachment that brings the init's report at once."""

    def __init__(self, *, status: int, peak: int, oom_kills: int, work: int) -> None:
        body = struct.pack("<iiQQQQI", status, 0, 0, 0, peak, oom_kills, 3)
        for used in (work, 0, 0):
            body += struct.pack("<QQQQ", LIMITS.disk, LIMITS.disk - used, 1024, 1000)
        self.record = END + (struct.pack("<I", len(body)) + body).hex().encode() + b"\n"

    def listen(self, receive: Callable[[int, bytes], None], _ended: Callable[[], None]) -> None:
        """Tell it."""
        receive(STDOUT, self.record)
        receive(STDERR, END + b"\n")


async def end_of(
    folder: JobFolder, *, status: int = 0, peak: int = 80 * MIB, oom_kills: int = 0, work: int = 0
) -> Exit:
    heard = Heard(status=status, peak=peak, oom_kills=oom_kills, work=work)
    container = DockerContainer(
        client=cast(EngineClient, None),  # nobody is asked
        container="c",
        attachment=cast(Attachment, heard),
        folder=folder,
        limits=LIMITS,
        excess=cast(Excess, None),
        nonce=b"<start-nonce-16>" + END,
        on_output=lambda _stream, _data: None,
    )
    return await container.wait()


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "jobs" / "c", tmp_path / "results" / "c")
    folder.create()
    return folder


async def test_what_a_host_killed_for_its_own_want_of_memory_is_lost(folder: JobFolder) -> None:
    end = await end_of(folder, status=KILLED, peak=20 * MIB, oom_kills=1)
    assert (end.lost, end.signal, end.oom_kills) == ("its worker ran out of memory", None, 1)


async def test_what_its_own_limit_killed_is_not(folder: JobFolder) -> None:
    end = await end_of(folder, status=KILLED, oom_kills=1)
    assert (end.lost, end.signal, end.disk_full) == (None, 9, None)


async def test_results_and_other_files_that_filled_the_memory_together_are_named(folder: JobFolder) -> None:
    (folder.results / OUTPUT).write_bytes(bytes(20 * MIB))
    end = await end_of(folder, status=KILLED, oom_kills=1, work=45 * MIB)
    names = "/work, /tmp, /dev/shm, /job/output, /job/progress"
    assert end.disk_full == f"{names} together held more than 64 MiB"


async def test_a_job_whose_results_are_out_of_reach_has_not_succeeded(folder: JobFolder, tmp_path: Path) -> None:
    (folder.results / OUTPUT).write_bytes(b"1")
    assert (await end_of(folder)).output == b"1"
    shutil.rmtree(tmp_path / "results")
    end = await end_of(JobFolder(folder.path, folder.in_memory))
    assert end.lost == "its results cannot be reached: the place in memory that it wrote them to is gone"
    assert (await end_of(JobFolder(folder.path), status=FAILED)).code == 3

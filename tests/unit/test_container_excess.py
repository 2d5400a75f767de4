"""What ends a job for writing where no file system bounds it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import STACK

from runner.adapters.docker.client import EngineInfo
from runner.adapters.docker.excess import Excess
from runner.adapters.docker.files import OUTPUT, PROGRESS, JobFolder
from runner.errors import EngineGone
from runner.job import PROGRESS_MAX, Bytes, Limits

MIB = 2**20


class Engine:
    """The two calls of the client that are made here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.size = 0
        self.gone = False
        self.asked = 0

    async def layer_size(self, container: str) -> Bytes:
        self.asked += 1
        assert container == "c"
        if self.gone:
            raise EngineGone("it does not answer")
        return Bytes(self.size)

    async def info(self) -> EngineInfo:
        return EngineInfo(
            version="", cpus=1, memory=Bytes(1), cgroup_version=2, root=self.root, runtimes=frozenset({"runc"})
        )


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "jobs" / "c")
    folder.create()
    return folder


def watch(engine: Engine, folder: JobFolder, *, read_only: bool = False, reserve: int = 0) -> Excess:
    return Excess(
        client=engine,  # type: ignore[arg-type]
        container="c",
        folder=folder,
        stack=replace(STACK, read_only=read_only),
        limits=Limits(disk=Bytes(64 * MIB), scratch=Bytes(MIB)),
        reserve=Bytes(reserve),
    )


def reserve(path: Path, size: int) -> None:
    subprocess.run(["fallocate", "--keep-size", "--length", str(size), path], check=True)


def test_files_in_memory_are_never_too_much_as_the_jobs_memory_bounds_them(engine: Engine, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "jobs" / "m", tmp_path / "memory" / "m")
    folder.create()
    (folder.results / OUTPUT).write_bytes(bytes(5 * MIB))
    assert folder.taken()[OUTPUT] >= 5 * MIB
    assert not watch(engine, folder, read_only=True).possible


@pytest.mark.parametrize("name", [OUTPUT, PROGRESS])
async def test_a_file_for_results_is_no_store(engine: Engine, folder: JobFolder, name: str) -> None:
    excess = watch(engine, folder, read_only=True)
    (folder.path / name).write_bytes(bytes(4 * MIB))
    assert (excess.possible, await excess.found()) == (False, None)
    (folder.path / name).write_bytes(bytes(5 * MIB))
    assert (excess.possible, await excess.found()) == (
        True,
        f"/job/{name} took 5 MiB of its worker's disk, which is no place for large results",
    )
    assert folder.taken()[name] <= 128 * 1024, "the space is given back while the job is still being killed"
    assert engine.asked == 0


async def test_room_that_was_reserved_behind_the_end_is_given_back(engine: Engine, folder: JobFolder) -> None:
    reserve(folder.path / OUTPUT, 8 * MIB)
    assert await watch(engine, folder).found() is not None
    assert folder.taken()[OUTPUT] == 0


def test_what_is_read_of_a_result_stays(folder: JobFolder) -> None:
    (folder.path / OUTPUT).write_bytes(b"1234")
    (folder.path / PROGRESS).write_bytes(b"5" * 10000)
    folder.trim()
    assert folder.output() == b"1234"
    assert folder.progress() == b"5" * (PROGRESS_MAX + 1)


async def test_a_sparse_file_counts_by_what_it_holds(engine: Engine, folder: JobFolder) -> None:
    with (folder.path / OUTPUT).open("r+b") as file:
        file.truncate(2**40)
    assert await watch(engine, folder).found() is None


async def test_a_containers_own_files_are_bounded_by_both_limits(engine: Engine, folder: JobFolder) -> None:
    excess = watch(engine, folder)
    assert excess.possible
    engine.size = 65 * MIB
    assert await excess.found() is None
    engine.size += 1
    told = "wrote 65 MiB into its container, more than limits.disk and limits.scratch (65 MiB)"
    assert await excess.found() == told


async def test_what_the_engine_does_not_count_ends_at_its_disks_reserve(engine: Engine, folder: JobFolder) -> None:
    found = await watch(engine, folder, reserve=2**60).found()
    assert found is not None
    assert "less than capacity.disk_free, and its container may write there without a bound" in found
    assert await watch(engine, folder, read_only=True, reserve=2**60).found() is None


async def test_nobody_is_ended_because_nobody_can_tell(engine: Engine, folder: JobFolder) -> None:
    engine.gone = True
    assert await watch(engine, folder).found() is None

"""When a disk is too full for another job."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from runner.adapters.docker.engine import OpenEngine
from runner.adapters.docker.excess import free
from runner.app import disk as app_disk
from runner.app.disk import Disks, disk_of, shortage, total
from runner.errors import EngineGone
from runner.job import Bytes
from runner.settings import Settings

MIB = 2**20


def disk(*, free: int, files: int = 10**6, files_free: int = 10**6) -> os.statvfs_result:
    return os.statvfs_result((4096, 4096, 2**20, 2**20, free // 4096, files, files_free, files_free, 0, 255))


@pytest.mark.parametrize(
    ("found", "lack"),
    [
        (disk(free=100 * MIB), None),
        (disk(free=99 * MIB), "99 MiB are free, less than capacity.disk_free (100 MiB)"),
        (disk(free=200 * MIB, files_free=9999), "9999 more files are possible, fewer than 10000"),
        (disk(free=200 * MIB, files_free=10_000), None),
        (disk(free=200 * MIB, files=0, files_free=0), None),  # btrfs does not count them
    ],
)
def test_a_shortage_is_told(found: os.statvfs_result, lack: str | None) -> None:
    assert shortage(found, Bytes(100 * MIB)) == lack


def test_a_folder_that_is_still_to_be_made_is_on_its_parents_disk(tmp_path: Path) -> None:
    here, there = disk_of(tmp_path), disk_of(tmp_path / "a" / "b")
    assert total(here) == total(there) == here.f_blocks * here.f_frsize
    assert free(here) > 0


class Engine:
    """Says where its folder is, unless it does not answer."""

    def __init__(self, root: Path | None) -> None:
        self.root = root

    async def info(self) -> object:
        if self.root is None:
            raise EngineGone("no answer")
        return SimpleNamespace(root=self.root)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """What is free under the worker's and the engine's folders."""
    left = {"state": 100 * MIB, "engine": 100 * MIB}
    for name in left:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(app_disk, "disk_of", lambda folder: disk(free=left[folder.name]))
    return left


def disks(folder: Path, root: Path | None, url: str = "unix:///var/run/docker.sock") -> Disks:
    settings = SimpleNamespace(
        engine=SimpleNamespace(url=url),
        capacity=SimpleNamespace(disk_free=32 * MIB),
        worker=SimpleNamespace(state_dir=folder / "state"),
    )
    return Disks(cast(Settings, settings), cast(OpenEngine, SimpleNamespace(client=Engine(root))))


async def test_the_engines_disk_counts_as_well(free_bytes: dict[str, int], tmp_path: Path) -> None:
    watched = disks(tmp_path, tmp_path / "engine")
    await watched.look_for_engine()
    assert watched.problem() is None
    free_bytes["engine"] = 5 * MIB
    lack = "5 MiB are free, less than capacity.disk_free (32 MiB)"
    assert watched.problem() == f"on the engine's disk ({tmp_path}/engine) {lack}"
    free_bytes["state"] = 5 * MIB
    assert watched.problem() == f"on the disk of worker.state_dir {lack}"


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("engine", "tcp://vm-2:2375"),
        ("elsewhere", "unix:///var/run/docker.sock"),
        (None, "unix:///var/run/docker.sock"),
    ],
)
async def test_a_disk_that_is_not_here_is_not_ours_to_watch(
    free_bytes: dict[str, int], tmp_path: Path, root: str | None, url: str
) -> None:
    watched = disks(tmp_path, tmp_path / root if root else None, url)
    await watched.look_for_engine()
    free_bytes["engine"] = 0
    assert watched.problem() is None

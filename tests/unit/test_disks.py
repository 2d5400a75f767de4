"""When a disk is too full for another job."""

import os
from pathlib import Path

import pytest

from runner.app.disk import disk_of, free, shortage, total
from runner.job import Bytes

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

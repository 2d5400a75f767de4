"""Whether this machine has a place in memory for what jobs tell, and what is wrong with it if not."""

import os
from pathlib import Path

import pytest
from tests.mounted import mounted_tmpfs, results_in_memory

from runner.adapters.docker.results import place_in_memory, why_on_disk


def test_the_place_that_operators_mount_is_found(tmp_path: Path) -> None:
    state_dir = tmp_path / "a folder" / "with \\ and \N{LATIN SMALL LETTER U WITH DIAERESIS}"
    state_dir.mkdir(parents=True)
    (tmp_path / "link").symlink_to(state_dir)
    with results_in_memory(state_dir):
        assert why_on_disk(state_dir) is None
        assert place_in_memory(tmp_path / "link", "exec", "w1") == state_dir / "results" / "exec" / "w1"
        disk = os.statvfs(state_dir / "results")
        assert disk.f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        assert (state_dir / "results").stat().st_mode & 0o777 == 0o700
    assert why_on_disk(state_dir) == f"no tmpfs is mounted at {state_dir}/results"


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_on_the_disk_is_no_such_place(tmp_path: Path, *, made: bool) -> None:
    if made:
        (tmp_path / "results").mkdir()
    assert place_in_memory(tmp_path) is None
    assert why_on_disk(tmp_path) == f"no tmpfs is mounted at {tmp_path}/results"


def test_a_place_where_one_job_could_use_up_the_inodes_of_all_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with mounted_tmpfs(tmp_path / "results", "size=1m,nr_inodes=1000"):
        assert place_in_memory(tmp_path) is None
        assert "a bound to its inodes" in str(why_on_disk(tmp_path))

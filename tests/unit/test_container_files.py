"""A job's files, and what a job may do to them."""

import os
import shutil
from pathlib import Path

import pytest

from runner.adapters.docker.files import OUTPUT, PAYLOAD, PROGRESS, SECRETS, JobFolder, JobFolders, write_hosts
from runner.job import OUTPUT_MAX, PROGRESS_MAX


def made(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "jobs" / "c1")
    folder.create()
    return folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_code_is_shown_without_a_copy(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "lib" / "empty").mkdir(parents=True)
    (tree / "lib" / "a").write_text("a")
    (tree / "lib" / "a").chmod(0o555)
    (tree / "file-link").symlink_to("lib/a")
    (tree / "folder-link").symlink_to("lib")
    (tree / "nowhere").symlink_to("missing")
    folder = made(tmp_path)
    before = os.umask(0o077)
    try:
        folder.link_code(tree)
    finally:
        os.umask(before)
    code = folder.path / "code"
    shown = {str(path.relative_to(code)) for path in code.rglob("*")}
    assert shown == {str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert (code / "lib" / "a").samefile(tree / "lib" / "a")
    assert [str((code / name).readlink()) for name in ("file-link", "folder-link", "nowhere")] == [
        "lib/a",
        "lib",
        "missing",
    ]
    assert mode(code) == mode(code / "lib") == mode(code / "lib" / "empty") == 0o755
    folder.remove()
    assert (tree / "lib" / "a").read_text() == "a"


def test_nobody_on_the_host_passes_the_parent_and_the_job_reads_what_it_may(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = made(tmp_path)
        folder.write_payload(b"secret")
    finally:
        os.umask(before)
    assert mode(folder.path.parent) == 0o700
    assert mode(folder.path) == 0o755
    modes = {path.name: mode(path) for path in folder.path.iterdir()}
    assert modes == {PAYLOAD: 0o444, OUTPUT: 0o666, PROGRESS: 0o666, SECRETS: 0o700}


def test_empty_files_say_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path)
    assert folder.output() is None
    assert folder.progress() is None


def test_reads_stop_one_byte_past_the_limit(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder.path / OUTPUT).write_bytes(b"x" * (OUTPUT_MAX + 100))
    (folder.path / PROGRESS).write_bytes(b"x" * (PROGRESS_MAX + 100))
    assert folder.output() == b"x" * (OUTPUT_MAX + 1)
    assert folder.progress() == b"x" * (PROGRESS_MAX + 1)


def test_neither_a_link_nor_a_pipe_nor_a_folder_is_read(tmp_path: Path) -> None:
    folder = made(tmp_path)
    output = folder.path / OUTPUT
    output.unlink()
    output.symlink_to("/etc/passwd")
    assert folder.output() is None
    output.unlink()
    os.mkfifo(output)
    assert folder.output() is None
    output.unlink()
    output.mkdir()
    assert folder.output() is None


def test_whatever_is_there_is_removed_and_again(tmp_path: Path) -> None:
    folder = made(tmp_path)
    keep = tmp_path / "keep"
    keep.mkdir()
    (folder.path / "link").symlink_to(keep)
    (folder.path / "deep" / "deeper").mkdir(parents=True)
    (folder.path / PAYLOAD).touch(mode=0o000)
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
    assert keep.is_dir()


def test_what_a_job_writes_may_be_in_another_place(tmp_path: Path) -> None:
    folders = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results" / "jobs")
    folder = folders.of("warm-1")
    folder.create()
    assert folder.results == tmp_path / "results" / "jobs" / "warm-1"
    assert {path.name: mode(path) for path in folder.results.iterdir()} == {OUTPUT: 0o666, PROGRESS: 0o666}
    assert {path.name for path in folder.path.iterdir()} == {OUTPUT, PROGRESS, SECRETS}  # to be mounted over
    (folder.results / OUTPUT).write_bytes(b"1")
    (folder.results / PROGRESS).write_bytes(bytes(10 * PROGRESS_MAX))
    assert not folder.on_disk

    folder.become(folders.of("c1"))
    assert folders.names() == {"c1"}
    assert folder.output() == folders.of("c1").output() == b"1"
    folder.trim()
    assert (folder.results / PROGRESS).stat().st_size == PROGRESS_MAX + 1
    folder.remove()
    assert folders.names() == frozenset()


@pytest.mark.parametrize("left", ["jobs", "results"])
def test_a_folder_that_was_left_in_one_place_is_found_and_removed(tmp_path: Path, left: str) -> None:
    folders = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results")
    folders.of("c1").create()
    shutil.rmtree(tmp_path / ("results" if left == "jobs" else "jobs") / "c1")
    assert folders.names() == {"c1"}
    folders.of("c1").remove()
    assert folders.names() == frozenset()


def test_a_job_of_a_life_without_that_place_is_read_where_it_writes(tmp_path: Path) -> None:
    before = JobFolders(jobs=tmp_path / "jobs").of("c1")
    before.create()
    (before.path / OUTPUT).write_bytes(b"1")
    after = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results").of("c1")
    assert after.output() == b"1"
    assert after.on_disk
    after.remove()
    assert not before.path.exists()


@pytest.mark.parametrize("in_memory", ["elsewhere", None])
def test_a_job_is_not_read_from_where_it_does_not_write(tmp_path: Path, in_memory: str | None) -> None:
    began = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results")
    began.of("warm-1").create()
    began.of("warm-1").become(began.of("c1"))
    assert not began.of("c1").out_of_reach
    now = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / in_memory if in_memory else None).of("c1")
    assert now.out_of_reach
    assert not now.on_disk
    now.remove()
    assert not now.out_of_reach


def test_a_place_that_may_not_be_looked_at_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results").of("c1")
    folder.create()

    def refused(_path: Path) -> bool:
        raise PermissionError

    with monkeypatch.context() as closed:
        closed.setattr(Path, "is_dir", refused)
        assert folder.out_of_reach


def test_what_root_makes_in_memory_is_of_whoever_has_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Path, int, int, bool]] = []

    def chown(path: Path, user: int, group: int, *, follow_symlinks: bool) -> None:
        given.append((path, user, group, follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    JobFolders(jobs=tmp_path / "jobs", in_memory=tmp_path / "results").of("c1").create()
    owner = (tmp_path / "results").stat()
    assert given == [(tmp_path / "results" / "c1", owner.st_uid, owner.st_gid, False)]


def test_the_hosts_file_is_there_for_everybody_to_read_whatever_became_of_it(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    before = os.umask(0o077)
    try:
        write_hosts(path)
        first = path.stat()
        write_hosts(path)
    finally:
        os.umask(before)
    text = path.read_text()
    assert "127.0.0.1\tlocalhost\n" in text
    assert mode(path) == 0o444
    assert path.stat().st_ino == first.st_ino  # containers have it mounted
    path.unlink()
    path.write_text("127.0.0.1 elsewhere\n")
    write_hosts(path)
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["hosts"]

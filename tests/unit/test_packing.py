"""A folder becomes a package: the same one each time, without what nobody wants in it."""

import io
import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.archives import tar_of

from runner.adapters.packages.archive import unpack
from runner.client import check_job
from runner.client.packing import INLINE_MAX, pack, with_packed_code
from runner.codec import MESSAGE_MAX
from runner.errors import RejectedError


@pytest.fixture
def app(tmp_path: Path) -> Path:
    app = tmp_path / "app"
    for name, text in {"main.py": "print('hi')", "lib/a.py": "a", "lib/ü b.txt": "x", "run.sh": "true"}.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    (app / "run.sh").chmod(0o755)
    (app / "empty").mkdir()
    (app / "link").symlink_to("lib/a.py")
    return app


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def test_the_same_tree_gives_the_same_package(app: Path, tmp_path: Path) -> None:
    first = pack(app)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(app.iterdir(), reverse=True):
        place = copy / path.name
        if path.is_symlink():
            place.symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copy(path, place)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700 | 0o020)
            os.utime(path, (1, 1))
    assert pack(copy).archive == first.archive
    (copy / "main.py").chmod(0o755)
    assert pack(copy).archive != first.archive


def test_a_package_is_what_a_worker_can_unpack(app: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    unpack(io.BytesIO(pack(app).archive), folder, most=1 << 20, go_on=lambda: None)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == sorted(
        path.relative_to(app) for path in app.rglob("*")
    )
    assert (folder / "lib" / "ü b.txt").read_text() == "x"
    assert os.access(folder / "run.sh", os.X_OK)
    assert str((folder / "link").readlink()) == "lib/a.py"


def test_it_is_told_how_large_it_is(app: Path) -> None:
    packed = pack(app)
    assert (packed.files, packed.size) == (5, 17)
    assert str(packed) == f"5 files, 17 bytes, packed to {len(packed.archive)} bytes"


def test_what_is_ignored_is_left_out(app: Path) -> None:
    whole = names(pack(app).archive)
    assert whole == ["empty", "lib", "lib/a.py", "lib/ü b.txt", "link", "main.py", "run.sh"]
    for name in ("lib/a.pyc", ".git/config", "node_modules/x/y", "src/node_modules/z", "keep.pyc", "top"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text("x")
    (app / ".runnerignore").write_text("# not these\n*.pyc\n!keep.pyc\nnode_modules/\n/top\n")
    assert names(pack(app).archive) == sorted([*whole, "keep.pyc", "src"])


def test_a_name_that_is_no_text_is_refused(app: Path) -> None:
    (app / "x\udcff").touch()
    assert "is not UTF-8; rename it" in refused(app)
    (app / ".runnerignore").write_text("x*\n")
    assert "main.py" in names(pack(app).archive)


def test_an_ignore_file_that_makes_no_sense_is_told(app: Path) -> None:
    (app / ".runnerignore").write_text("a\\\n")
    assert ".runnerignore cannot be understood" in refused(app)


def refused(path: Path) -> str:
    with pytest.raises(RejectedError) as refusal:
        pack(path)
    return refusal.value.reason


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../other", "lib/../../other"])
def test_a_link_out_of_the_folder_is_refused(app: Path, target: str) -> None:
    (app / "out").symlink_to(target)
    assert f"{app}/out is a link to {target}, out of the package" in refused(app)


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as endpoint:
            endpoint.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [a_fifo, a_socket])
def test_what_is_no_file_is_refused(app: Path, make: Callable[[Path], None]) -> None:
    make(app / "x")
    assert f"{app}/x is a device, a FIFO or a socket" in refused(app)


def test_what_does_not_fit_is_refused_with_the_remedy(app: Path) -> None:
    (app / "noise").write_bytes(os.urandom(INLINE_MAX))
    assert "put a tar.gz of it where workers may fetch it (code.allow)" in refused(app)
    assert f"{app} has more than 372 KiB when it is packed" in refused(app)
    (app / "noise").write_bytes(bytes(INLINE_MAX + 1))
    assert f"{app}/noise has more than" in refused(app / "noise")


def test_without_a_message_the_worker_sets_the_bound(app: Path) -> None:
    (app / "noise").write_bytes(os.urandom(INLINE_MAX))
    assert len(pack(app, most=1 << 20).archive) > INLINE_MAX
    for path in (app, app / "noise"):
        with pytest.raises(RejectedError, match=r"has more than 100 KiB .*\(code\.max_bytes\)"):
            pack(path, most=100 << 10)


def test_what_fits_fits_into_a_message(app: Path) -> None:
    (app / "noise").write_bytes(os.urandom(INLINE_MAX - 4096))
    field = pack(app).field
    assert len(field["inline"]) < MESSAGE_MAX
    check_job({"stack": "busybox", "payload": "x" * 8000, "code": field})


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing") == f"code: {tmp_path}/missing cannot be read: No such file or directory"


def test_an_archive_is_sent_as_it_is(tmp_path: Path) -> None:
    archive = tar_of({"a": "b"})
    (tmp_path / "app.tgz").write_bytes(archive)
    packed = pack(tmp_path / "app.tgz")
    assert packed.archive == archive
    assert str(packed) == f"{len(archive)} bytes"


def test_a_job_may_name_a_folder_or_bring_bytes(app: Path) -> None:
    field = pack(app).field
    assert with_packed_code({"stack": "s", "code": app}) == {"stack": "s", "code": field}
    assert with_packed_code({"code": pack(app).archive}) == {"code": field}
    for code in (None, {"url": "https://a.example/x", "sha256": "0" * 64}, "a string"):
        assert with_packed_code({"code": code}) == {"code": code}
    assert with_packed_code({}) == {}
    check_job({"stack": "s", "code": app})


def test_the_header_holds_neither_time_nor_name(app: Path) -> None:
    archive = pack(app).archive
    assert archive[4:8] == bytes(4)
    assert archive[3] == 0

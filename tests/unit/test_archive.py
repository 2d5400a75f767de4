"""The file in which stacks travel: whatever is not what it says is refused."""

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.app.fleet import _put, _spool
from runner.stacks.archive import ArchiveError, Manifest, Packed, pack, unpack

FILE = b'command = ["true"]\n'
IMAGES = b"images of many layers" * 1000
ROOM = len(IMAGES)


def packed(stack: str = "py") -> Packed:
    return Packed(
        stack=stack,
        revision="r1",
        image="sha256:" + "a" * 64,
        stack_file=hashlib.sha256(FILE).hexdigest(),
        built=datetime(2026, 1, 2, tzinfo=UTC),
        inputs=None,
    )


def write(path: Path, *stacks: str) -> bytes:
    with tempfile.TemporaryFile() as images:
        images.write(IMAGES)
        pack(path, [packed(stack) for stack in stacks], dict.fromkeys(stacks, FILE), images)
    return path.read_bytes()


def read(path: Path) -> tuple[Manifest, dict[str, bytes], bytes]:
    images = io.BytesIO()
    manifest, files = unpack(path, images, ROOM)
    return manifest, dict(files), images.read()


def manifest(**changes: Any) -> bytes:
    told = {"images": hashlib.sha256(IMAGES).hexdigest(), "stacks": [packed().model_dump(mode="json")], **changes}
    return json.dumps(told).encode()


def refused(path: Path, *members: tuple[str, bytes | None]) -> str:
    """What is told of an archive with those members; None is a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ArchiveError) as told:
        read(path)
    return str(told.value)


def test_what_was_packed_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "py", "ab")
    told, files, images = read(path)
    assert [each.stack for each in told.stacks] == ["py", "ab"]
    assert (files, images) == ({"py": FILE, "ab": FILE}, IMAGES)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a", "py") == write(tmp_path / "b", "py")


def test_one_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ArchiveError, match="cannot be written"):
        write(tmp_path / "a", "py")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


GOOD = ("manifest.json", manifest()), ("py/stack.toml", FILE), ("images.tar", IMAGES)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ((), "manifest.json was to come, and its end did"),
        ((GOOD[2], GOOD[0]), "manifest.json was to come, and images.tar did"),
        ((GOOD[0], GOOD[2]), "py/stack.toml was to come, and images.tar did"),
        ((GOOD[0], ("../py/stack.toml", FILE)), "and ../py/stack.toml did"),
        ((GOOD[0], ("py/stack.toml", None)), "and py/stack.toml did"),
        ((GOOD[0], ("py/stack.toml", FILE + b"#")), "py/stack.toml is not what its digest says"),
        ((*GOOD[:2], ("images.tar", IMAGES[1:])), "images.tar is not what its digest says"),
        ((*GOOD[:2], ("images.tar", bytes(ROOM + 1))), f"images.tar has {ROOM + 1} bytes, more than {ROOM}"),
        ((*GOOD, ("more", b"")), "more has no business in it"),
        ((GOOD[0], ("py/stack.toml", bytes(2**20 + 1))), "has 1048577 bytes, more than 1048576"),
        ((("manifest.json", b"{"),), "manifest.json"),
        ((("manifest.json", manifest(version=2)), *GOOD[1:]), "manifest.json: version"),
        ((("manifest.json", manifest(stacks=[])), *GOOD[1:]), "manifest.json: stacks"),
        ((("manifest.json", manifest(more=1)), *GOOD[1:]), "manifest.json: more"),
        (
            (("manifest.json", manifest(stacks=[packed().model_dump(mode="json") | {"stack": "../x"}])), *GOOD[1:]),
            "manifest.json: stacks.0.stack: Value error, is not the name of a stack",
        ),
        (
            (("manifest.json", manifest(stacks=[packed().model_dump(mode="json") | {"revision": "../x"}])), *GOOD[1:]),
            "manifest.json: stacks.0.revision",
        ),
        (
            (
                ("manifest.json", manifest(stacks=[packed().model_dump(mode="json") | {"revision": "current"}])),
                *GOOD[1:],
            ),
            "manifest.json: stacks.0.revision: Value error, is not a revision",
        ),
        (
            (("manifest.json", manifest(stacks=[packed().model_dump(mode="json")] * 2)), *GOOD[1:]),
            "manifest.json: stacks: Value error, a stack is in it twice",
        ),
    ],
)
def test_whatever_is_not_what_it_says_is_refused(
    tmp_path: Path, members: tuple[tuple[str, bytes | None], ...], why: str
) -> None:
    assert why in refused(tmp_path / "a", *members)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_any_length_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("manifest.json")
    header.type, header.size = kind, 2**40
    (tmp_path / "a").write_bytes(gzip.compress(header.tobuf()))
    with pytest.raises(ArchiveError, match="has a header of the kind"):
        read(tmp_path / "a")


def test_what_follows_the_end_is_bounded(tmp_path: Path) -> None:
    tar = gzip.decompress(write(tmp_path / "a", "py"))
    (tmp_path / "a").write_bytes(gzip.compress(tar + bytes(2**21)))
    with pytest.raises(ArchiveError, match="goes on after its end"):
        read(tmp_path / "a")


def test_one_that_was_cut_is_refused_wherever(tmp_path: Path) -> None:
    path = tmp_path / "a"
    whole = write(path, "py")
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            read(path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", b"hello", gzip.compress(b"hello"), gzip.compress(b"\0" * 2048)):
        path.write_bytes(content)
        with pytest.raises(ArchiveError):
            read(path)
    with pytest.raises(ArchiveError, match="No such file"):
        read(tmp_path / "none")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_byte_passes_for_what_was_packed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a"
    tar = bytearray(gzip.decompress(write(path, "py")))
    place = data.draw(st.integers(0, len(tar) - 1))
    tar[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(gzip.compress(bytes(tar), 1))
    try:
        told, files, images = read(path)
    except ArchiveError:
        return
    # What does not matter may differ: modes, times, padding.
    assert (told.stacks[0].stack, files, images) == ("py", {"py": FILE}, IMAGES)


@contextmanager
def little_room() -> Iterator[None]:
    """No file gets larger than 1000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_told_and_no_part_of_an_archive_is_left(tmp_path: Path) -> None:
    path, noise = tmp_path / "stacks.tar.gz", os.urandom(2**20)
    with tempfile.TemporaryFile() as images:
        images.write(noise)
        with little_room(), pytest.raises(ArchiveError, match=r"stacks\.tar\.gz cannot be written: File too large"):
            pack(path, [packed()], {"py": FILE}, images)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_told_when_an_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stacks.tar.gz"
    write(path, "py")
    images = (tmp_path / "images").open("w+b")
    with little_room(), pytest.raises(ArchiveError, match=r"do not fit into \$TMPDIR: File too large"):
        unpack(path, images, ROOM)
    images.close()


async def test_a_disk_that_is_full_is_told_when_images_are_saved(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield IMAGES

    with little_room(), pytest.raises(ArchiveError, match=r"do not fit into .*: File too large; .* make room"):  # noqa: SIM117
        with _spool(tmp_path) as spool:
            await _put(chunks(), spool, tmp_path)

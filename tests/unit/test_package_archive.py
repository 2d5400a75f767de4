"""What is unpacked, what is refused, and that whatever an archive holds stays in its folder and its bounds."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.archives import tar_entry, tar_gz, tar_of, zip_of

from runner.adapters.packages import tree
from runner.adapters.packages.archive import unpack
from runner.errors import RejectedError

MOST = 1 << 20
GLOBAL_HEADER = tarfile.TarInfo.create_pax_global_header({"comment": "0123abcd"})


def nothing() -> None:
    return


def streamed_zip() -> bytes:
    """A zip whose list says that an entry's length stands elsewhere."""
    archive = bytearray(zip_of({"x": "abc"}))
    at = archive.rindex(b"PK\1\2")
    archive[at + 24 : at + 28] = b"\xff" * 4
    return bytes(archive)


def unpacked(archive: bytes, folder: Path, most: int = MOST) -> dict[str, str]:
    """What is in the folder afterwards: the text of each file, where each link leads, "/" for a folder."""
    folder.mkdir()
    unpack(io.BytesIO(archive), folder, most=most, go_on=nothing)
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"  # noqa: PTH115 - a path would tidy it up
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def refused(archive: bytes, folder: Path, most: int = MOST) -> str:
    with pytest.raises(RejectedError) as refusal:
        unpacked(archive, folder, most)
    assert not refusal.value.operator
    return refusal.value.reason


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


FILES = {"main.py": "print('hi')", "lib/deep/er.txt": "x" * 10000, "empty": ""}
FOUND = {**FILES, "lib": "/", "lib/deep": "/"}


@pytest.mark.parametrize(
    "archive",
    [
        tar_of(FILES),
        zip_of(FILES),
        zip_of(FILES, method=zipfile.ZIP_STORED),
        gzip.compress(gzip.decompress(tar_of(FILES))[:512]) + gzip.compress(gzip.decompress(tar_of(FILES))[512:]),
        tar_of(FILES) + bytes(1000),
        gzip.compress(GLOBAL_HEADER + gzip.decompress(tar_of(FILES))),
        tar_of({f"./{name}": text for name, text in FILES.items()}),
    ],
    ids=["tar", "zip", "zip-stored", "two-members", "padded", "git-archive", "dot"],
)
def test_a_package_is_unpacked_as_it_was(archive: bytes, tmp_path: Path) -> None:
    assert unpacked(archive, tmp_path / "p") == FOUND


def test_what_the_machines_own_tar_makes_can_be_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run.sh").write_text("true")
    (source / "sub" / "run.sh").chmod(0o700)
    (source / ("n" * 200)).write_text("long")
    (source / "link").symlink_to("sub/run.sh")
    os.link(source / "sub" / "run.sh", source / "zweite-ä.sh")
    for name in ("gnu", "pax"):
        packed = subprocess.run(["tar", "-C", source, f"--format={name}", "-cz", "."], check=True, capture_output=True)
        found = unpacked(packed.stdout, tmp_path / name)
        assert found["link"] == "-> sub/run.sh"
        assert found["sub/run.sh"] == found["zweite-ä.sh"] == "true"
        assert found["n" * 200] == "long"


def test_anybody_may_read_it_and_run_what_was_executable(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        unpacked(tar_of({"a/run": "x", "a/data": "x"}, executable=["a/run"]), tmp_path / "tar")
        unpacked(zip_of({"a/run": "x"}, mode=0o700), tmp_path / "zip")
    finally:
        os.umask(before)
    assert mode(tmp_path / "tar" / "a") == 0o755
    assert mode(tmp_path / "tar" / "a" / "run") == mode(tmp_path / "zip" / "a" / "run") == 0o555
    assert mode(tmp_path / "tar" / "a" / "data") == 0o444


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return tar_entry(name, type=tarfile.SYMTYPE, linkname=target)


@pytest.mark.parametrize(
    "links",
    [
        {"a": "b/c"},
        {"b/a": "../c"},
        {"b/a": "../b/./c"},
        {"current": "v1", "v1": "releases/1", "x": "current/../2"},
        {"nowhere": "missing/file"},
    ],
)
def test_links_inside_stay(links: dict[str, str], tmp_path: Path) -> None:
    found = unpacked(tar_gz(*(link(*pair) for pair in links.items())), tmp_path / "p")
    assert found.items() >= {name: f"-> {target}" for name, target in links.items()}.items()


@pytest.mark.parametrize(
    ("links", "name"),
    [
        ({"a": "/etc/passwd"}, "a"),
        ({"a": ".."}, "a"),
        ({"b/a": "../../x"}, "b/a"),
        ({"b/c/up": "../..", "out": "b/c/up/../x"}, "out"),
        ({"a": "b", "b": "a"}, "a"),
        ({"a": "x" * 1025}, "a"),
        ({"a": "x\udcff"}, "a"),
        ({"a": ""}, "a"),
    ],
)
def test_links_that_lead_out_are_refused(links: dict[str, str], name: str, tmp_path: Path) -> None:
    archive = tar_gz(*(link(*pair) for pair in links.items()), encoding="utf-8", errors="surrogateescape")
    assert f'entry "{name}" ' in refused(archive, tmp_path / "p")
    assert not list((tmp_path / "p").rglob("a"))


def test_a_link_in_a_zip_is_held_to_the_same(tmp_path: Path) -> None:
    assert unpacked(zip_of({"a": "b"}, kind=stat.S_IFLNK), tmp_path / "good") == {"a": "-> b"}
    assert "leads out of the package" in refused(zip_of({"a": "../b"}, kind=stat.S_IFLNK), tmp_path / "bad")
    assert "more than 1024 bytes" in refused(zip_of({"a": "b" * 1025}, kind=stat.S_IFLNK), tmp_path / "long")


@pytest.mark.parametrize(
    ("entries", "name", "why"),
    [
        ([tar_entry("/etc/x")], "/etc/x", "absolute path"),
        ([tar_entry("a/../../x")], "a/../../x", ".. in its path"),
        ([tar_entry("..")], "..", ".. in its path"),
        ([tar_entry("a"), tar_entry("a")], "a", "is there twice"),
        ([tar_entry("a/b"), tar_entry("a")], "a", "is there twice"),
        ([tar_entry("a"), tar_entry("a/b")], "a/b", 'lies in "a", which is no folder'),
        ([link("a", "b"), tar_entry("a/x")], "a/x", 'lies in "a", which is no folder'),
        ([tar_entry("./")], "./", "is the package's own folder"),
        ([tar_entry("a", mode=0o4755)], "a", "setuid"),
        ([tar_entry("a", mode=0o2755)], "a", "setgid"),
        ([tar_entry("a", type=tarfile.DIRTYPE, mode=0o1777)], "a", "sticky"),
        ([tar_entry("a", type=tarfile.CHRTYPE)], "a", "is a device"),
        ([tar_entry("a", type=tarfile.BLKTYPE)], "a", "is a device"),
        ([tar_entry("a", type=tarfile.FIFOTYPE)], "a", "is a FIFO"),
        ([tar_entry("a", type=b"S")], "a", "of the kind b'S'"),
        ([tar_entry("a", type=tarfile.LNKTYPE, linkname="b")], "a", "no file that came before it"),
        ([tar_entry("a", type=tarfile.LNKTYPE, linkname="../b")], "../b", ".. in its path"),
        ([tar_entry("x" * 256)], "x" * 200 + "…", "more than 255 bytes"),
        ([tar_entry("x/" * 513)], ("x/" * 100) + "…", "more than 1024 bytes"),
        ([tar_entry("x/" * 100 + "y")], ("x/" * 100) + "…", "lies in more than 99 folders"),
        ([tar_entry("a\udcffb")], "a\\udcffb", "not UTF-8"),
    ],
)
def test_what_no_package_may_have_is_refused_by_name(
    entries: list[tuple[tarfile.TarInfo, bytes]], name: str, why: str, tmp_path: Path
) -> None:
    archive = tar_gz(*entries, encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT)
    reason = refused(archive, tmp_path / "p")
    shown = name.replace("…", "\\u2026")
    assert reason.startswith(f'code: the archive\'s entry "{shown}" ')
    assert why in reason


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (zip_of({"../x": ""}), 'entry "../x" has .. in its path'),
        (zip_of({"/x": ""}), 'entry "/x" has an absolute path'),
        (zip_of({"x": ""}, mode=0o4755), 'entry "x" has a setuid'),
        (zip_of({"x": ""}, kind=stat.S_IFIFO), 'entry "x" is a device, a FIFO or a socket'),
        (zip_of({"x": "y" * 100}, method=zipfile.ZIP_BZIP2), 'entry "x" is packed by a method other than deflate'),
        (zip_of({"x": "abc"}, method=0).replace(b"abc", b"abd"), 'entry "x" is not as long as listed'),
        (zip_of({"x": "abc"})[:-1], "is not a zip, or damaged"),
        (streamed_zip(), "is a ZIP64 file"),
        (zip_of({"x": "abc"})[10:], "is neither a tar.gz nor a zip"),
        (b"PK\3\4" + zip_of({"x": "abc"}), "is not a zip, or damaged"),
        (tar_of({"x": "abc"})[:-9], "is cut off"),
        (gzip.compress(gzip.decompress(tar_of({"x": "abc"}))[:700]), "is cut off"),
        (gzip.compress(b"no tar at all" * 100), "is not a tar, or damaged"),
        (gzip.compress(gzip.decompress(tar_of({"x": "abc"})) + bytes(2 << 20)), "goes on after its end"),
        (tar_of({"x": "abc"})[:-1] + b"x", "damaged"),
        (b"", "is neither a tar.gz nor a zip"),
        (b"#!/bin/sh\n", "is neither a tar.gz nor a zip"),
    ],
    ids=lambda told: told if isinstance(told, str) else "archive",  # the bytes have the time in them
)
def test_what_is_no_archive_is_refused(archive: bytes, why: str, tmp_path: Path) -> None:
    assert why in refused(archive, tmp_path / "p")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    entry = tar_entry("x", pax_headers={"GNU.sparse.size": "1000000000000"})
    assert "sparse" in refused(tar_gz(entry, format=tarfile.PAX_FORMAT), tmp_path / "p")


def test_a_package_has_no_more_than_its_bytes(tmp_path: Path) -> None:
    fits = {"a": b"\0" * (MOST - 4096)}
    assert unpacked(tar_of(fits), tmp_path / "fits")
    bomb = tar_of({"a": b"\0" * (50 * MOST)})
    assert len(bomb) < MOST
    assert refused(bomb, tmp_path / "bomb").startswith(
        'code: the archive\'s entry "a" makes the package larger than 1 MiB'
    )
    assert sum(path.stat().st_size for path in (tmp_path / "bomb").rglob("*")) <= MOST
    assert "larger than 1 MiB" in refused(zip_of({"a": b"\0" * (50 * MOST)}), tmp_path / "zip")
    assert "larger than 1 MiB" in refused(tar_of({f"f{n}": "" for n in range(300)}), tmp_path / "many")


def test_a_copy_counts_like_its_original(tmp_path: Path) -> None:
    copies = [tar_entry(f"c{n}", type=tarfile.LNKTYPE, linkname="a") for n in range(10)]
    assert "larger than 1 MiB" in refused(tar_gz(tar_entry("a", b"x" * (MOST // 4)), *copies), tmp_path / "p")


def test_a_package_has_no_more_than_so_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "ENTRIES_MAX", 20)
    assert "is one too many" in refused(tar_of({f"{n}": "" for n in range(21)}), tmp_path / "flat")
    assert "is one too many" in refused(tar_of({"d/" * 21 + "f": ""}), tmp_path / "deep")


def test_headers_without_an_entry_come_to_an_end(tmp_path: Path) -> None:
    assert "has too many headers without an entry" in refused(gzip.compress(GLOBAL_HEADER * 9), tmp_path / "p")
    whole = gzip.decompress(tar_of(FILES))
    assert unpacked(gzip.compress(GLOBAL_HEADER * 8 + whole), tmp_path / "good") == FOUND


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
    archive = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"n" * (2 << 20))
    assert "extended headers that are too long" in refused(archive, tmp_path / "p")


def pax(records: bytes, name: str = "x") -> bytes:
    """A tar.gz of one file with this extended header."""
    header, entry = tarfile.TarInfo("PaxHeader"), tarfile.TarInfo(name)
    header.type, header.size = tarfile.XHDTYPE, len(records)
    data = header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    return gzip.compress(data + entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


def test_a_header_has_no_more_than_so_many_records(tmp_path: Path) -> None:
    calls: list[None] = []
    archive = pax(b"4 =\n" * (1 << 18))
    with pytest.raises(RejectedError, match="more than 64 records"):
        unpack(io.BytesIO(archive), tmp_path, most=MOST, go_on=lambda: calls.append(None))
    assert 64 <= len(calls) < 200
    assert unpacked(pax(b"4 =\n" * 63 + b"10 path=y\n"), tmp_path / "good") == {"y": ""}


@pytest.mark.parametrize(
    "records",
    [
        b"11 path=y\n",
        b"8 path=y\n",
        b"0 path=y\n",
        b"-1 path=y\n",
        b"3 =\n",
        b"x",
        b"9" * 18 + b" path=y\n",
        b"\0" + b"4 =\n",
    ],
)
def test_a_record_is_as_long_as_it_says(records: bytes, tmp_path: Path) -> None:
    assert "is not a tar, or damaged" in refused(pax(records), tmp_path / "p")


def padded_zip(more: bytes) -> bytes:
    """A zip whose entry goes on after the end of what was deflated."""
    whole = zip_of({"x": "abc" * 10})
    listed = whole.index(b"PK\1\2")
    archive = bytearray(whole[:listed] + more + whole[listed:])
    at = archive.rindex(b"PK\1\2")
    packed = int.from_bytes(archive[at + 20 : at + 24], "little") + len(more)
    archive[at + 20 : at + 24] = packed.to_bytes(4, "little")
    end = archive.rindex(b"PK\5\6")
    archive[end + 16 : end + 20] = at.to_bytes(4, "little")
    return bytes(archive)


@pytest.mark.parametrize("more", [1, 1 << 18, 1 << 20])
def test_nothing_follows_the_end_of_what_was_deflated(more: int, tmp_path: Path) -> None:
    assert unpacked(padded_zip(b""), tmp_path / "good") == {"x": "abc" * 10}
    assert 'entry "x" goes on after its end' in refused(padded_zip(bytes(more)), tmp_path / "p")


def test_what_follows_is_not_held(tmp_path: Path) -> None:
    archive = io.BytesIO(padded_zip(bytes(16 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(RejectedError):
            unpack(archive, tmp_path, most=MOST, go_on=nothing)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_work_ends_when_nobody_wants_it(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    with pytest.raises(Enough):
        unpack(io.BytesIO(tar_of(FILES)), tmp_path, most=MOST, go_on=stop)


# A fuzzer that knows what archives are made of: hostile names, kinds and sizes, then bytes that were changed.

NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "..", "../x", "/x", "a/..", ".", "", "a//b", "c\n", "ü", "a\udcff"])
KINDS = st.sampled_from([*tarfile.SUPPORTED_TYPES, b"S", b"x", b"?"])


LENGTHS = st.integers(-2, 2)
"""How far what is said of a length or a place is from what is true."""


@st.composite
def extensions(draw: st.DrawFn) -> bytes:
    """An extended header, whose records are as long as they say, or nearly."""
    records = b""
    for _ in range(draw(st.integers(0, 70))):
        key = draw(st.sampled_from(["path", "linkpath", "size", "", "GNU.sparse.x", "comment"]))
        value = draw(st.one_of(NAMES, st.sampled_from(["0", "1", "513", "-1", "9" * 18, "9" * 19, "=", "\0"])))
        record = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(record) + 1 + (len(record) > 8)
        records += str(length + (draw(LENGTHS) if draw(st.integers(0, 9)) == 0 else 0)).encode() + record
    header = tarfile.TarInfo("PaxHeader")
    header.type = draw(st.sampled_from([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE]))
    header.size = len(records)
    return header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    blocks = []
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            blocks.append(draw(extensions()))
        data = draw(st.binary(max_size=40))
        info, _ = tar_entry(
            draw(NAMES), data, type=draw(KINDS), linkname=draw(NAMES), mode=draw(st.integers(0, 0o7777))
        )
        info.size = draw(st.sampled_from([len(data), 0, 1, 511, 513, 8**11 - 1]))
        blocks.append(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        blocks.append(data + bytes(-len(data) % 512))
    return gzip.compress(b"".join(blocks) + bytes(1024), 1)


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(
            st.lists(st.sampled_from(["a", "b", "a/b", "../x", "/x", "a/", "ü"]), min_size=1, max_size=5, unique=True)
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = draw(st.integers(0, 0xFFFF)) << 16
            archive.writestr(info, draw(st.binary(max_size=60)), draw(st.sampled_from([0, 8])))
    whole = bytearray(buffer.getvalue())
    # What its list says: packed and unpacked length, of the name, the extra field and the comment, and the place.
    for place, width in ((20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)):
        if draw(st.integers(0, 9)) == 0:
            at = whole.index(b"PK\1\2") + place
            said = int.from_bytes(whole[at : at + width], "little") + draw(
                st.one_of(LENGTHS, st.sampled_from([512, 1 << 15, (1 << 31) - 1]))
            )
            whole[at : at + width] = (said % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(whole)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """An archive with some of its bytes changed; of a tar.gz what is packed is changed, or the packing."""
    whole = bytearray(draw(st.one_of(tars(), zips())))
    inside = whole[:2] == b"\x1f\x8b" and draw(st.booleans())
    data = bytearray(zlib.decompress(whole, 31)) if inside else whole
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data
    return gzip.compress(cut, 1) if inside else bytes(cut)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(archive=st.one_of(changed(), st.binary(max_size=200)), data=st.data())
def test_whatever_comes_it_stays_in_its_folder_and_its_bounds(
    archive: bytes, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("fuzz")
    folder, most = top / "package", data.draw(st.sampled_from([0, 8192, 65536]))
    folder.mkdir()
    try:
        extent = unpack(io.BytesIO(archive), folder, most=most, go_on=nothing)
        assert extent.size <= most
        assert extent.entries == len(list(folder.rglob("*")))
    except RejectedError as error:
        told = error.reason.encode().decode()
    else:
        told = "code: the archive is whole"
    assert told.startswith("code: the archive")
    assert [path.name for path in top.iterdir()] == ["package"]
    root = folder.resolve()
    written = 0
    for path in folder.rglob("*"):
        kind = path.lstat()
        assert stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode) or stat.S_ISLNK(kind.st_mode)
        if stat.S_ISLNK(kind.st_mode):
            assert path.resolve().is_relative_to(root)
        else:
            assert not kind.st_mode & 0o7022
            written += kind.st_size if stat.S_ISREG(kind.st_mode) else 0
    assert written <= most

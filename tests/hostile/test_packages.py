"""Code packages that are an attack on whoever unpacks them."""

import base64
import os
import stat
import tarfile

import pytest
from tests.archives import tar_entry, tar_gz, tar_of, zip_of
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
SETTINGS = {"code__max_bytes": "1m", "code__cache_bytes": "0"}


def package(name: str, archive: bytes, reason: str) -> Attack:
    """A job whose code is refused."""
    return Attack(
        name=name,
        command=["true"],
        stopped_by="each entry is checked before it is written, and bytes and entries are counted while they come",
        outcome="rejected",
        blame="request",
        reason=f"code: {reason}",
        fields={"code": {"inline": base64.b64encode(archive).decode()}},
    )


def entry(name: str, what: str) -> str:
    return f'the archive\'s entry "{name}" {what}'


LARGE = entry(".*", r"makes the package larger than 1 MiB on disk, the most here \(code.max_bytes\)")
DOTS = entry("../../../home/x", "has .. in its path, which may lead out of the package")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return tar_entry(name, type=kind, linkname=target)


ATTACKS: list[Attack] = [
    package("a tar of 20 MiB in 20 kB", tar_of({"big": bytes(20 * MIB)}), LARGE),
    package("a zip of 20 MiB in 20 kB", zip_of({"big": bytes(20 * MIB)}), LARGE),
    package("a package of 5,000 empty files", tar_of(dict.fromkeys(map(str, range(5_000)), b"")), LARGE),
    package("a path that leads out", tar_of({"../../../home/x": b"x"}), DOTS),
    package("a path that leads out of a zip", zip_of({"../../../home/x": b"x"}), DOTS),
    package(
        "an absolute path",
        tar_of({"/home/x": b"x"}),
        entry("/home/x", "has an absolute path; paths in a package are relative"),
    ),
    package(
        "a link that leads out",
        tar_gz(link("out", "/etc"), tar_entry("out/x", b"x")),
        entry("out", 'is a link to "/etc"; a link in a package has to be relative'),
    ),
    package(
        "a hard link that leads out",
        tar_gz(link("x", "/etc/passwd", tarfile.LNKTYPE)),
        entry("/etc/passwd", "has an absolute path; paths in a package are relative"),
    ),
    package(
        "a link in a zip that leads out",
        zip_of({"out": "/etc"}, kind=stat.S_IFLNK),
        entry("out", 'is a link to "/etc"; a link in a package has to be relative'),
    ),
    package(
        "a device in a package",
        tar_gz(tar_entry("disk", type=tarfile.BLKTYPE)),
        entry("disk", "is a device; a package has only files, folders and links"),
    ),
    package(
        "a pipe in a package",
        tar_gz(tar_entry("pipe", type=tarfile.FIFOTYPE)),
        entry("pipe", "is a FIFO; a package has only files, folders and links"),
    ),
    package(
        "a setuid file in a package",
        tar_gz(tar_entry("x", b"x", mode=0o4755)),
        entry("x", "has a setuid, setgid or sticky bit; clear it .*"),
    ),
    package(
        "folders in folders without end",
        tar_of({"a/" * 1000 + "x": b"x"}),
        entry("(a/)+.*", "has the name .*, of more than 1024 bytes"),
    ),
    package("one name twice", tar_gz(tar_entry("x", b"1"), tar_entry("x", b"2")), entry("x", "is there twice")),
    package("a package of noise", os.urandom(1000), "the archive is neither a tar.gz nor a zip; pack it again"),
    package(
        "a package that is cut off", tar_of({"x": os.urandom(5000)})[:-1000], "the archive is cut off; pack it again"
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)

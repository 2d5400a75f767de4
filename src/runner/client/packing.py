"""Makes a code package of a folder: the same tree gives the same archive, wherever and whenever it is packed."""

import base64
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pathspec import GitIgnoreSpec

from runner.codec import MESSAGE_MAX
from runner.errors import RejectedError
from runner.units import format_size

IGNORE_FILE = ".runnerignore"
"""Names what is left out of a package, in the words of a `.gitignore`; it lies in the folder that is packed."""
_NEVER = (".git", IGNORE_FILE)
_REST = 16 * 1024
"""The bytes of a message that are left to everything else in it."""
INLINE_MAX = (MESSAGE_MAX - _REST) // 4 * 3
"""The most bytes of an archive that fits into a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An archive, and what is in it: how many files and links, and their bytes; None where nobody has looked."""

    archive: bytes
    files: int | None = None
    size: int | None = None

    @property
    def field(self) -> dict[str, str]:
        """The field `code` of a job."""
        return {"inline": base64.b64encode(self.archive).decode()}

    def __str__(self) -> str:
        packed = format_size(len(self.archive))
        if self.files is None or self.size is None:
            return packed
        return f"{self.files} {'file' if self.files == 1 else 'files'}, {format_size(self.size)}, packed to {packed}"


def pack(path: Path, *, most: int | None = None) -> Packed:
    """A folder as an archive, or an archive (tar.gz or zip) as it is, of at most so many bytes (`code.max_bytes`).

    Without `most` it has to fit into a message. Raises `RejectedError` for what cannot be read, is none, or too large.
    """
    try:
        if path.is_dir():
            return _pack_folder(path, most)
        with path.open("rb") as file:
            archive = file.read((INLINE_MAX if most is None else most) + 1)
    except OSError as error:
        raise RejectedError(f"code: {error.filename or path} cannot be read: {error.strerror or error}") from error
    _check_size(path, len(archive), most)
    return Packed(archive=archive)


def with_packed_code(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A job whose `code` may be a `Path` (see `pack`) or the bytes of an archive, as it is sent."""
    code = message.get("code")
    if isinstance(code, Path):
        return {**message, "code": pack(code).field}
    if isinstance(code, bytes):
        return {**message, "code": Packed(archive=code).field}
    return message


def _pack_folder(folder: Path, most: int | None) -> Packed:
    buffer = _Bounded(folder, most)
    files = size = 0
    # No time and no name in its header.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=9) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, entry in _entries(folder):
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
            files, size = files + (not entry.isdir()), size + entry.size
    return Packed(archive=buffer.getvalue(), files=files, size=size)


class _Bounded(io.BytesIO):
    """Takes no more than fits: nobody has to wait until a large folder is packed to hear that it is too large."""

    def __init__(self, folder: Path, most: int | None) -> None:
        super().__init__()
        self._folder = folder
        self._most = most

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        _check_size(self._folder, self.tell(), self._most)
        return written


def _check_size(path: Path, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise RejectedError(
            f"code: {path} has more than {format_size(most)} when it is packed, the most here (code.max_bytes); leave "
            f"files out ({IGNORE_FILE})"
        )
    if most is None and size > INLINE_MAX:
        raise RejectedError(
            f"code: {path} has more than {format_size(INLINE_MAX)} when it is packed, the most that fits into a "
            f"message; leave files out ({IGNORE_FILE}), or put a tar.gz of it where workers may fetch it (code.allow) "
            'and write "code": {"url": …, "sha256": …} into a job file'
        )


def _entries(folder: Path) -> Iterator[tuple[Path, tarfile.TarInfo]]:
    """What goes into the package, in an order that depends on the names alone."""
    ignored = _ignored(folder)

    def walk(inner: PurePosixPath) -> Iterator[tuple[Path, tarfile.TarInfo]]:
        for path in sorted((folder / inner).iterdir(), key=os.fsencode):
            place, status = inner / path.name, path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            if path.name in _NEVER or ignored.match_file(f"{place}/" if is_folder else str(place)):
                continue
            yield path, _entry(folder, path, place, status)
            if is_folder:
                yield from walk(place)

    return walk(PurePosixPath())


def _entry(folder: Path, path: Path, place: PurePosixPath, status: os.stat_result) -> tarfile.TarInfo:
    """Only what matters to a job: no owner, no time, and of the mode whether it can be executed."""
    if not _is_utf8(place):
        raise RejectedError(f"code: {os.fsencode(path)!r} is not UTF-8; rename it, or leave it out ({IGNORE_FILE})")
    entry = tarfile.TarInfo(str(place))
    entry.mode = 0o755 if stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111 else 0o644
    if stat.S_ISREG(status.st_mode):
        entry.size = status.st_size
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, _target(folder, path)
    else:
        raise RejectedError(f"code: {path} is a device, a FIFO or a socket; leave it out ({IGNORE_FILE})")
    return entry


def _is_utf8(place: PurePosixPath) -> bool:
    try:
        os.fsencode(place).decode()
    except UnicodeDecodeError:
        return False
    return True


def _target(folder: Path, path: Path) -> str:
    target = str(path.readlink())
    root = folder.resolve()
    if target.startswith("/") or not (path.parent.resolve() / target).resolve().is_relative_to(root):
        raise RejectedError(f"code: {path} is a link to {target}, out of the package; leave it out ({IGNORE_FILE})")
    return target


def _ignored(folder: Path) -> GitIgnoreSpec:
    path = folder / IGNORE_FILE
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        return GitIgnoreSpec.from_lines(lines)
    except (ValueError, UnicodeError) as error:
        raise RejectedError(f"code: {path} cannot be understood: {error}") from error

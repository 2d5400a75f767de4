"""Reads a zip, strictly: one file, no encryption, stored or deflated; the list at its end is what counts."""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from runner.adapters.packages.tree import ENTRIES_MAX, PATH_MAX, Tree, damage, refusal

_CHUNK = 1 << 18
_END = struct.Struct("<4s4H2LH")
_LISTED = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT_MAX = 0xFFFF
_LOCATOR = 20
"""The length of what stands before the end where the zip is a ZIP64 one."""
_ENCRYPTED = 0x41
_STORED, _DEFLATED = 0, 8
_UNIX = 3
_ELSEWHERE = 0xFFFFFFFF
"""What ZIP64 writes in place of a number that it has written elsewhere."""
_DAMAGED = "is not a zip, or damaged"
_LONGER = "goes on after its end; pack it again"
_ZIP64 = "is a ZIP64 file; write a plain zip, or a tar.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What the list says of an entry."""

    name: str
    mode: int
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipReader:
    """Puts the entries of one zip into a tree."""

    file: BinaryIO
    tree: Tree

    def run(self) -> None:
        """Read all that is listed. Raises `RejectedError` for what is wrong with it."""
        count, position = self._list()
        for _ in range(count):
            entry, position = self._listed(position)
            self._add(entry)

    def _list(self) -> tuple[int, int]:
        """How many entries there are, and where their list begins."""
        end = self.file.seek(0, 2)
        start = max(0, end - _END.size - _COMMENT_MAX)
        tail = self._at(start, end - start)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END.size:
            raise damage(_DAMAGED)
        if tail[max(0, at - _LOCATOR) :].startswith(b"PK\6\7"):
            raise damage(_ZIP64)
        _, _, _, here, count, _, offset, _ = _END.unpack_from(tail, at)
        if here != count:
            raise damage("is a part of a zip in several parts")
        if count > ENTRIES_MAX:
            raise damage("has too many entries")
        return count, offset

    def _listed(self, position: int) -> tuple[_Entry, int]:
        """The entry at a place of the list, and the place of the next one."""
        fields = _LISTED.unpack(self._at(position, _LISTED.size))
        (magic, made_by, _, flags, method, _, _, checksum, packed, size) = fields[:10]
        (name_length, extra, comment, _, _, attributes, offset) = fields[10:]
        if magic != b"PK\1\2":
            raise damage(_DAMAGED)
        if _ELSEWHERE in (packed, size, offset):
            raise damage(_ZIP64)
        name = self._at(position + _LISTED.size, name_length).decode("utf-8", "surrogateescape")
        mode = attributes >> 16 if made_by >> 8 == _UNIX else 0
        entry = _Entry(
            name=name,
            mode=mode,
            flags=flags,
            method=method,
            checksum=checksum,
            packed=packed,
            size=size,
            offset=offset,
        )
        return entry, position + _LISTED.size + name_length + extra + comment

    def _add(self, entry: _Entry) -> None:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFLNK:
            self.tree.add_link(entry.name, self._target(entry))
            return
        if entry.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
            raise refusal(entry.name, "has a setuid, setgid or sticky bit; clear it (chmod u-s,g-s,-t)")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refusal(entry.name, "is a device, a FIFO or a socket; a package has only files, folders and links")
        if kind == stat.S_IFDIR or entry.name.endswith("/"):
            self.tree.add_folder(entry.name)
        else:
            self.tree.add_file(entry.name, self._content(entry), executable=bool(entry.mode & 0o111))

    def _target(self, entry: _Entry) -> str:
        if entry.size > PATH_MAX:
            raise refusal(entry.name, f"is a link to a path of more than {PATH_MAX} bytes")
        return b"".join(self._content(entry)).decode("utf-8", "surrogateescape")

    def _content(self, entry: _Entry) -> Iterator[bytes]:
        if entry.flags & _ENCRYPTED:
            raise refusal(entry.name, "is encrypted; nobody here knows the password")
        if entry.method not in (_STORED, _DEFLATED):
            raise refusal(entry.name, "is packed by a method other than deflate; use that, or a tar.gz")
        local = _LOCAL.unpack(self._at(entry.offset, _LOCAL.size))
        if local[0] != b"PK\3\4":
            raise damage(_DAMAGED)
        raw = self._raw(entry.offset + _LOCAL.size + local[9] + local[10], entry.packed)
        checksum = size = 0
        for chunk in raw if entry.method == _STORED else _inflated(raw, entry.name):
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
            if size > entry.size:
                break
            yield chunk
        if size != entry.size or checksum != entry.checksum:
            raise refusal(entry.name, "is not as long as listed, or its checksum is wrong; pack it again")

    def _raw(self, position: int, length: int) -> Iterator[bytes]:
        while length:
            chunk = self._at(position, min(length, _CHUNK))
            position, length = position + len(chunk), length - len(chunk)
            yield chunk

    def _at(self, position: int, length: int) -> bytes:
        self.file.seek(position)
        data = self.file.read(length)
        if len(data) < length:
            raise damage("is cut off")
        return data


def _inflated(raw: Iterator[bytes], name: str) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for chunk in raw:
            # zlib would keep all that follows, in one piece that is copied for each chunk.
            if inflater.eof:
                raise refusal(name, _LONGER)
            yield inflater.decompress(chunk, _CHUNK)
            while inflater.unconsumed_tail:
                yield inflater.decompress(inflater.unconsumed_tail, _CHUNK)
            if inflater.unused_data:
                raise refusal(name, _LONGER)
        while tail := inflater.decompress(b"", _CHUNK):
            yield tail
    except zlib.error as error:
        raise refusal(name, f"is damaged ({error})") from None

"""Reads a tar, strictly: POSIX ustar and pax, and GNU's long names. What none of them explains is refused."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runner.adapters.packages.tree import GoOn, Tree, damage, refusal

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 18
_EXTENSION_MAX = 1 << 20
"""The most bytes of one extended header; a name of the greatest length needs far less."""
_EXTENSIONS_MAX = 64 << 20
"""The most bytes of all of them."""
_IN_A_ROW_MAX = 8
"""Extended headers for one entry: the bounds on entries and bytes do not hold what belongs to none."""
_END_MAX = 1 << 20
"""The most bytes that may follow the end: tar fills up its last record."""
_RECORDS_MAX = 64
"""The most records of one extended header: those that tar writes have a handful."""
_DIGITS_MAX = 18
"""More than the length of any file has."""
_SPECIAL_BITS = 0o7000
_DAMAGED = "is not a tar, or damaged"
_DEVICES = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a FIFO"}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Readable(Protocol):
    """What a tar is read from."""

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""


@dataclass(slots=True)
class _Told:
    """What extended headers said about the entry that follows."""

    name: str | None = None
    target: str | None = None
    size: int | None = None


@dataclass(slots=True, kw_only=True)
class TarReader:
    """Puts the entries of one tar into a tree."""

    stream: Readable
    tree: Tree
    go_on: GoOn
    _told: _Told = field(default_factory=_Told)
    _in_a_row: int = 0
    _extended: int = 0

    def run(self) -> None:
        """Read it to its end. Raises `RejectedError` for what is wrong with it."""
        while (header := self._header()) is not None:
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                self._extend(_records(self._extension(header), self.go_on), everywhere=header.type == tarfile.XGLTYPE)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                self._told.name = _text(self._extension(header).rstrip(b"\0"))
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                self._told.target = _text(self._extension(header).rstrip(b"\0"))
            else:
                told, self._told, self._in_a_row = self._told, _Told(), 0
                self._add(header, told)
        if len(self.stream.read(_END_MAX + 1)) > _END_MAX:
            raise damage("goes on after its end")

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end."""
        block = self.stream.read(_BLOCK)
        if not block or block == bytes(_BLOCK):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise damage(f"{_DAMAGED} ({error})") from None
        if header.size < 0:
            raise damage(_DAMAGED)
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW_MAX:
            raise damage("has too many headers without an entry")
        self._extended += header.size
        if header.size > _EXTENSION_MAX or self._extended > _EXTENSIONS_MAX:
            raise damage("has extended headers that are too long")
        return b"".join(self._content(header.size))

    def _extend(self, records: Mapping[str, bytes], *, everywhere: bool) -> None:
        if any(key.startswith("GNU.sparse.") for key in records):
            raise damage("holds a sparse file, which only GNU tar reads")
        if everywhere:
            if records.keys() & {"path", "linkpath", "size"}:
                raise damage("gives one name to all of its entries")
            return
        if "path" in records:
            self._told.name = _text(records["path"])
        if "linkpath" in records:
            self._told.target = _text(records["linkpath"])
        if "size" in records:
            self._told.size = _number(records["size"])

    def _add(self, header: tarfile.TarInfo, told: _Told) -> None:
        name = told.name if told.name is not None else header.name
        target = told.target if told.target is not None else header.linkname
        size = told.size if told.size is not None else header.size
        if header.type == tarfile.SYMTYPE:
            self.tree.add_link(name, target)
            return
        if header.mode & _SPECIAL_BITS:
            raise refusal(name, "has a setuid, setgid or sticky bit; clear it (chmod u-s,g-s,-t)")
        if header.type == tarfile.DIRTYPE:
            self.tree.add_folder(name)
        elif header.type == tarfile.LNKTYPE:
            self.tree.add_copy(name, target)
        elif header.type in _FILES:
            self.tree.add_file(name, self._content(size), executable=bool(header.mode & 0o111))
        else:
            what = _DEVICES.get(header.type, f"of the kind {header.type!r}")
            raise refusal(name, f"is {what}; a package has only files, folders and links")

    def _content(self, size: int) -> Iterator[bytes]:
        """The bytes after a header, and the padding up to the next one."""
        left = size
        while left:
            chunk = self.stream.read(min(left, _CHUNK))
            if not chunk:
                raise damage("is cut off")
            left -= len(chunk)
            yield chunk
        padding = -size % _BLOCK
        if len(self.stream.read(padding)) < padding:
            raise damage("is cut off")


def _records(data: bytes, go_on: GoOn) -> dict[str, bytes]:
    """The records `length key=value` of a pax header, where `length` counts itself, too."""
    records: dict[str, bytes] = {}
    count, start, end = 0, 0, len(data.rstrip(b"\0"))
    while start < end:
        go_on()
        count += 1
        if count > _RECORDS_MAX:
            raise damage(f"has an extended header of more than {_RECORDS_MAX} records")
        digits, _, _ = data[start : start + _DIGITS_MAX + 1].partition(b" ")
        after = start + _number(digits)
        key, equals, value = data[start + len(digits) + 1 : after].partition(b"=")
        if after > end or not equals or not value.endswith(b"\n"):
            raise damage(_DAMAGED)
        records[_text(key)] = value[:-1]
        start = after
    return records


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _DIGITS_MAX:
        raise damage(_DAMAGED)
    return int(digits)


def _text(raw: bytes) -> str:
    """Text whose bytes can be told again, so that what is no UTF-8 is refused where it is known whose name it is."""
    return raw.decode("utf-8", "surrogateescape")

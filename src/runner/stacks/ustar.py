"""Reads a tar of plain headers, entry by entry, in little memory: whatever says more than one header can is refused."""

import tarfile
from collections.abc import Iterator
from tarfile import TarInfo
from typing import Protocol

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 2**20
_END_MAX = 2**20
"""The most bytes that may follow the end: whoever writes a tar fills up its last record."""
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)

_PREFIX = slice(345, 500)


class Readable(Protocol):
    """What a tar is read from."""

    def read(self, size: int, /) -> bytes:
        """So many bytes, or fewer at the end."""


class Ustar:
    """The entries of a tar, in order. Raises `tarfile.ReadError` for what is none, or holds other than plain headers.

    Extended headers (pax, GNU's long names) are of any length, and the standard library reads them into memory.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left = self._padding = 0

    def next(self) -> TarInfo | None:
        """The next entry's header; None at the end, after which nothing may come."""
        for _ in self.content():
            pass
        block = self._read(_BLOCK)
        if block == bytes(_BLOCK):
            if len(self._stream.read(_END_MAX + 1)) > _END_MAX:
                raise tarfile.ReadError("it goes on after its end")
            return None
        try:
            header = TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise tarfile.ReadError(f"it is no tar: {error}") from None
        if header.type not in _KINDS or header.size < 0 or (header.size and not header.isreg()):
            raise tarfile.ReadError(f"{header.name} has a header of the kind {header.type!r}")
        if any(block[_PREFIX]):
            # Readers differ in when they put it before the name.
            raise tarfile.ReadError(f"{header.name} has a name in two parts")
        self._left, self._padding = header.size, -header.size % _BLOCK
        return header

    def content(self) -> Iterator[bytes]:
        """What is left of the entry's content, in pieces."""
        while self._left:
            chunk = self._read(min(self._left, _CHUNK))
            self._left -= len(chunk)
            yield chunk
        self._read(self._padding)
        self._padding = 0

    def _read(self, size: int) -> bytes:
        chunk = self._stream.read(size) if size else b""
        if len(chunk) < size:
            raise tarfile.ReadError("it ends too early")
        return chunk

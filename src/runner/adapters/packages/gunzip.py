"""A gzip stream, read a little at a time whatever is in it."""

import zlib
from typing import BinaryIO

from runner.adapters.packages.tree import GoOn, damage

_CHUNK = 1 << 18
_GZIP = 31
"""zlib's word for a gzip member with the largest window."""


class Gunzip:
    """Decompresses one gzip member after the other; nothing of it is held but what was asked for and one chunk."""

    def __init__(self, raw: BinaryIO, go_on: GoOn) -> None:
        self._raw = raw
        self._go_on = go_on
        self._member = zlib.decompressobj(_GZIP)
        self._packed = b""
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end. Raises `RejectedError` for a stream that is damaged or cut off."""
        while len(self._ready) < size and self._fill():
            self._go_on()
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def _fill(self) -> bool:
        """Decompress a little more; false at the end."""
        if not self._packed:
            self._packed = self._raw.read(_CHUNK)
        if self._member.eof:
            if not self._packed:
                return False
            self._packed = self._packed.lstrip(b"\0")  # some programs fill up the last block
            if not self._packed:
                return True
            self._member = zlib.decompressobj(_GZIP)
        if not self._packed:
            raise damage("is cut off")
        try:
            self._ready += self._member.decompress(self._packed, _CHUNK)
        except zlib.error as error:
            raise damage(f"is not gzip, or damaged ({error})") from None
        self._packed = self._member.unconsumed_tail or self._member.unused_data
        return True

"""The engine's framing of a container's two output streams on one connection.

Eight bytes (stream, three zeros, length as big-endian u32), then so many bytes of that stream.
"""

import struct
from collections.abc import Iterator

_HEADER = struct.Struct(">BxxxL")


class FrameParser:
    """Takes the connection's bytes apart, however they are cut.

    What has come of a frame is handed on at once, so the memory used is that of the chunk, whatever length a header
    claims.
    """

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each stream's number with the next bytes of it. The iterator must be exhausted before the next call."""
        at = 0
        while at < len(data):
            if not self._missing:
                taken = _HEADER.size - len(self._header)
                self._header += data[at : at + taken]
                at += taken
                if len(self._header) < _HEADER.size:
                    return
                self._stream, self._missing = _HEADER.unpack(self._header)
                self._header = b""
                continue
            piece = data[at : at + self._missing]
            at += len(piece)
            self._missing -= len(piece)
            yield self._stream, piece

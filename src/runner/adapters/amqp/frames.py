"""Makes the client library survive frames that it cannot decode.

A property such as a timestamp in microseconds, or a header that is not UTF-8, makes the library's reader fail and drop
the whole connection; the broker then delivers the message again, to every worker in turn. With these decoders the
message arrives, with the odd value left out, and can be refused like any other. They are registered in the library's
own tables of decoders (pamqp 4).
"""

import datetime as dt
import struct

from pamqp import common, decode

_LONGEST = dt.datetime.max.replace(tzinfo=dt.UTC)


def tolerate_odd_frames() -> None:
    """Register the decoders. Harmless when called again."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["table"] = _table
    decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.TABLE_MAPPING[b"F"] = _table


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    # Not U+FFFD, which is longer than the byte that it stands for: the text has to fit into a frame again.
    return length + 1, value[1 : length + 1].decode(errors="replace").replace("\ufffd", "?")


def _timestamp(value: bytes) -> tuple[int, dt.datetime]:
    """Seconds since 1970, or what a mistaken client sends: anything out of range becomes the end of time."""
    seconds = struct.unpack(">Q", value[:8])[0]
    try:
        return 8, dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    except (ValueError, OverflowError, OSError):
        return 8, _LONGEST


def _table(value: bytes) -> tuple[int, common.FieldTable]:
    length = int.from_bytes(value[:4])
    try:
        return length + 4, dict(_entries(value[4 : length + 4]))
    except (ValueError, IndexError, struct.error, KeyError, OverflowError, RecursionError, TypeError):
        return length + 4, {}


def _entries(data: bytes) -> list[tuple[str, common.FieldValue]]:
    entries: list[tuple[str, common.FieldValue]] = []
    offset = 0
    while offset < len(data):
        end = offset + 1 + data[offset]
        name = data[offset + 1 : end].decode(errors="replace")
        consumed, value = decode.embedded_value(data[end:])
        if consumed <= 0:
            raise ValueError("a value of no length")
        entries.append((name, value))
        offset = end + consumed
    return entries

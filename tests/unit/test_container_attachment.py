"""Output that is handled a part at a time; no engine is asked."""

import asyncio
from typing import Any, cast

import pytest
from tests.fakes import until

from runner.adapters.docker.attachment import READ_BYTES, Attachment
from runner.adapters.docker.connection import Answer

CHUNK = b"\1\0\0\0" + (4 * READ_BYTES).to_bytes(4, "big") + bytes(4 * READ_BYTES)


class Connection:
    """The connection, its transport and the answer on it, as far as they are used here."""

    def __init__(self) -> None:
        self.status = 101
        self.connection = self.transport = self
        self.reads = True
        self.closed = False

    def hand_over(self, _receiver: object) -> None:
        return

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None:
        self.closed = True


class Listener:
    """Fails at the part of this number."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at
        self.parts = 0
        self.ends = 0

    def data(self, _stream: int, _data: bytes) -> None:
        self.parts += 1
        if self.parts == self.fails_at:
            raise RuntimeError("a mistake of ours")

    def end(self) -> None:
        self.ends += 1


def attached(connection: Connection, listener: Listener) -> Attachment:
    attachment = Attachment(cast("Answer", connection))
    attachment.listen(listener.data, listener.end)
    return attachment


async def test_a_large_chunk_is_handled_in_parts_while_nothing_more_is_read() -> None:
    connection, listener = Connection(), Listener(fails_at=0)
    attachment = attached(connection, listener)

    attachment.feed_data(CHUNK)
    assert (listener.parts, connection.reads) == (1, False)
    await until(lambda: connection.reads)

    assert listener.parts == 5
    assert not attachment.ended


async def test_a_part_that_cannot_be_handled_ends_it_so_that_the_engines_log_is_read() -> None:
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    connection, listener = Connection(), Listener(fails_at=3)
    attachment = attached(connection, listener)

    attachment.feed_data(CHUNK)
    await until(lambda: attachment.ended)

    assert (listener.parts, listener.ends, connection.closed) == (3, 1, True)
    assert [str(each["exception"]) for each in found] == ["a mistake of ours"]


async def test_so_does_the_first_part() -> None:
    connection, listener = Connection(), Listener(fails_at=1)
    attachment = attached(connection, listener)

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        attachment.feed_data(CHUNK)

    assert (attachment.ended, listener.ends, connection.closed) == (True, 1, True)


async def test_frames_that_came_together_are_handed_on_together_and_in_their_order() -> None:
    heard: list[tuple[int, bytes]] = []
    attachment = Attachment(cast("Answer", Connection()))
    attachment.listen(lambda stream, data: heard.append((stream, data)), lambda: None)

    attachment.feed_data(frame(1, b"one\n") + frame(1, b"two\n") + frame(2, b"three\n") + frame(1, b"four\n"))

    assert heard == [(1, b"one\ntwo\n"), (2, b"three\n"), (1, b"four\n")]


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data

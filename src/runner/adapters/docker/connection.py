"""A connection to the engine, and the little of HTTP/1.1 that an engine speaks on it."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

_LONGEST_HEAD = 64 * 1024
_MOST_UNREAD = 256 * 1024
"""What waits for whoever reads an answer; the engine writes no more of it until then."""
_EMPTY = (HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Receiver(Protocol):
    """Takes over a connection's bytes."""

    def feed_data(self, data: bytes) -> None:
        """So much has come."""

    def feed_eof(self) -> None:
        """The connection is gone, for whatever reason."""


class Ended(ConnectionError):
    """The engine has closed the connection in good order."""


class NotHttp(ConnectionError):
    """What has come is no answer."""


class Connection(asyncio.Protocol):
    """Carries one request at a time, until it is closed or handed over. Reading raises `ConnectionError` at its end."""

    def __init__(self, gone: Callable[["Connection"], None]) -> None:
        """`gone` is called when it is closed, once or more often."""
        self.transport: asyncio.Transport
        self.idle_since = 0.0
        self._gone = gone
        self._over = False
        self._error: Exception | None = None
        self._received = bytearray()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None

    @property
    def fresh(self) -> bool:
        """Whether it can carry a request: nothing has come that was not asked for, and it stands."""
        return not (self._over or self._received or self.transport.is_closing())

    def send(self, data: bytes) -> None:
        """Write all of a request."""
        self.transport.write(data)

    async def answer(self) -> "Answer":
        """The answer to what was sent."""
        while True:
            answer = Answer(self, await self._until(b"\r\n\r\n"))
            if answer.status >= HTTPStatus.OK or answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return answer

    async def line(self) -> bytes:
        """The next line, without its end."""
        return await self._until(b"\r\n")

    async def some(self, most: int | None = None) -> bytes:
        """What has come and was not read, a byte at least, and `most` at most."""
        while not self._received:
            await self._more()
        taken = bytes(self._received[:most])
        del self._received[:most]
        return taken

    def hand_over(self, receiver: Receiver) -> None:
        """Give everything that comes from now on to `receiver`, and what has come and was not read."""
        self._receiver = receiver
        self._resume()
        if self._received:
            receiver.feed_data(bytes(self._received))
            self._received.clear()
        if self._over:
            receiver.feed_eof()

    def close(self) -> None:
        """Let go of it, whatever it carries. May be repeated."""
        self.transport.abort()
        self._gone(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._receiver is not None:
            self._receiver.feed_data(data)
            return
        self._received += data
        if len(self._received) > _MOST_UNREAD:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._over, self._error = True, error
        self._gone(self)
        self._wake()
        if self._receiver is not None:
            self._receiver.feed_eof()

    async def _until(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            if len(self._received) > _LONGEST_HEAD:
                raise NotHttp("the engine's answer has no end of its head")
            await self._more()
        taken = bytes(self._received[:at])
        del self._received[: at + len(mark)]
        return taken

    async def _more(self) -> None:
        if self._over:
            raise ConnectionError(str(self._error)) if self._error else Ended("the engine closed the connection")
        self._resume()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Answer:
    """An answer whose head has come; the rest has to be read, or the connection closed."""

    def __init__(self, connection: Connection, head: bytes) -> None:
        self.connection = connection
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise NotHttp(f"the engine does not speak HTTP: {first[:80]!r}")
        self.status = int(rest[:3])
        self._fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._chunked = self._fields.get(b"transfer-encoding", b"").lower() == b"chunked"
        self._left = self._length()
        """What is still to come of the body or of this piece of it; None while only the connection's end ends it."""
        self._again = version != b"HTTP/1.0" and self._fields.get(b"connection", b"").lower() != b"close"

    @property
    def json(self) -> bool:
        """Whether the body claims to be JSON."""
        return self._fields.get(b"content-type", b"").partition(b";")[0] == b"application/json"

    @property
    def reusable(self) -> bool:
        """Whether the connection carries another request once all of this answer was read."""
        return self._again and self._left is not None

    async def body(self) -> bytes:
        """All of the body."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def piece(self) -> bytes:
        """Some of the body; nothing at its end."""
        if self._left == 0 and self._chunked:
            await self._next_chunk()
        if self._left == 0:
            return b""
        if self._left is None:
            return await self._rest()
        taken = await self.connection.some(self._left)
        self._left -= len(taken)
        if not self._left and self._chunked:
            await self.connection.line()
        return taken

    def _length(self) -> int | None:
        if self.status in _EMPTY or self._chunked:
            return 0
        length = self._fields.get(b"content-length")
        if length is not None and not length.isdigit():
            raise NotHttp(f"the engine's answer has a length of {length[:80]!r}")
        return None if length is None else int(length)

    async def _next_chunk(self) -> None:
        size = (await self.connection.line()).partition(b";")[0].strip()
        try:
            self._left = int(size, 16)
        except ValueError:
            self._left = -1
        if self._left < 0:
            raise NotHttp(f"a piece of the engine's answer has a length of {size[:80]!r}")
        if not self._left:
            self._chunked = False
            while await self.connection.line():
                pass  # what may follow the last piece

    async def _rest(self) -> bytes:
        try:
            return await self.connection.some()
        except Ended:
            return b""

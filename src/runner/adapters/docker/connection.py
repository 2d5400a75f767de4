"""A connection to the engine. What HTTP is, the parser of a library knows; here is who waits for what."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

import httptools

_LONGEST_HEAD = 64 * 1024
_MOST_UNREAD = 256 * 1024
"""What waits for whoever reads an answer; the engine writes no more of it until then."""
_EMPTY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Receiver(Protocol):
    """Takes over a connection's bytes."""

    def feed_data(self, data: bytes) -> None:
        """So much has come."""

    def feed_eof(self) -> None:
        """The connection is gone, for whatever reason."""


class NotHttp(ConnectionError):
    """What has come is no answer."""


class Connection(asyncio.Protocol):
    """Carries one request at a time, until it is closed or handed over."""

    def __init__(self, gone: Callable[["Connection"], None]) -> None:
        """`gone` is called when it is closed, once or more often."""
        self.transport: asyncio.Transport
        self.idle_since = 0.0
        self._gone = gone
        self._over = False
        self._unasked = False
        self._paused = False
        self._answer: Answer | None = None
        self._receiver: Receiver | None = None

    @property
    def fresh(self) -> bool:
        """Whether it can carry a request: nothing has come that was not asked for, and it stands."""
        return not (self._over or self._unasked or self.transport.is_closing())

    async def ask(self, request: bytes) -> "Answer":
        """The beginning of the answer to a request. Raises `ConnectionError`."""
        self._answer = Answer(self)
        if self._over:
            raise ConnectionError("the engine closed the connection")
        self.transport.write(request)
        await self._answer.begun()
        return self._answer

    def hand_over(self, receiver: Receiver) -> None:
        """Give everything that comes from now on to `receiver`, and what has come and was not read."""
        self._receiver = receiver
        self.resume()
        if self._answer is not None and (came := self._answer.take()):
            receiver.feed_data(came)
        if self._over:
            receiver.feed_eof()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def refuse(self) -> None:
        """Something has come that was not asked for."""
        self._unasked = True

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
        elif self._answer is None or self._answer.complete:
            self.refuse()
        else:
            self._answer.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._over = True
        self._gone(self)
        if self._receiver is not None:
            self._receiver.feed_eof()
        elif self._answer is not None:
            self._answer.feed_eof(error)


class Answer:
    """An answer as it comes. Reading it raises `ConnectionError` where it breaks off or is none."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.status = 0
        """0 until its head has come."""
        self.complete = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._came = 0
        self._type = b""
        self._bounded = False
        """Whether something in it says where it ends; else the end of the connection does."""
        self._keeps = False
        self._failure: ConnectionError | None = None
        self._body = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def json(self) -> bool:
        """Whether the body claims to be JSON."""
        return self._type.partition(b";")[0].strip() == b"application/json"

    @property
    def reusable(self) -> bool:
        """Whether the connection carries another request: all of this answer has come, and it says nothing against."""
        return self.complete and self._keeps

    async def begun(self) -> None:
        """Return when its head has come."""
        while not self.status:
            await self._more()

    async def body(self) -> bytes:
        """All of the body."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def piece(self) -> bytes:
        """Some of the body; nothing at its end."""
        while not (self._body or self.complete):
            await self._more()
        return self.take()

    def take(self) -> bytes:
        """What has come of the body and was not read; of an answer that switches protocols, what followed it."""
        taken = bytes(self._body)
        self._body.clear()
        self.connection.resume()
        return taken

    def feed(self, data: bytes) -> None:
        """Called by the connection with what has come."""
        if self._parser is None:
            self._body += data
        else:
            self._parse(self._parser, data)
        if len(self._body) > _MOST_UNREAD:
            self.connection.pause()
        self._wake()

    def feed_eof(self, error: Exception | None) -> None:
        """Called by the connection at its end."""
        if self.status and not self._bounded and error is None:
            self.complete = True
        elif not self.complete and self._failure is None:
            self._failure = ConnectionError(str(error) if error else "the engine closed the connection")
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, as all of these."""
        name = name.lower()
        if self.complete:
            return  # of another one, which nobody asked for
        if name == b"content-type":
            self._type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._bounded = True

    def on_headers_complete(self) -> None:
        """The status is known."""
        status = self._parser.get_status_code() if self._parser is not None else 0
        if not self.complete and (status >= HTTPStatus.OK or status == HTTPStatus.SWITCHING_PROTOCOLS):
            self.status = status
            self._bounded = self._bounded or status in _EMPTY or status == HTTPStatus.SWITCHING_PROTOCOLS

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self.complete:
            self._body += data

    def on_message_complete(self) -> None:
        """It was all, unless another one follows, or another protocol."""
        ends = self.status and self.status != HTTPStatus.SWITCHING_PROTOCOLS
        if ends and not self.complete and self._parser is not None:
            self._keeps, self.complete = self._parser.should_keep_alive(), True

    def on_message_begin(self) -> None:
        """One that nobody asked for, if this one is complete."""
        if self.complete:
            self.connection.refuse()

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = None
            self._body += data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._fail(f"the engine's answer is no HTTP: {error}")
        if not self.status:
            self._came += len(data)
            if self._came > _LONGEST_HEAD:
                self._fail("the engine's answer has no end of its head")
        if self.complete or self._failure:
            self._parser = None  # which refers to us

    def _fail(self, problem: str) -> None:
        if self.complete:
            self.connection.refuse()
        elif self._failure is None:
            self._failure = NotHttp(problem)

    async def _more(self) -> None:
        """Return when something has happened. Raises what is amiss."""
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

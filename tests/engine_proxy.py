"""A proxy before an engine's socket that knows HTTP, so that single calls go wrong and all others do not."""

import asyncio
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_HEAD_END = b"\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and what becomes of it: each connection carries one."""

    request: bytes
    client: asyncio.StreamReader
    answer: asyncio.StreamWriter
    upstream: str

    async def pass_on(self) -> None:
        """Let the engine answer."""
        reader, writer = await asyncio.open_unix_connection(self.upstream)
        try:
            writer.write(self.request)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_pump(self.client, writer))
                ways.create_task(_pump(reader, self.answer))
        finally:
            writer.transport.abort()

    async def pass_on_for(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Let the engine do its work, and say something else than it did, or later."""
        reader, writer = await asyncio.open_unix_connection(self.upstream)
        try:
            writer.write(self.request)
            sending = asyncio.get_running_loop().create_task(_pump(self.client, writer))
            said = await reader.read()
            sending.cancel()
            self.answer.write(await answer(said))
            await self.answer.drain()
        finally:
            writer.transport.abort()


Deed = Callable[[Exchange], Awaitable[None]]


def refuse(status: int, message: str) -> Deed:
    """The engine is not asked."""
    body = b'{"message": "%s"}' % message.encode()
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"

    async def deed(exchange: Exchange) -> None:
        exchange.answer.write(head % (status, len(body)) + body)
        await exchange.answer.drain()

    return deed


async def hang(_exchange: Exchange) -> None:
    """Nobody answers, ever."""
    await asyncio.Event().wait()


async def drop(_exchange: Exchange) -> None:
    """The connection breaks, and the engine was not asked."""


async def lose(exchange: Exchange) -> None:
    """The engine does it, and the answer is lost."""

    async def nothing(_said: bytes) -> bytes:
        return b""

    await exchange.pass_on_for(nothing)


async def garble(exchange: Exchange) -> None:
    """The engine does it, and its answer, if it has any text, makes no sense."""

    async def nonsense(said: bytes) -> bytes:
        head, end, body = said.partition(_HEAD_END)
        return head + end + b"\xff" * len(body)

    await exchange.pass_on_for(nonsense)


async def cut_short(exchange: Exchange) -> None:
    """The engine does it, and half of its answer's text arrives."""

    async def half(said: bytes) -> bytes:
        head, end, body = said.partition(_HEAD_END)
        return head + end + body[: len(body) // 2]

    await exchange.pass_on_for(half)


def delay(seconds: float) -> Deed:
    """The engine hears of it that much later, whether or not anyone waits for the answer."""

    async def deed(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await exchange.pass_on()

    return deed


def after(event: asyncio.Event) -> Deed:
    """The engine hears of it once the event has happened."""

    async def deed(exchange: Exchange) -> None:
        await event.wait()
        await exchange.pass_on()

    return deed


@dataclass(slots=True)
class HeldAnswer:
    """The engine does it, `done` says so, and its answer waits until it is passed on or lost."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    _arrives: bool = False
    _decided: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        """Hold back one answer."""

        async def held(said: bytes) -> bytes:
            self.done.set()
            await self._decided.wait()
            return said if self._arrives else b""

        await exchange.pass_on_for(held)

    def pass_on(self) -> None:
        """Let the answer arrive."""
        self._arrives = True
        self._decided.set()

    def lose(self) -> None:
        """Break its connection instead."""
        self._decided.set()


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with requests whose `METHOD /path?query` the pattern is found in: `times`, or each time."""

    pattern: str
    deed: Deed
    times: int | None = None
    met: int = 0

    def takes(self, line: str) -> bool:
        """Whether this request is to go wrong; counts it if so."""
        if self.times == self.met or not re.search(self.pattern, line):
            return False
        self.met += 1
        return True


@dataclass(slots=True)
class EngineProxy:
    """Stands before the engine at `upstream` (`unix://…`) while it is entered; connect to `url`."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    """Every request that came, as `METHOD /path?query`."""
    open: list[str] = field(default_factory=list)
    """Those whose connections are not over, on either side."""
    _folder: Path = field(init=False)
    _server: asyncio.Server | None = None
    _exchanges: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{self._folder}/proxy.sock"

    def fault(self, pattern: str, deed: Deed, times: int | None = None) -> Fault:
        """Have requests go wrong from now on."""
        made = Fault(pattern=pattern, deed=deed, times=times)
        self.faults.append(made)
        return made

    def heal(self) -> None:
        """Nothing more goes wrong; what hangs goes on hanging until its client gives up."""
        self.faults.clear()

    async def __aenter__(self) -> Self:
        # Not pytest's folder: a socket's path may have 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="runner-proxy-", dir="/tmp"))
        await self.accept()
        return self

    def refuse(self) -> None:
        """Nobody listens any more, as when there is no engine; connections that are there go on."""
        assert self._server is not None
        self._server.close()
        (self._folder / "proxy.sock").unlink()

    async def accept(self) -> None:
        """Listen, in the beginning and after `refuse`."""
        self._server = await asyncio.start_unix_server(self._serve, self._folder / "proxy.sock")

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        shutil.rmtree(self._folder)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._exchanges.add(task)
        try:
            await self._exchange(reader, writer)
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one end is gone, and now the other one is, too
        finally:
            self._exchanges.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_HEAD_END)
        line = head.split(b" HTTP/", 1)[0].decode()
        self.heard.append(line)
        self.open.append(line)
        try:
            await self._deal_with(line, head, reader, writer)
        finally:
            self.open.remove(line)

    async def _deal_with(
        self, line: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        exchange = Exchange(
            request=_last_of_its_connection(head), client=reader, answer=writer, upstream=urlsplit(self.upstream).path
        )
        fault = next((fault for fault in self.faults if fault.takes(line)), None)
        with suppress(ConnectionError):
            await (exchange.pass_on() if fault is None else fault.deed(exchange))


def _last_of_its_connection(head: bytes) -> bytes:
    """The request's head with the wish that the connection be closed after the answer; an upgrade stays one."""
    if re.search(rb"\r\nUpgrade:", head, re.IGNORECASE):
        return head
    plain = re.sub(rb"\r\nConnection:[^\r]*", b"", head, flags=re.IGNORECASE)
    return plain[: -len(_HEAD_END)] + b"\r\nConnection: close" + _HEAD_END


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on bytes, and the end of them."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()

"""A client that publishes what no library would let it: properties as raw bytes."""

import asyncio
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pamqp import commands, frame, header
from pamqp.exceptions import UnmarshalingException

_BASIC = 60
_FRAME_HEADER, _FRAME_BODY, _FRAME_END = 2, 3, b"\xce"
_FLAGS = {
    "content_type": 15,
    "headers": 13,
    "delivery_mode": 12,
    "correlation_id": 10,
    "reply_to": 9,
    "message_id": 7,
    "timestamp": 6,
    "type": 5,
    "app_id": 3,
}


def short(text: bytes) -> bytes:
    """A short string."""
    return bytes([len(text)]) + text


def table(*entries: bytes) -> bytes:
    """A table of entries that are encoded already."""
    body = b"".join(entries)
    return struct.pack(">I", len(body)) + body


class RawPublisher:
    """One connection with one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._buffer = b""

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writer.write(header.ProtocolHeader().marshal())
        await self._read(commands.Connection.Start)
        login = f"\0{self._url.username}\0{self._url.password}"
        self._send(0, commands.Connection.StartOk(mechanism="PLAIN", response=login))
        await self._read(commands.Connection.Tune)
        self._send(0, commands.Connection.TuneOk(channel_max=10, frame_max=131072, heartbeat=0))
        self._send(0, commands.Connection.Open(virtual_host="/"))
        await self._read(commands.Connection.OpenOk)
        self._send(1, commands.Channel.Open())
        await self._read(commands.Channel.OpenOk)
        self._send(1, commands.Confirm.Select())
        await self._read(commands.Confirm.SelectOk)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    async def publish(self, exchange: str, routing_key: bytes, body: bytes, **properties: bytes) -> None:
        """Publish and wait for the confirm. The properties are written as they are."""
        method = struct.pack(">HHH", _BASIC, 40, 0) + short(exchange.encode()) + short(routing_key) + b"\0"
        flags = sum(1 << _FLAGS[name] for name in properties)
        values = b"".join(properties[name] for name in _FLAGS if name in properties)
        head = struct.pack(">HHQH", _BASIC, 0, len(body), flags) + values
        for kind, payload in ((1, method), (_FRAME_HEADER, head), (_FRAME_BODY, body)):
            self._writer.write(struct.pack(">BHI", kind, 1, len(payload)) + payload + _FRAME_END)
        await self._read(commands.Basic.Ack)

    def _send(self, channel: int, method: frame.FrameTypes) -> None:
        self._writer.write(frame.marshal(method, channel))

    async def _read(self, expected: type) -> None:
        """The next frame, which has to be of that kind."""
        async with asyncio.timeout(30):
            while (got := self._next()) is None:
                data = await self._reader.read(65536)
                assert data, "the broker hung up"
                self._buffer += data
        assert isinstance(got, expected), f"expected {expected}, got {got}"

    def _next(self) -> object:
        """The next whole frame that has come; None while there is none."""
        try:
            consumed, _, got = frame.unmarshal(self._buffer)
        except UnmarshalingException:
            return None
        self._buffer = self._buffer[consumed:]
        return got if consumed else None

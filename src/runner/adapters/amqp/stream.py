"""Follows a stream of the fleet's memory, from where this worker stopped.

A worker knows that it has read everything by a mark: a message of its own that it publishes into the stream once it
reads, and that comes back behind whatever the broker had confirmed before. (The broker's count of a stream's messages
is up to a second late, and an empty stream looks like a slow one.)
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import RPC_TIMEOUT, SessionOver, until_closed
from runner.adapters.amqp.memory import Book, Memory, Position
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.codec import new_id

_PREFETCH = 1000
_BATCH = 500
_SILENCE = 10.0
"""Seconds without any message after which a stream that has our mark in it is not the one that we read before."""

Messages = Sequence[AbstractIncomingMessage]


@dataclass(slots=True, kw_only=True)
class Follower:
    """Reads the stream of one book and hands on what is new, in order. `use` is a user of the consume link.

    `keep` writes the messages and the position down together; they may be none at all. It is never cancelled.
    """

    names: Names
    worker: str
    book: Book
    publisher: Publisher
    memory: Memory
    keep: Callable[[Messages, Position], Coroutine[None, None, None]]
    silence: float = _SILENCE
    _caught_up: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def up_to_date(self) -> bool:
        """Whether `caught_up` would return at once."""
        return self._caught_up.is_set()

    async def caught_up(self) -> None:
        """Return when we are connected and know all that was confirmed before the connection was made."""
        await self._caught_up.wait()

    async def use(self, connection: AbstractConnection) -> None:
        """Follow until the connection ends."""
        reading = _Reading(f"{self.names.ns}.{self.book}", await self.memory.position(self.book))
        try:
            channel = await self._open(connection, reading)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(until_closed(channel))
                tasks.create_task(self._read(reading))
                tasks.create_task(self._mark(reading))
        finally:
            self._caught_up.clear()

    async def _open(self, connection: AbstractConnection, reading: "_Reading") -> AbstractChannel:
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=_PREFETCH)
            queue = await channel.get_queue(reading.stream, ensure=False)
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: reading.inbox.put_nowait(None))
            await queue.consume(reading.arrived, arguments={"x-stream-offset": reading.start})
        return channel

    async def _read(self, reading: "_Reading") -> None:
        while True:
            batch = await reading.batch()
            if reading.is_another_stream(batch[0]):
                await self._begin_anew(reading)
            await self._keep_whole(reading.new_of(batch), reading.position(batch[-1]))
            await batch[-1].ack(multiple=True)
            if any(self._is_mark(message, reading) for message in batch):
                self._caught_up.set()

    async def _keep_whole(self, messages: Messages, position: Position) -> None:
        """Keep the messages to the end even when we are cancelled meanwhile.

        Once they are written down they do not come again, so whoever waits for one of them has to hear of it now.
        """
        keeping = asyncio.get_running_loop().create_task(self.keep(messages, position))
        try:
            await asyncio.shield(keeping)
        finally:
            await asyncio.wait({keeping})

    async def _mark(self, reading: "_Reading") -> None:
        """Publish the mark, and see to it that reading gets on until it has come."""
        message = aio_pika.Message(
            b"", delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=reading.mark, app_id="runner"
        )
        key = self.names.mark_key(self.book.value, self.worker)
        await self.publisher.publish_surely(self.names.memory, key, message, mandatory=True)
        while not self._caught_up.is_set():
            before = reading.count
            try:
                async with asyncio.timeout(self.silence):
                    await self._caught_up.wait()
            except TimeoutError:
                if reading.count == before:
                    await self._begin_anew(reading)

    def _is_mark(self, message: AbstractIncomingMessage, reading: "_Reading") -> bool:
        return message.message_id == reading.mark and message.exchange == self.names.memory

    async def _begin_anew(self, reading: "_Reading") -> None:
        await self.memory.forget(self.book)
        raise SessionOver(f"{reading.stream} is not the stream that was read before; it is read from its beginning")


@dataclass(slots=True)
class _Reading:
    """One consumer's way through the stream. It begins with the last message that was read before."""

    stream: str
    last: Position | None
    mark: str = field(default_factory=new_id)
    count: int = 0
    inbox: asyncio.Queue[AbstractIncomingMessage | None] = field(default_factory=asyncio.Queue)

    @property
    def start(self) -> int | str:
        """Where to begin, as the broker takes it."""
        return "first" if self.last is None else self.last.offset

    async def arrived(self, message: AbstractIncomingMessage) -> None:
        """Take what the consumer brings."""
        self.count += 1
        self.inbox.put_nowait(message)

    async def batch(self) -> list[AbstractIncomingMessage]:
        """The messages that have arrived, at least one. Raises `SessionOver` when the broker stopped the consumer."""
        batch: list[AbstractIncomingMessage] = []
        while not batch or (len(batch) < _BATCH and not self.inbox.empty()):
            message = await self.inbox.get()
            if message is None:
                raise SessionOver(f"the broker stopped the reading of {self.stream}")
            batch.append(message)
        return batch

    def is_another_stream(self, message: AbstractIncomingMessage) -> bool:
        """Whether the stream was made anew, so that our offsets mean nothing in it."""
        if self.last is None or offset_of(message) > self.last.offset:
            return False
        return self.position(message) != self.last

    def new_of(self, batch: Messages) -> Messages:
        """The messages that were not read before."""
        last = -1 if self.last is None else self.last.offset
        return [message for message in batch if offset_of(message) > last]

    def position(self, message: AbstractIncomingMessage) -> Position:
        """The position after reading the message; from now on the last one."""
        parts = (self.stream, message.message_id or "", message.routing_key or "")
        text = "\n".join(parts).encode() + b"\n" + message.body
        return Position(offset=offset_of(message), fingerprint=hashlib.sha256(text).hexdigest()[:32])


def offset_of(message: AbstractIncomingMessage) -> int:
    """Where in its stream the message stands."""
    offset = message.headers.get("x-stream-offset")
    if not isinstance(offset, int):
        raise SessionOver("a message of a stream came without its offset")
    return offset

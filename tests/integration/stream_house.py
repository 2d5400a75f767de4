"""Readers of the fleet's memory on a real broker, without the rest of a worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection

from runner.adapters.amqp import topology
from runner.adapters.amqp.cancelled import Cancelled
from runner.adapters.amqp.claims import Claims
from runner.adapters.amqp.link import Link, User
from runner.adapters.amqp.memory import Memory, open_memory
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.job import JobKey

TENANT = "acme"


def now() -> datetime:
    return datetime.now(UTC)


def key(job_id: str) -> JobKey:
    return JobKey(tenant=TENANT, id=job_id)


class Silent:
    """Hears of connections, and keeps it to itself."""

    def amqp_connected(self, role: str) -> None:
        pass

    def amqp_disconnected(self, role: str) -> None:
        pass


class Calls:
    """What was cancelled, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self._new = asyncio.Event()

    def __call__(self, cancelled: JobKey, reason: str) -> None:
        self.heard.append((str(cancelled), reason))
        self._new.set()

    async def until(self, job_id: str) -> None:
        """Return when that job was cancelled."""
        async with asyncio.timeout(30):
            while str(key(job_id)) not in [heard for heard, _ in self.heard]:
                self._new.clear()
                await self._new.wait()


@dataclass(slots=True)
class Board:
    """The namespace's part of the broker, as those see it who cancel and who look on."""

    names: Names
    connection: AbstractConnection
    channel: AbstractChannel
    parts: topology.Topology

    async def cancel(self, job_id: str, body: bytes = b"{}", **told: Any) -> None:
        """Publish a cancel, confirmed."""
        await self.publish(self.names.control, self.names.cancel_key(TENANT, job_id), body, **told)

    async def publish(self, exchange: str, routing_key: str, body: bytes, **told: Any) -> None:
        """Publish anything to anywhere, confirmed."""
        target = await self.channel.get_exchange(exchange, ensure=False) if exchange else self.channel.default_exchange
        await target.publish(aio_pika.Message(body, delivery_mode=2, **told), routing_key, mandatory=False)

    async def make(self) -> None:
        """Declare the streams and what leads to them; a broker that has just started may not have them up yet."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await topology.apply(self.connection, self.parts)
                except aiormq.exceptions.ChannelNotFoundEntity:
                    await asyncio.sleep(0.1)
                else:
                    return

    async def remove(self, *streams: str) -> None:
        """Delete the streams."""
        for stream in streams:
            await self.channel.queue_delete(stream)


@asynccontextmanager
async def open_board(url: str, namespace: str) -> AsyncIterator[Board]:
    async with await aio_pika.connect(url, timeout=30) as connection:
        board = await make_board(connection, namespace)
        try:
            yield board
        finally:
            channel = await connection.channel()
            for queue in board.parts.queues:
                await channel.queue_delete(queue.name)
            for exchange in board.parts.exchanges:
                await channel.exchange_delete(exchange.name)


async def make_board(connection: AbstractConnection, namespace: str) -> Board:
    """The board on this connection; whoever made it has to clean up."""
    names = Names(namespace)
    board = Board(names, connection, await connection.channel(publisher_confirms=True), _streams(names))
    await board.make()
    return board


def _streams(names: Names) -> topology.Topology:
    """Of a worker's topology, the two streams, and what leads to them."""
    whole = topology.describe_topology(names, [])
    streams, sources = (names.cancelled, names.claims), (names.control, names.memory)
    return topology.Topology(
        exchanges=[exchange for exchange in whole.exchanges if exchange.name in sources],
        queues=[queue for queue in whole.queues if queue.name in streams],
        bindings=[binding for binding in whole.bindings if binding.target in streams],
    )


@dataclass(slots=True)
class Reader:
    """One worker's readers."""

    memory: Memory
    cancelled: Cancelled
    claims: Claims
    consume: Link
    calls: Calls = field(default_factory=Calls)


@asynccontextmanager
async def reader(
    url: str,
    namespace: str,
    folder: Path,
    worker: str = "w1",
    *,
    publish_url: str | None = None,
    clock: Callable[[], datetime] = now,
    patience: timedelta = timedelta(seconds=20),
    silence: float = 10.0,
) -> AsyncIterator[Reader]:
    """The readers of a worker whose state folder is `folder`, on links that come back."""
    folder.mkdir(exist_ok=True)
    names, publisher, calls = Names(namespace), Publisher(), Calls()
    async with open_memory(folder, clock) as memory:
        cancelled = Cancelled(names=names, worker=worker, publisher=publisher, memory=memory, cancel=calls)
        claims = Claims(names=names, worker=worker, publisher=publisher, memory=memory, now=clock, patience=patience)
        cancelled.follower.silence = claims.follower.silence = silence
        consume = _link(url, worker, "consume", cancelled.use, claims.use)
        links = (consume, _link(publish_url or url, worker, "publish", publisher.use))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(link.run()) for link in links]
            try:
                yield Reader(memory, cancelled, claims, consume, calls)
            finally:
                for task in running:
                    task.cancel()


def _link(url: str, worker: str, role: str, *users: User) -> Link:
    return Link(urls=[url], name=worker, role=role, pulse=Pulse(timedelta(seconds=10)), observer=Silent(), users=users)

"""A namespace of its own in a real broker, and the parts of a worker that live on connections to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp import topology
from runner.adapters.amqp.delivery import Desk
from runner.adapters.amqp.frames import tolerate_odd_frames
from runner.adapters.amqp.intake import JobIntake
from runner.adapters.amqp.leases import Leases
from runner.adapters.amqp.link import Link, User
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.adapters.amqp.unrouted import Unrouted
from runner.job import Invalid, Job
from runner.ports import Delivery, QueueKey

HEARTBEAT = timedelta(seconds=10)
"""So long that a connection is not given up because this machine, or the broker's, stands still for seconds."""
KEY = "default.normal.acme"


async def eventually(condition: Callable[[], Any], what: str, timeout: float = 30) -> None:
    """Return when the condition, which may be awaitable, holds."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                holds = condition()
                if await holds if isinstance(holds, Awaitable) else holds:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


class Counts:
    """The observers of links and leases."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.connections = 0

    def amqp_connected(self, role: str) -> None:
        self.connected.append(role)
        self.connections += 1

    def amqp_disconnected(self, role: str) -> None:
        self.connected.remove(role)

    def lease_adopted(self) -> None:
        raise AssertionError("there was no earlier life")

    def lease_lost(self) -> None:
        raise AssertionError("nobody takes a job over here")


@dataclass(slots=True, kw_only=True)
class Room:
    """A namespace with its topology, as submitters and operators see it."""

    names: Names
    queues: Sequence[QueueKey]
    wanted: topology.Topology
    connection: AbstractConnection
    channel: AbstractChannel

    async def submit(
        self, body: object = None, key: str = KEY, *, exchange: str | None = None, **properties: Any
    ) -> None:
        """Publish a job, confirmed. Without a body it is a good one whose id is its number."""
        fields = {"stack": "busybox"} if body is None else body
        raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        name = self.names.submit if exchange is None else exchange
        target = await self.channel.get_exchange(name, ensure=False) if name else self.channel.default_exchange
        await target.publish(aio_pika.Message(raw, **properties), key, mandatory=False)

    async def count(self, queue: str) -> tuple[int, int]:
        """The messages that wait in a queue, and its consumers."""
        found = (await self.channel.declare_queue(queue, passive=True)).declaration_result
        return found.message_count or 0, found.consumer_count or 0

    async def depth(self, queue: str) -> int:
        """The messages that wait in a queue."""
        return (await self.count(queue))[0]

    async def holds(self, queue: str, depth: int, timeout: float = 30) -> None:
        """Return when that many messages wait in the queue."""

        async def holds() -> bool:
            return await self.depth(queue) == depth

        await eventually(holds, f"{depth} messages in {queue}", timeout)

    async def purge(self, worker: str = "w1") -> None:
        """Forget all messages, for the next test."""
        own = [f"{self.names.ns}.w.{worker}.{part}" for part in ("lease", "superseded", "control")]
        for name in [*(queue.name for queue in self.wanted.queues if "x-max-age" not in queue.arguments), *own]:
            if name in own:
                await self.channel.queue_delete(name)
            elif not name.startswith(self.names.delay(0)[:-2]):
                await (await self.channel.get_queue(name, ensure=False)).purge()

    async def get(self, queue: str, timeout: float = 30) -> AbstractIncomingMessage:
        """Take the next message out of the queue for good."""
        source = await self.channel.get_queue(queue, ensure=False)
        found: list[AbstractIncomingMessage] = []

        async def look() -> bool:
            message = await source.get(no_ack=True, fail=False)
            found.extend([message] if message is not None else [])
            return bool(found)

        await eventually(look, f"a message in {queue}", timeout)
        return found[0]

    async def collect(self, exchange: str, key: str) -> "asyncio.Queue[AbstractIncomingMessage]":
        """What goes through the exchange from now on."""
        heard: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(exchange, key)
        await queue.consume(heard.put, no_ack=True)
        return heard


@asynccontextmanager
async def open_room(url: str, ns: str, tenants: Sequence[str] = (), worker: str = "w1") -> AsyncIterator[Room]:
    """A namespace with all that it needs; removed at the end, with the queues of the worker."""
    tolerate_odd_frames()
    names, queues = Names(ns), topology.job_queues(["default"], tenants)
    wanted = topology.describe_topology(names, queues)
    async with await aio_pika.connect(url) as connection:
        await topology.apply(connection, wanted)
        channel = await connection.channel(on_return_raises=True)
        try:
            yield Room(names=names, queues=queues, wanted=wanted, connection=connection, channel=channel)
        finally:
            await clear(connection, names, wanted, worker)


async def clear(connection: AbstractConnection, names: Names, wanted: topology.Topology, worker: str) -> None:
    """Take everything of a namespace out of the broker."""
    channel = await connection.channel()
    own = [f"{names.ns}.w.{worker}.{part}" for part in ("lease", "superseded", "control")]
    for name in [*own, *(queue.name for queue in wanted.queues)]:
        await channel.queue_delete(name)
    for exchange in wanted.exchanges:
        await channel.exchange_delete(exchange.name)


@dataclass(slots=True, kw_only=True)
class Side:
    """The worker's side: what it takes jobs with. `unsettled` has the deliveries that wait for their way on."""

    names: Names
    intake: JobIntake
    desk: Desk
    leases: Leases
    publisher: Publisher
    counts: Counts
    links: Sequence[Link] = ()
    given: list[Delivery] = field(default_factory=list)

    async def take(self, timeout: float = 30) -> Delivery:
        async with asyncio.timeout(timeout):
            return await self.intake.take()

    async def take_job(self) -> tuple[Delivery, Job]:
        delivery = await self.take()
        assert isinstance(delivery.submission, Job), delivery.submission
        return delivery, delivery.submission

    async def take_invalid(self) -> tuple[Delivery, Invalid]:
        delivery = await self.take()
        assert isinstance(delivery.submission, Invalid), delivery.submission
        return delivery, delivery.submission


@asynccontextmanager
async def open_side(
    names: Names,
    queues: Sequence[QueueKey],
    consume: str,
    publish: str | None = None,
    *,
    worker: str = "w1",
    users: Sequence[User] = (),
    unrouted: bool = False,
    heartbeat: timedelta = HEARTBEAT,
) -> AsyncIterator[Side]:
    """A worker's intake and leases, connected; `users` use the consuming connection, too."""
    counts, publisher, pulse = Counts(), Publisher(), Pulse(heartbeat)

    async def ignore(_: str) -> None:
        return

    leases = Leases(
        names=names,
        worker=worker,
        lifetime=timedelta(seconds=60),
        publisher=publisher,
        observer=counts,
        pulse=pulse,
        superseded=ignore,
    )
    desk = Desk(names=names, publisher=publisher, leases=leases)
    given: list[Delivery] = []

    def wrap(*args: Any) -> Delivery:
        delivery = desk.open(*args)
        given.append(delivery)
        return delivery

    intake = JobIntake(names=names, queues=queues, wrap=wrap)
    if unrouted:
        users = (*users, Unrouted(desk=desk, offer=intake.offer).use)
    links = (
        link(consume, leases.use, intake.use, *users, counts=counts, pulse=pulse),
        link(publish or consume, publisher.use, counts=counts, role="publish", heartbeat=heartbeat),
    )
    side = Side(
        names=names,
        intake=intake,
        desk=desk,
        leases=leases,
        publisher=publisher,
        counts=counts,
        links=links,
        given=given,
    )
    async with up(*links):
        await eventually(lambda: leases._since is not None, "the lease queue is there")
        yield side


def link(
    url: str | Sequence[str],
    *users: User,
    counts: Counts | None = None,
    role: str = "consume",
    pulse: Pulse | None = None,
    heartbeat: timedelta = HEARTBEAT,
    enter: User | None = None,
) -> Link:
    urls = [url] if isinstance(url, str) else url
    observer = counts or Counts()
    pulse = pulse or Pulse(heartbeat)
    return Link(
        urls=urls,
        name="w1",
        role=role,
        pulse=pulse,
        observer=observer,
        users=users,
        enter=enter,
        publishes=role == "publish",
    )


@asynccontextmanager
async def up(*links: Link) -> AsyncIterator[None]:
    """Keep the links up while inside; they are there from the beginning."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each.run()) for each in links]
        try:
            await eventually(lambda: all(each.up for each in links), "connected")
            yield
        finally:
            for task in running:
                task.cancel()


@asynccontextmanager
async def open_publisher(url: str, counts: Counts | None = None) -> AsyncIterator[tuple[Publisher, Link]]:
    """A publisher that is connected."""
    publisher = Publisher()
    carrier = link(url, publisher.use, counts=counts, role="publish")
    async with up(carrier):
        await eventually(publisher._open.is_set, "the publisher is open")
        yield publisher, carrier

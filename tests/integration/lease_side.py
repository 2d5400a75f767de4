"""A worker's side of the leases, with real connections and nothing behind them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel

from runner.adapters.amqp import topology
from runner.adapters.amqp.delivery import Desk, JobDelivery, Passport, plain_ack
from runner.adapters.amqp.leases import LeaseHold, Leases
from runner.adapters.amqp.link import Link
from runner.adapters.amqp.lost import Lost
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.job import Priority, Route
from runner.ports import Delivery, QueueKey

ROUTE = Route(pool="default", priority=Priority.NORMAL, tenant="acme")
HEARTBEAT, CALM = timedelta(seconds=1), timedelta(seconds=10)
"""What offers reckon with; and that of connections, which are not given up because this machine stands still."""


@dataclass(slots=True)
class Counts:
    """The observers of links and leases."""

    adopted: int = 0
    lost: int = 0
    connected: list[str] = field(default_factory=list)

    def lease_adopted(self) -> None:
        self.adopted += 1

    def lease_lost(self) -> None:
        self.lost += 1

    def amqp_connected(self, role: str) -> None:
        self.connected.append(role)

    def amqp_disconnected(self, role: str) -> None:
        self.connected.remove(role)


@dataclass(slots=True, kw_only=True)
class Side:
    """One worker's. `taken` is what `Lost` would have the worker run, `orphans` what came of an earlier life."""

    names: Names
    worker: str
    leases: Leases
    desk: Desk
    counts: Counts
    superseded: list[str]
    taken: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)

    @property
    def connected(self) -> bool:
        return sorted(self.counts.connected) == ["consume", "publish"] and self.leases._since is not None

    async def claim(self, claim: str, body: bytes = b'{"stack": "busybox"}', attempts: int = 1) -> LeaseHold:
        """Take a lease, and wait until its copy is here."""
        hold = await self.leases.acquire(claim, passport(body, attempts).message)
        await asyncio.wait_for(hold.ours(), 30)
        return hold

    async def orphan(self) -> JobDelivery:
        """The next lease of an earlier life."""
        message = await asyncio.wait_for(self.leases.orphans.get(), 30)
        return self.desk.open_lease(message, plain_ack(message))


def passport(body: bytes = b'{"stack": "busybox"}', attempts: int = 1) -> Passport:
    """A job on its way, claimed for the `attempts`-th time."""
    return Passport(body=body, route=ROUTE, published=datetime(2026, 1, 2, tzinfo=UTC), attempts=attempts)


@asynccontextmanager
async def open_side(
    names: Names,
    worker: str,
    *,
    consume: str,
    publish: str,
    lifetime: timedelta,
    heartbeat: timedelta = CALM,
    publisher: Publisher | None = None,
    sees_to_lost: bool = True,
) -> AsyncIterator[Side]:
    """A worker's side, connected; its connections are broken off at the end, as if the worker had been killed."""
    counts, publisher, pulse = Counts(), publisher or Publisher(), Pulse(heartbeat)
    superseded: list[str] = []

    async def hear(claim: str) -> None:
        superseded.append(claim)

    leases = Leases(
        names=names,
        worker=worker,
        lifetime=lifetime,
        publisher=publisher,
        observer=counts,
        pulse=pulse,
        superseded=hear,
    )
    desk = Desk(names=names, publisher=publisher, leases=leases)
    side = Side(names=names, worker=worker, leases=leases, desk=desk, counts=counts, superseded=superseded)
    lost = Lost(desk=desk, worker=worker, heartbeat=HEARTBEAT, offer=side.taken.put_nowait)
    users = (leases.use, lost.use) if sees_to_lost else (leases.use,)
    common: dict[str, Any] = {"name": worker, "observer": counts}
    links = (
        Link(urls=[consume], role="consume", users=users, pulse=pulse, **common),
        Link(urls=[publish], role="publish", users=(publisher.use,), pulse=Pulse(heartbeat), **common),
    )
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(link.run()) for link in links] + [tasks.create_task(leases.renew())]
        await eventually(lambda: side.connected, "the side is connected")
        try:
            yield side
        finally:
            for task in running:
                task.cancel()


async def eventually(condition: Any, what: str, timeout: float = 30) -> None:
    """Return when the condition, which may be awaitable, holds."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                holds = condition()
                if await holds if asyncio.iscoroutine(holds) else holds:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A namespace in the broker, with its topology."""

    names: Names
    channel: AbstractChannel

    async def depth(self, queue: str) -> int:
        """How many messages a queue has ready."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def put(self, worker: str, claim: str, seq: int, lifetime: float) -> None:
        """Publish a copy of a lease, as that worker would."""
        message = passport().message(claim=claim, worker=worker, lease_seq=seq)
        message.expiration = lifetime
        exchange = await self.channel.get_exchange(self.names.lease, ensure=False)
        await exchange.publish(message, worker, mandatory=True)


@asynccontextmanager
async def open_room(url: str, ns: str, workers: Sequence[str]) -> AsyncIterator[Room]:
    """A namespace with all that it needs; removed at the end, with the queues of these workers."""
    names = Names(ns)
    wanted = topology.describe_topology(names, [QueueKey(pool="default", priority=Priority.NORMAL)])
    async with await aio_pika.connect(url) as connection:
        await topology.apply(connection, wanted)
        channel = await connection.channel(on_return_raises=True)
        try:
            yield Room(names=names, channel=channel)
        finally:
            own = [
                queue for worker in workers for queue in (names.worker_lease(worker), names.worker_superseded(worker))
            ]
            for name in [*own, *(queue.name for queue in wanted.queues)]:
                await channel.queue_delete(name)
            for exchange in wanted.exchanges:
                await channel.exchange_delete(exchange.name)

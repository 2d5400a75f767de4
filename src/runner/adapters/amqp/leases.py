"""Leases: what makes a job ours while we run it.

A claimed job is held by a copy of its message in this worker's own queue, with a time to live. While we are connected
the copy is with us, unacked, where it cannot expire; it is renewed by publishing a newer copy and acking the older one
when the newer arrives (which proves both connections). When the connection is lost the copy goes back into the queue
and its time runs; when we are back it comes to us again. When we do not come back it expires, and the dead-letter
exchange hands it to any other worker. The delivery from the job queue is acked as soon as the first copy is confirmed,
so no time-out of the broker for unacked deliveries ever concerns a running job.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, until_closed
from runner.adapters.amqp.names import Header, Names
from runner.adapters.amqp.publisher import Publisher

log = logging.getLogger(__name__)

_LONGEST_RENEWAL = timedelta(seconds=30)


class MakeMessage(Protocol):
    """Makes a fresh message of a job, with some more internal headers."""

    def __call__(self, **more: str | int) -> aio_pika.Message:
        """See `Passport.message`."""


class LeaseObserver(Protocol):
    """Hears of leases."""

    def lease_adopted(self) -> None:
        """A lease of an earlier life of this worker came back to us."""

    def lease_lost(self) -> None:
        """A job of ours is run by another worker now."""


@dataclass(slots=True)
class LeaseHold:
    """One lease that we hold. `copy` is the newest that has arrived."""

    leases: "Leases"
    claim: str
    make: MakeMessage
    seq: int = 0
    held: int = 0
    copy: AbstractIncomingMessage | None = None
    over: bool = False

    async def give_up(self) -> None:
        """The job is settled, or somebody else's: ack what we have, and whatever copy still arrives."""
        self.over = True
        await self.leases.forget(self)


@dataclass(slots=True, kw_only=True)
class Leases:
    """All leases of this worker. `use` is a user of the consume link, `renew` a task beside it.

    `orphans` are leases that came to us and that no running job of ours knows: those of our earlier life.
    """

    names: Names
    worker: str
    lifetime: timedelta
    publisher: Publisher
    observer: LeaseObserver
    orphans: asyncio.Queue[AbstractIncomingMessage] = field(default_factory=asyncio.Queue)
    _holds: dict[str, LeaseHold] = field(default_factory=dict)
    _orphaned: set[str] = field(default_factory=set)

    async def acquire(self, claim: str, make: MakeMessage) -> LeaseHold:
        """Publish the first copy; return when the broker has confirmed it."""
        hold = LeaseHold(self, claim, make)
        self._holds[claim] = hold
        try:
            await self._publish(hold)
        except BaseException:
            hold.over = True
            raise
        return hold

    def resume(self, claim: str, copy: AbstractIncomingMessage, make: MakeMessage) -> LeaseHold:
        """Hold the lease of our earlier life that came to us as an orphan."""
        seq = copy.headers.get(Header.LEASE_SEQ)
        number = seq if isinstance(seq, int) else 1
        hold = self._holds[claim] = LeaseHold(self, claim, make, seq=number, held=number, copy=copy)
        self._orphaned.discard(claim)
        self.observer.lease_adopted()
        return hold

    async def renew(self) -> None:
        """Publish newer copies, every fifth of the lease's life and at least every 30 s, until cancelled."""
        pause = min(self.lifetime / 5, _LONGEST_RENEWAL).total_seconds()
        while True:
            await asyncio.sleep(pause)
            for hold in [hold for hold in self._holds.values() if not hold.over]:
                await self._publish(hold)

    async def use(self, connection: AbstractConnection) -> None:
        """Receive our copies until the connection ends."""
        # What we held went back into the queue with the last connection, and comes again.
        self._orphaned.clear()
        for hold in self._holds.values():
            hold.copy, hold.held = None, 0
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await self._declare(channel)
            queue = await channel.get_queue(self.names.worker_lease(self.worker), ensure=False)
            await queue.consume(self._arrived)
        await until_closed(channel)

    async def forget(self, hold: LeaseHold) -> None:
        """Ack the copy that is here; a newer one that is still on its way is acked when it arrives."""
        await self._ack(hold.copy)
        if hold.held >= hold.seq:
            self._holds.pop(hold.claim, None)

    async def _declare(self, channel: AbstractChannel) -> None:
        """The worker's own queue: made by the worker, gone a week after its last use."""
        name = self.names.worker_lease(self.worker)
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": 100,
            "x-dead-letter-exchange": self.names.lost,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-expires": 604_800_000,
        }
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(self.names.lease, self.worker)

    async def _publish(self, hold: LeaseHold) -> None:
        hold.seq += 1
        message = hold.make(claim=hold.claim, worker=self.worker, lease_seq=hold.seq)
        message.expiration = self.lifetime
        await self.publisher.publish_surely(self.names.lease, self.worker, message, mandatory=True)

    async def _arrived(self, message: AbstractIncomingMessage) -> None:
        claim, seq = message.headers.get(Header.CLAIM), message.headers.get(Header.LEASE_SEQ)
        hold = self._holds.get(claim) if isinstance(claim, str) else None
        if hold is None or not isinstance(seq, int):
            await self._take_orphan(str(claim), message)
            return
        if hold.over:
            await self._ack(message)
            hold.held = max(hold.held, seq)
            if hold.held >= hold.seq:
                self._holds.pop(hold.claim, None)
            return
        if seq <= hold.held:
            await self._ack(message)
            return
        older, hold.copy, hold.held = hold.copy, message, seq
        await self._ack(older)

    async def _take_orphan(self, claim: str, message: AbstractIncomingMessage) -> None:
        """One copy of a lease of our earlier life tells all; a second one would run the job twice."""
        if claim in self._orphaned:
            await self._ack(message)
            return
        self._orphaned.add(claim)
        self.orphans.put_nowait(message)

    async def _ack(self, message: AbstractIncomingMessage | None) -> None:
        if message is None:
            return
        try:
            await message.ack()
        except BROKER_FAULTS:
            log.debug("a lease could not be acked; it will come again")

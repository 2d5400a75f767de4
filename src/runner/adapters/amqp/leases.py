"""Leases: what makes a job ours while we run it.

A claimed job is held by a copy of its message in this worker's own queue, with a time to live. While we are connected
the copy is with us, unacked, where it cannot expire; it is renewed by publishing a newer copy and acking the older one
when the newer arrives (which proves both connections). When the connection is lost the copy goes back into the queue
and its time runs; when we are back it comes to us again. When we do not come back it expires, and the dead-letter
exchange hands it to `lost`. The delivery from the job queue is acked as soon as the first copy is confirmed, so no
time-out of the broker for unacked deliveries ever concerns a running job.

Only a copy in hand may be renewed: a lease whose copy does not come back may be somebody else's by now, and whoever
takes a job over says so, in a queue that waits for us (`docs/decisions/0001-leases.md` has the whole protocol).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import RPC_TIMEOUT, AckUnknown, acking, describe, until_closed
from runner.adapters.amqp.names import Header, Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.errors import BrokerError, PublishUncertain
from runner.flag import Flag

log = logging.getLogger(__name__)

_LONGEST_RENEWAL = timedelta(seconds=30)
_LONGEST_MARGIN = timedelta(seconds=10)
_AGAIN = 1.0
"""Seconds after which a renewal that failed is tried again."""
_MISSING = 30.0
"""Seconds after which a lease that neither came back nor was taken over is made again: the broker has lost it, or is
stuck with it (a queue's dead letters that were on their way when the broker was killed are sent again 3 min later)."""
_DRAINED_WITHIN = 5.0
_LOOK_AGAIN = 0.01
_WEEK = 604_800_000
_ENDED_KEPT = 10_000


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
    """One lease that we hold. `copy` is the newest that has arrived, None while none is here.

    `seq` is the newest copy that was published, `held` the newest that arrived, and `proven` when the newest that the
    broker has confirmed was published.
    """

    leases: "Leases"
    claim: str
    make: MakeMessage
    proven: float
    seq: int = 0
    held: int = 0
    copy: AbstractIncomingMessage | None = None
    away: bool = False
    renewing: bool = False
    taken: Flag = field(default_factory=Flag)
    known: Flag = field(default_factory=Flag)

    async def give_up(self) -> None:
        """The job is settled, or somebody else's: ack what we have, and whatever copy still arrives."""
        await self.leases.forget(self)

    def let_go(self) -> None:
        """Renew it no more, and leave its copy where it is: the broker gives it out again."""
        self.leases.let_go(self)

    async def taken_over(self) -> None:
        """Return when another worker has the job."""
        await self.taken.wait()

    async def ours(self) -> bool:
        """Whether the job is still ours; while the broker cannot tell, wait until it can."""
        await self.known.wait()
        return not self.taken.is_set()

    async def endangered(self, ahead: timedelta) -> None:
        """Return when we are cut off, and have been for so long that `ahead` from now another worker may start the job.

        That is reckoned from when the newest copy that the broker is known to have was published.
        """
        leases = self.leases
        while True:
            left = self.proven + (leases.lifetime - leases.margin - ahead).total_seconds() - leases.pulse.clock()
            if left <= 0 and leases.cut_off:
                return
            await asyncio.sleep(min(max(left, leases.pulse.period), leases.pause))


@dataclass(slots=True, kw_only=True)
class Leases:
    """All leases of this worker. `use` is a user of the consume link, whose `pulse` it reads; `renew` a task beside it.

    `orphans` are leases that came to us and that no running job of ours knows: those of our earlier life. `superseded`
    hears of claims that are somebody else's now.
    """

    names: Names
    worker: str
    lifetime: timedelta
    publisher: Publisher
    observer: LeaseObserver
    pulse: Pulse
    superseded: Callable[[str], Awaitable[None]]
    orphans: asyncio.Queue[AbstractIncomingMessage] = field(default_factory=asyncio.Queue)
    _holds: dict[str, LeaseHold] = field(default_factory=dict)
    _orphaned: set[str] = field(default_factory=set)
    _ended: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _back: asyncio.Queue[LeaseHold] = field(default_factory=asyncio.Queue)
    _since: float | None = None
    _news: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once we have heard of all that others took over before we first connected."""

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return min(self.lifetime / 5, _LONGEST_RENEWAL).total_seconds()

    @property
    def margin(self) -> timedelta:
        """How long before its lease expires a fenced job has to be dead: what a SIGKILL may take, and clocks differ."""
        return min(self.lifetime / 4, _LONGEST_MARGIN)

    @property
    def cut_off(self) -> bool:
        """Whether the broker has been silent for longer than it should."""
        return self.pulse.silent

    async def acquire(self, claim: str, make: MakeMessage) -> LeaseHold:
        """Publish the first copy; return when the broker has confirmed it."""
        hold = LeaseHold(self, claim, make, self.pulse.clock(), seq=1)
        self._holds[claim] = hold
        try:
            await self.publisher.publish_surely(self.names.lease, self.worker, self._message(hold), mandatory=True)
        except BaseException:
            self._end(hold)
            raise
        return hold

    def resume(self, claim: str, copy: AbstractIncomingMessage, make: MakeMessage) -> LeaseHold:
        """Hold the lease of our earlier life that came to us as an orphan."""
        seq = copy.headers.get(Header.LEASE_SEQ)
        number = seq if isinstance(seq, int) else 1
        hold = LeaseHold(self, claim, make, self.pulse.clock(), seq=number, held=number, copy=copy)
        hold.known.set()
        self._holds[claim] = hold
        self._orphaned.discard(claim)
        # Its time has run while we were away: it may have little left.
        self._back.put_nowait(hold)
        self.observer.lease_adopted()
        return hold

    async def renew(self) -> None:
        """Publish newer copies, every fifth of the lease's life and at least every 30 s, until cancelled.

        What comes back to us is renewed at once. A renewal that hangs holds up no other, and no second one is made.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                due = loop.time() + self.pause
                while (hold := await self._back_before(due)) is not None:
                    self._start_renewal(hold, tasks)
                for hold in self._holds.values():
                    self._start_renewal(hold, tasks)

    async def use(self, connection: AbstractConnection) -> None:
        """Receive our copies, and word of what others took over, until the connection ends."""
        self._orphaned.clear()
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                await self._declare(channel)
                news = await channel.get_queue(self.names.worker_superseded(self.worker), ensure=False)
                await news.consume(self._hear_superseded)
                queue = await channel.get_queue(self.names.worker_lease(self.worker), ensure=False)
                await queue.consume(self._arrived)
            self._since = self.pulse.clock()
            await until_closed(channel)
        finally:
            self._since = None
            # What we hold goes back into the queue with the connection, and comes to us again, or to somebody else.
            for hold in self._holds.values():
                hold.copy, hold.held, hold.away = None, 0, True
                hold.known.clear()

    async def forget(self, hold: LeaseHold) -> None:
        """Ack the copy that is here; another one that is still on its way is acked when it arrives."""
        self._end(hold)
        await self._ack(hold.copy)

    async def drained(self) -> None:
        """Return when no copy of a lease that was given up is on its way, after 5 s at most, or when we are cut off.

        One that comes into the queue when we are gone would expire there, and have a job run again that is over.
        """
        try:
            async with asyncio.timeout(_DRAINED_WITHIN):
                while self._since is not None and any(self._ended.values()):  # noqa: ASYNC110 - only who ends looks
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            late = [claim for claim, seq in self._ended.items() if seq]
            log.warning("copies of leases that were given up have not arrived", extra={"claims": late})

    def let_go(self, hold: LeaseHold) -> None:
        """Hold the lease no more; its copy comes with the next connection, an orphan like those of an earlier life."""
        self._holds.pop(hold.claim, None)

    async def _declare(self, channel: AbstractChannel) -> None:
        """The worker's own queues: made by the worker, gone a week after their last use."""
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": 100,
            "x-dead-letter-exchange": self.names.lost,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-expires": _WEEK,
        }
        queue = await channel.declare_queue(self.names.worker_lease(self.worker), durable=True, arguments=arguments)
        await queue.bind(self.names.lease, self.worker)
        # A queue of its own: a message without an end to its life would keep those behind it from expiring.
        name = self.names.worker_superseded(self.worker)
        news = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum", "x-expires": _WEEK})
        await news.bind(self.names.lease, self.names.superseded_key(self.worker))
        self._news = news.declaration_result.message_count or 0
        if not self._news:
            self.heard.set()

    async def _back_before(self, due: float) -> LeaseHold | None:
        """The next lease that came back to us; None when renewals are due."""
        try:
            async with asyncio.timeout_at(due):
                return await self._back.get()
        except TimeoutError:
            return None

    def _start_renewal(self, hold: LeaseHold, tasks: asyncio.TaskGroup) -> None:
        missing = self._since is not None and self.pulse.clock() - self._since > _MISSING
        if hold.claim in self._holds and not hold.renewing and (hold.copy is not None or missing):
            hold.renewing = True
            tasks.create_task(self._renew(hold))

    async def _renew(self, hold: LeaseHold) -> None:
        """Publish the next copy, once. It may wait for as long as the lease lives: the broker may have blocked us."""
        seq = hold.seq = hold.seq + 1
        published = self.pulse.clock()
        try:
            await self.publisher.publish(
                self.names.lease,
                self.worker,
                self._message(hold),
                mandatory=True,
                timeout=self.lifetime.total_seconds(),
            )
        except BrokerError as error:
            log.debug("a lease could not be renewed yet", extra={"claim": hold.claim, "fault": describe(error)})
            if not isinstance(error, PublishUncertain) and self._ended.get(hold.claim) == seq:
                self._ended[hold.claim] = 0  # it is not on its way
            await asyncio.sleep(_AGAIN)
            self._back.put_nowait(hold)
        else:
            hold.proven = published
        finally:
            hold.renewing = False

    def _message(self, hold: LeaseHold) -> aio_pika.Message:
        message = hold.make(claim=hold.claim, worker=self.worker, lease_seq=hold.seq)
        message.expiration = self.lifetime
        return message

    async def _arrived(self, message: AbstractIncomingMessage) -> None:
        claim, seq = str(message.headers.get(Header.CLAIM)), message.headers.get(Header.LEASE_SEQ)
        hold = self._holds.get(claim)
        if claim in self._ended:
            if isinstance(seq, int) and seq >= self._ended[claim]:
                self._ended[claim] = 0
            await self._ack(message)
        elif hold is None or not isinstance(seq, int):
            await self._take_orphan(claim, message)
        elif seq <= hold.held:
            await self._ack(message)
        else:
            older, hold.copy, hold.held, hold.seq = hold.copy, message, seq, max(hold.seq, seq)
            hold.known.set()
            if hold.away:
                hold.away = False
                self._back.put_nowait(hold)
            await self._ack(older)

    async def _take_orphan(self, claim: str, message: AbstractIncomingMessage) -> None:
        """One copy of a lease of our earlier life tells all; a second one would run the job twice."""
        if claim in self._orphaned:
            await self._ack(message)
            return
        self._orphaned.add(claim)
        self.orphans.put_nowait(message)

    async def _hear_superseded(self, message: AbstractIncomingMessage) -> None:
        claim = str(message.headers.get(Header.CLAIM))
        hold = self._holds.get(claim)
        if hold is not None:
            log.warning("another worker has taken a job over", extra={"claim": claim})
            self.observer.lease_lost()
            hold.taken.set()
            hold.known.set()
            await self.forget(hold)
        else:
            self._note_end(claim, 0)
        await self.superseded(claim)
        self._news -= 1
        if self._news <= 0:
            self.heard.set()
        await self._ack(message)

    def _end(self, hold: LeaseHold) -> None:
        self._holds.pop(hold.claim, None)
        on_its_way = hold.seq > hold.held and not hold.taken.is_set()
        self._note_end(hold.claim, hold.seq if on_its_way else 0)

    def _note_end(self, claim: str, on_its_way: int) -> None:
        """Remember that copies of the claim are to be acked, wherever they were all the time.

        `on_its_way` is the number of the newest one if that has not arrived, else 0.
        """
        self._ended[claim] = on_its_way
        while len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)

    async def _ack(self, message: AbstractIncomingMessage | None) -> None:
        if message is None:
            return
        try:
            with acking():
                await message.ack()
        except AckUnknown:
            log.debug("a lease could not be acked; it will come again")

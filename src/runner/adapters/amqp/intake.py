"""Takes jobs from the queues, never more than there is room for.

An open consumer with a prefetch of one is a reservation: it brings one job, at once, and no second one until the first
is settled. So there are never more open consumers than the worker wants jobs, and one is cancelled *before* its job is
acked when no further job is wanted. Which queues get the consumers is decided in `share`.

A queue has one consumer, until it has shown that more jobs wait in it than one: then it has up to `_WIDEST`, so that
one job is fetched while others are being claimed, and one again when no job has come for a while.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

from runner.adapters.amqp.link import (
    BROKER_FAULTS,
    RPC_TIMEOUT,
    SessionOver,
    acking,
    faults_as,
    until_closed,
)
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.pulse import boot_time
from runner.adapters.amqp.share import Shares
from runner.errors import BrokerError
from runner.ports import Delivery, QueueKey

_LOOK_AGAIN = 0.5
"""Seconds between two looks at the queues' depths while there is not room for all of them."""
_LOOK_PAST = 0.25
"""Seconds after which a job that is not settled has its queue's next one fetched beside it."""
_WIDEST = 4
"""How many jobs of one queue are fetched and claimed side by side."""
_AT_ONCE = 0.05
"""Seconds. A job that comes so soon after there was a place for it had been waiting, and maybe not alone."""
_FRESH = 0.05
"""Seconds for which it counts that the broker has answered on a channel: an ack that is sent then will reach it."""
_QUIET = 1.0
"""Seconds without a job after which a queue has one consumer again."""


def no_rank(_: QueueKey) -> float:
    """Prefers no queue."""
    return 0.0


Ack = Callable[[], Awaitable[None]]
Soon = Callable[[], None]
"""Says that the ack comes soon, so that what it needs from the broker is asked for now."""
Wrap = Callable[[AbstractIncomingMessage, QueueKey | None, Ack, Soon], Delivery]
"""Makes a delivery of a message. The ack it is given closes the consumer first when no more is wanted."""


@dataclass(slots=True, eq=False)
class _Tap:
    """One consumer with a prefetch of one. `holds` while its job is not settled; `since` is when that began or ended.

    One that is `kept` will be waiting for the next job as soon as the ack of this one is sent.
    """

    since: float
    tag: str | None = None
    holds: bool = False
    kept: bool = False


@dataclass(slots=True, eq=False)
class _Source:
    """One queue, and the channel with its consumers. `width` is how many there may be at a time."""

    key: QueueKey
    queue: AbstractQueue
    channel: AbstractChannel
    watch: asyncio.Task[None]
    taps: list[_Tap] = field(default_factory=list)
    width: int = 1
    came: float = 0.0
    _heard: float = float("-inf")
    _took: float = 0.0
    _to_ask: asyncio.Event = field(default_factory=asyncio.Event)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, bring: Callable[["_Source", _Tap, AbstractIncomingMessage], Awaitable[None]]) -> None:
        """Have one consumer more."""
        tap = _Tap(asyncio.get_running_loop().time())
        self.taps.append(tap)
        async with asyncio.timeout(RPC_TIMEOUT):
            tag = await self.queue.consume(partial(bring, self, tap))
        tap.tag = tag

    async def close(self, tap: _Tap) -> None:
        """End the consumer; the job that it holds stays valid. Returns when the broker has answered."""
        tag, tap.tag = tap.tag, None
        if tag is not None:
            async with asyncio.timeout(RPC_TIMEOUT):
                await self.queue.cancel(tag)
        self._forget(tap)  # not before: until it has the answer it may bring a job

    def ask(self) -> None:
        """Have the broker asked beside whatever goes on: `answers` will be awaited in a moment.

        Where answers take long, this one would be too old by then, and is not asked for.
        """
        if self._took <= _FRESH:
            self._to_ask.set()

    async def keep_asking(self) -> NoReturn:
        """Put the questions of `ask`, until cancelled."""
        while True:
            await self._to_ask.wait()
            self._to_ask.clear()
            await self.answers()

    async def answers(self) -> None:
        """Return when the broker has answered on the channel: an ack over a connection that is dead goes nowhere.

        A question put less than `_FRESH` before the call, or since, will do, whoever put it; unless the machine was
        suspended meanwhile.
        """
        came = boot_time()
        async with self._asking:
            while self._heard < max(came - _FRESH, boot_time() - RPC_TIMEOUT):
                asked = boot_time()
                async with asyncio.timeout(RPC_TIMEOUT):
                    await self.channel.set_qos(prefetch_count=1)
                self._heard, self._took = asked, boot_time() - asked

    def brought(self, tap: _Tap) -> bool:
        """The tap has a job now. True when it had been waiting, so that there may be more."""
        self.came = asyncio.get_running_loop().time()
        waited, tap.since, tap.holds = self.came - tap.since, self.came, True
        return waited < _AT_ONCE

    def settled(self, tap: _Tap) -> None:
        """The tap has no job any more."""
        tap.since, tap.holds, tap.kept = asyncio.get_running_loop().time(), False, False
        self._forget(tap)

    def _forget(self, tap: _Tap) -> None:
        # Whoever closes it and whoever settles its job may come here one after the other, in either order.
        if tap.tag is None and not tap.holds and tap in self.taps:
            self.taps.remove(tap)


@dataclass(slots=True)
class JobIntake:
    """The port `Intake` on RabbitMQ. `use` is a user of the consume link."""

    names: Names
    queues: Sequence[QueueKey]
    wrap: Wrap
    rank: Callable[[QueueKey], float | None] = no_rank
    backlog: dict[QueueKey, int] = field(default_factory=dict)
    _wanted: int = 0
    _looked: float = float("-inf")
    _closed: bool = False
    _taken: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _shares: Shares = field(default_factory=Shares)
    _sources: dict[QueueKey, _Source] = field(default_factory=dict)
    _late: list[AbstractIncomingMessage] = field(default_factory=list)
    _arranging: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self) -> Delivery:
        """Wait for the next delivery, whichever queue it comes from."""
        return await self._taken.get()

    def offer(self, delivery: Delivery) -> None:
        """Put in a delivery that came by another way: an expired lease, a job that nobody served."""
        self._taken.put_nowait(delivery)

    def want(self, count: int) -> None:
        """Be ready to take `count` more deliveries; each one that comes counts."""
        self._wanted = 0 if self._closed else count
        self._changed.set()

    async def close(self) -> None:
        """Stop taking, for good."""
        self._closed = True
        self.want(0)
        async with self._arranging:  # a consumer that is being opened would be forgotten
            for source, tap in list(self._taps()):
                try:
                    await source.close(tap)
                except BROKER_FAULTS:
                    continue  # the session is over; nothing comes from it any more
        for message in self._late:
            await _put_back(message)
        while not self._taken.empty():
            await _release(self._taken.get_nowait())

    async def use(self, connection: AbstractConnection) -> None:
        """Keep the right consumers open until the connection ends."""
        admin = await connection.channel(publisher_confirms=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(until_closed(admin))
                while True:
                    self._changed.clear()
                    async with self._arranging:
                        await self._arrange(connection, admin, tasks)
                    await self._until_changed()
        finally:
            self._sources.clear()

    async def _until_changed(self) -> None:
        # A queue that is not listened to has to be looked at: nothing else tells that its turn has come.
        tight = self._wanted > 0 and len(self._reserved()) < len(self.queues)
        wide = any(source.width > 1 for source in self._sources.values())
        try:
            async with asyncio.timeout(_LOOK_AGAIN if tight or wide else None):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _arrange(self, connection: AbstractConnection, admin: AbstractChannel, tasks: asyncio.TaskGroup) -> None:
        """Open and close consumers until they are those that are wanted now."""
        if self._wanted > 0 and self._outdated():
            await self._look(admin)
        self._narrow()
        chosen = self._choose()
        surplus = self._reserved() - chosen
        for source, tap in list(self._taps()):
            # Asked when its turn has come: while another one is closed, it may get a job, or its job may be settled.
            if surplus[source.key] > 0 and tap.tag is not None and not tap.holds:
                surplus[source.key] -= 1
                await source.close(tap)
        for queue in (chosen - self._reserved()).elements():
            source = self._sources.get(queue) or await self._make_source(queue, connection, tasks)
            if self._reserved().total() < self._wanted:  # a job may have come while the source was made
                await source.open(self._bring)

    def _taps(self) -> Iterator[tuple[_Source, _Tap]]:
        return ((source, tap) for source in self._sources.values() for tap in source.taps)

    def _narrow(self) -> None:
        """Where no job has come for a while, one consumer is enough again."""
        now = asyncio.get_running_loop().time()
        for source in self._sources.values():
            if now - source.came > _QUIET:
                source.width = 1

    def _reserved(self, without: _Tap | None = None) -> Counter[QueueKey]:
        """How many jobs of each queue may come without anybody's doing."""
        return Counter(source.key for source, tap in self._taps() if tap is not without and (tap.kept or not tap.holds))

    def _choose(self, without: _Tap | None = None) -> Counter[QueueKey]:
        """How many jobs to wait for in each queue; those that it has just brought wait to be settled, and count."""
        if self._wanted <= 0:
            return Counter()
        now = asyncio.get_running_loop().time()
        limits = {source.key: source.width for source in self._sources.values()}
        for source, tap in self._taps():
            if tap is not without and tap.holds and not tap.kept and now - tap.since < _LOOK_PAST:
                limits[source.key] -= 1
        return Counter(self._shares.choose(self._ranks(), self.backlog, self._wanted, limits))

    def _ranks(self) -> dict[QueueKey, float]:
        """The queues that may be listened to. One without a rank is not: its tenant runs as much as it may."""
        whose = {queue.tenant: queue for queue in self.queues}  # all shared queues have one rank
        ranks = {tenant: self.rank(queue) for tenant, queue in whose.items()}
        return {queue: rank for queue in self.queues if (rank := ranks[queue.tenant]) is not None}

    def _outdated(self) -> bool:
        """Whether the depths have to be looked at again. Where there is room for all queues, a little later will do."""
        now = asyncio.get_running_loop().time()
        return self._wanted < len(self.queues) or now - self._looked >= _LOOK_AGAIN

    async def _look(self, admin: AbstractChannel) -> None:
        """Count the jobs that wait in each queue (the broker's own count, by a passive declaration)."""
        for queue in self.queues:
            async with asyncio.timeout(RPC_TIMEOUT):
                declared = await admin.declare_queue(self.names.jobs(queue), passive=True)
            self.backlog[queue] = declared.declaration_result.message_count or 0
        self._looked = asyncio.get_running_loop().time()

    async def _make_source(self, queue: QueueKey, connection: AbstractConnection, tasks: asyncio.TaskGroup) -> _Source:
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=1)
            found = await channel.get_queue(self.names.jobs(queue), ensure=False)
        source = _Source(queue, found, channel, tasks.create_task(until_closed(channel)))
        tasks.create_task(source.keep_asking())
        self._sources[queue] = source
        return source

    async def _bring(self, source: _Source, tap: _Tap, message: AbstractIncomingMessage) -> None:
        if self._closed:
            self._late.append(message)  # put back when its consumer is gone, or it would come again at once
            return
        self._wanted = max(0, self._wanted - 1)
        # A tenant's own queue has its cap and its rank, which may be others with each job that is taken.
        if source.brought(tap) and source.key.tenant is None:
            source.width = min(source.width * 2, _WIDEST)
            self.backlog[source.key] = max(self.backlog.get(source.key, 0), 1)
        self._shares.served(source.key)

        async def ack() -> None:
            await self._settle(source, tap, message)

        self._taken.put_nowait(self.wrap(message, source.key, ack, source.ask))
        self._changed.set()

    async def _settle(self, source: _Source, tap: _Tap, message: AbstractIncomingMessage) -> None:
        with faults_as(SessionOver, "a delivery could not be acked"):
            tap.kept = self._keeps(source, tap)
            if tap.kept or tap.tag is None:
                await source.answers()
                tap.kept = tap.kept and self._keeps(source, tap)
            if tap.tag is not None and not tap.kept:
                await source.close(tap)
        if source.channel.is_closed:
            raise SessionOver("a delivery could not be acked: its channel is closed, and the broker has it back")
        source.settled(tap)
        self._changed.set()
        with acking():
            await message.ack()

    def _keeps(self, source: _Source, tap: _Tap) -> bool:
        """Whether another job is wanted of the tap when its own is settled."""
        reserved = self._reserved(without=tap)
        return (
            tap.tag is not None
            and reserved.total() < self._wanted
            and reserved[source.key] < self._choose(without=tap)[source.key]
        )


async def _put_back(message: AbstractIncomingMessage) -> None:
    try:
        await message.nack(requeue=True)
    except BROKER_FAULTS:
        return  # the broker has it back already


async def _release(delivery: Delivery) -> None:
    try:
        await delivery.release()
    except BrokerError:
        return  # the broker has it back already

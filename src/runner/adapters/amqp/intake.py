"""Takes jobs from the queues, never more than there is room for.

An open consumer with a prefetch of one is a reservation: it brings one job, at once, and no second one until the first
is settled. So there are never more open consumers than the worker wants jobs, and one is cancelled *before* its job is
acked when no further job is wanted. Which queues get the consumers is decided in `share`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, AckUnknown, SessionOver, describe, until_closed
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.share import Shares
from runner.errors import BrokerError
from runner.ports import Delivery, QueueKey

_LOOK_AGAIN = 0.5
"""Seconds between two looks at the queues' depths while there is not room for all of them."""
_LOOK_PAST = 0.25
"""Seconds after which a job that is not settled has its queue's next one fetched beside it."""


def no_rank(_: QueueKey) -> float:
    """Prefers no queue."""
    return 0.0


Ack = Callable[[], Awaitable[None]]
Wrap = Callable[[AbstractIncomingMessage, QueueKey | None, Ack], Delivery]
"""Makes a delivery of a message. The ack it is given closes the consumer first when no more is wanted."""


@dataclass(slots=True)
class _Tap:
    """One channel with one consumer on one queue."""

    queue: QueueKey
    name: str
    channel: AbstractChannel
    watch: asyncio.Task[None]
    tag: str | None = None
    busy_since: float | None = None

    async def open(self, bring: Callable[[AbstractIncomingMessage], Awaitable[None]]) -> None:
        async with asyncio.timeout(RPC_TIMEOUT):
            queue = await self.channel.get_queue(self.name, ensure=False)
            self.tag = await queue.consume(bring)

    async def answers(self) -> None:
        """Return when the broker has answered on the channel: an ack over a connection that is dead goes nowhere."""
        async with asyncio.timeout(RPC_TIMEOUT):
            await self.channel.set_qos(prefetch_count=1)

    async def close(self) -> None:
        tag, self.tag = self.tag, None
        if tag is not None:
            async with asyncio.timeout(RPC_TIMEOUT):
                queue = await self.channel.get_queue(self.name, ensure=False)
                await queue.cancel(tag)

    async def remove(self) -> None:
        self.watch.cancel()
        async with asyncio.timeout(RPC_TIMEOUT):
            await self.channel.close()


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
    _taps: list[_Tap] = field(default_factory=list)
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
            for tap in self._taps:
                try:
                    await tap.close()
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
            self._taps.clear()

    async def _until_changed(self) -> None:
        # A queue that is not listened to has to be looked at: nothing else tells that its turn has come.
        listening = {tap.queue for tap in self._taps if tap.tag and tap.busy_since is None}
        tight = self._wanted > 0 and len(listening) < len(self.queues)
        try:
            async with asyncio.timeout(_LOOK_AGAIN if tight else None):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _arrange(self, connection: AbstractConnection, admin: AbstractChannel, tasks: asyncio.TaskGroup) -> None:
        """Open and close consumers until they are those that are wanted now."""
        if self._wanted > 0 and self._outdated():
            await self._look(admin)
        chosen = self._choose()
        for tap in [tap for tap in self._taps if tap.tag and tap.busy_since is None and tap.queue not in chosen]:
            await tap.close()
        await self._remove_spare()
        listening = {tap.queue for tap in self._taps if tap.tag and tap.busy_since is None}
        for queue in chosen:
            if queue not in listening:
                await self._listen(queue, connection, tasks)

    def _choose(self) -> list[QueueKey]:
        """The queues that a consumer should wait on; those that have just brought a job wait for it to be settled."""
        if self._wanted <= 0:
            return []
        now = asyncio.get_running_loop().time()
        recent = {tap.queue for tap in self._taps if tap.busy_since is not None and now - tap.busy_since < _LOOK_PAST}
        return self._shares.choose(self._ranks(recent), self.backlog, self._wanted)

    def _ranks(self, without: Collection[QueueKey]) -> dict[QueueKey, float]:
        """The queues that may be listened to. One without a rank is not: its tenant runs as much as it may."""
        ranks = {queue: self.rank(queue) for queue in self.queues if queue not in without}
        return {queue: rank for queue, rank in ranks.items() if rank is not None}

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

    async def _listen(self, queue: QueueKey, connection: AbstractConnection, tasks: asyncio.TaskGroup) -> None:
        idle = next((tap for tap in self._taps if tap.queue == queue and not tap.tag and tap.busy_since is None), None)
        tap = idle or await self._make_tap(queue, connection, tasks)
        await tap.open(partial(self._bring, tap))

    async def _make_tap(self, queue: QueueKey, connection: AbstractConnection, tasks: asyncio.TaskGroup) -> _Tap:
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=1)
        tap = _Tap(queue, self.names.jobs(queue), channel, tasks.create_task(until_closed(channel)))
        self._taps.append(tap)
        return tap

    async def _bring(self, tap: _Tap, message: AbstractIncomingMessage) -> None:
        if self._closed:
            self._late.append(message)  # put back when its consumer is gone, or it would come again at once
            return
        self._wanted = max(0, self._wanted - 1)
        tap.busy_since = asyncio.get_running_loop().time()
        self._shares.served(tap.queue)

        async def ack() -> None:
            await self._settle(tap, message)

        self._taken.put_nowait(self.wrap(message, tap.queue, ack))
        self._changed.set()

    async def _settle(self, tap: _Tap, message: AbstractIncomingMessage) -> None:
        try:
            if tap.tag and tap.queue not in self._choose_after(tap):
                await tap.close()
            await tap.answers()
        except BROKER_FAULTS as error:
            raise SessionOver(f"a delivery could not be acked: {describe(error)}") from error
        try:
            await message.ack()
        except BROKER_FAULTS as error:
            raise AckUnknown(f"nobody knows whether a delivery was acked: {describe(error)}") from error
        tap.busy_since = None
        self._changed.set()

    def _choose_after(self, tap: _Tap) -> list[QueueKey]:
        """What would be listened to if the tap's job were settled."""
        others = [other.queue for other in self._taps if other is not tap and other.tag and other.busy_since is None]
        room = self._wanted - len(others)
        if room <= 0 or tap.queue in others:
            return []
        return self._shares.choose(self._ranks(others), self.backlog, room)

    async def _remove_spare(self) -> None:
        """Keep one channel for each queue; another one was for looking past a job that waited."""
        for tap in [tap for tap in self._taps if tap.tag is None and tap.busy_since is None]:
            if sum(1 for other in self._taps if other.queue == tap.queue) > 1:
                self._taps.remove(tap)
                await tap.remove()


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

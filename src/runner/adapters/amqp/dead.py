"""Goes through the dead letters: all of them are taken, what is decided on is settled, and the rest is put back.

A queue can only be looked at by taking from it. The broker puts back at the end, so that only who takes everything
leaves the order as it was. Nothing is ever lost: whatever happens, what was not acked comes back, and a letter is acked
only after its job was published, so that a crash in between publishes it twice.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.depths import count as count_messages
from runner.adapters.amqp.letters import Letter, read_letter
from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, describe
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.codec import new_id
from runner.errors import BrokerError
from runner.job import Route

TAKEN_MOST = 65_535
"""How many letters can be looked at: the most that a broker has on their way to one consumer."""
_NEXT_WITHIN = 3.0
"""Seconds after which no further letter comes, since somebody else has it."""
_PUBLISH_PATIENCE = 30.0
_LOOKS = 60
_LOOK_AGAIN = 0.05


class Fate(Enum):
    """What becomes of a letter."""

    KEEP = auto()
    DROP = auto()
    REPLAY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """How many letters were kept, and how many not.

    `unaddressed` ones were kept because they do not say where their jobs could go. `unseen` ones were beyond
    `TAKEN_MOST`, or in the hands of somebody else.
    """

    kept: int = 0
    dropped: int = 0
    replayed: int = 0
    unaddressed: int = 0
    unseen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Decides on each letter, oldest first, and hears of those that are `done` away with.

    `to` is where jobs are replayed to, if not back to where they came from.
    """

    decide: Callable[[Letter], Fate]
    done: Callable[[Letter], None]
    to: Route | None = None


async def sweep(connection: AbstractConnection, names: Names, judge: Judge) -> Swept:
    """Do with each letter as is decided. Raises `BrokerError`; then all that was not done yet is as it was."""
    try:
        async with _publisher(connection) as publisher, _taking(connection, names, judge) as taking:
            async for route, letter, message in taking.to_replay():
                await _replay(publisher, names.submit, route, letter, message)
                await message.ack()
                judge.done(letter)
    except BROKER_FAULTS as error:
        raise BrokerError(f"the dead letters cannot be looked at: {describe(error)}") from error
    counts = taking.counts
    return Swept(
        kept=counts[Fate.KEEP],
        dropped=counts[Fate.DROP],
        replayed=counts[Fate.REPLAY],
        unaddressed=taking.unaddressed,
        unseen=max(0, taking.waiting - sum(counts.values())),
    )


@dataclass(slots=True, kw_only=True)
class _Taking:
    """Letters as they come. Each is judged at once, so that the bodies of those that are kept take no memory."""

    names: Names
    judge: Judge
    waiting: int
    unaddressed: int = 0
    counts: dict[Fate, int] = field(default_factory=lambda: dict.fromkeys(Fate, 0))
    _chosen: deque[tuple[Route, Letter, AbstractIncomingMessage]] = field(default_factory=deque)
    _seen: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def hear(self, message: AbstractIncomingMessage) -> None:
        if self._seen == self.waiting:
            return  # it was buried just now
        self._seen += 1
        letter = read_letter(self.names, message)
        fate, route = self.judge.decide(letter), self.judge.to or letter.route
        if fate is Fate.REPLAY and route is None:
            self.unaddressed += 1
            fate = Fate.KEEP
        self.counts[fate] += 1
        if fate is Fate.REPLAY and route is not None:
            self._chosen.append((route, letter, message))
        self._news.set()
        if fate is Fate.DROP:
            await message.ack()
            self.judge.done(letter)

    async def to_replay(self) -> AsyncIterator[tuple[Route, Letter, AbstractIncomingMessage]]:
        """The letters to be replayed, until all have been seen, or no more come."""
        while True:
            while self._chosen:
                yield self._chosen.popleft()
            if self._seen == min(self.waiting, TAKEN_MOST):
                return
            self._news.clear()
            try:
                async with asyncio.timeout(_NEXT_WITHIN):
                    await self._news.wait()
            except TimeoutError:
                return


@asynccontextmanager
async def _taking(connection: AbstractConnection, names: Names, judge: Judge) -> AsyncIterator[_Taking]:
    """Takes all letters; those that are not acked are put back at the end, in their order."""
    async with asyncio.timeout(RPC_TIMEOUT):
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=TAKEN_MOST)
        queue = await channel.declare_queue(names.dead, passive=True)
        taking = _Taking(names=names, judge=judge, waiting=queue.declaration_result.message_count or 0)
        tag = await queue.consume(taking.hear)
    yield taking
    async with asyncio.timeout(RPC_TIMEOUT):
        await queue.cancel(tag)
        # Not by a nack: of many messages that come back by one, the broker loses the order.
        await channel.close()
    await _back(connection, names, taking.counts[Fate.KEEP])


async def _back(connection: AbstractConnection, names: Names, count: int) -> None:
    """Return when so many letters are in the queue again, so that whoever looks next sees them; soon, at any rate."""
    for _ in range(_LOOKS):
        (depth,) = await count_messages(connection, [names.dead])
        if depth.ready is None or depth.ready >= count:
            return
        await asyncio.sleep(_LOOK_AGAIN)


@asynccontextmanager
async def _publisher(connection: AbstractConnection) -> AsyncIterator[Publisher]:
    publisher = Publisher()
    serving = asyncio.create_task(publisher.use(connection))
    try:
        yield publisher
    finally:
        serving.cancel()
        await asyncio.wait((serving,))


async def _replay(
    publisher: Publisher, exchange: str, route: Route, letter: Letter, message: AbstractIncomingMessage
) -> None:
    """Publish the job as its submitter would: none of our headers, nor the broker's, count any more."""
    traceparent = message.headers.get("traceparent")
    job = aio_pika.Message(
        message.body,
        headers={"traceparent": traceparent} if isinstance(traceparent, str) else {},
        content_type=message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=letter.job_id or new_id(),
        timestamp=datetime.now(UTC),
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
    )
    async with asyncio.timeout(_PUBLISH_PATIENCE):
        await publisher.opened()
        await publisher.publish(exchange, str(route), job, mandatory=True)

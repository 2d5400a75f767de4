"""The two queues, of events and of logs, that bring a client what is told about all of the jobs that it follows."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, describe
from runner.adapters.amqp.names import Names
from runner.client.following import Following
from runner.errors import BrokerError

LOG_QUEUE_BYTES = 64 * 2**20
"""What the broker keeps for a client that does not read; the oldest is dropped beyond that."""
_KEY_WORDS = 2

Key = tuple[str, str]
"""Tenant and id, as they begin each routing key."""


class Subscription:
    """Queues of the client's own, which the broker removes with the connection."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._connection: AbstractConnection | None = None
        self._binding: AbstractChannel | None = None
        self._making = asyncio.Lock()
        self._adding = asyncio.Lock()  # a refusal closes the channel, which must not fail another one's bindings
        self._queues: list[tuple[AbstractQueue, str]] = []
        self._followings: dict[Key, list[Following]] = defaultdict(list)
        self._leaving: dict[Key, asyncio.Event] = {}  # their bindings are being taken away

    async def open(self, connection: AbstractConnection) -> None:
        """Declare the queues and listen. Raises `BrokerError`."""
        self._connection = connection
        connection.close_callbacks.add(self._lost)
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                channel.close_callbacks.add(self._lost)
                events = await channel.declare_queue(exclusive=True, auto_delete=True)
                logs = await channel.declare_queue(
                    exclusive=True,
                    auto_delete=True,
                    arguments={"x-max-length-bytes": LOG_QUEUE_BYTES, "x-overflow": "drop-head"},
                )
                self._queues = [(events, self._names.events), (logs, self._names.logs)]
                await events.consume(self._on_event, no_ack=True)
                await logs.consume(self._on_batch, no_ack=True)
        except BROKER_FAULTS as error:
            raise BrokerError(f"this client cannot subscribe: {describe(error)}") from error

    async def add(self, following: Following) -> None:
        """Return when nothing of the job can be missed any more. Raises `BrokerError`."""
        key = (following.key.tenant, following.key.id)
        while key in self._leaving:
            await self._leaving[key].wait()
        followings = self._followings[key]
        followings.append(following)
        bound = False
        try:
            async with self._adding:
                await self._bind(key)
            bound = True
        finally:
            if not bound:  # cancelled or refused; what was bound for it is taken away with what is over
                followings.remove(following)

    async def _bind(self, key: Key) -> None:
        channel: aiormq.abc.AbstractChannel | None = None
        try:
            channel = await self._binder()
            # A channel's commands are carried out in order: the answer to the last one is that to all.
            for queue, exchange in self._queues[:-1]:
                await channel.queue_bind(queue.name, exchange, _pattern(key), nowait=True, timeout=RPC_TIMEOUT)
            queue, exchange = self._queues[-1]
            await channel.queue_bind(queue.name, exchange, _pattern(key), timeout=RPC_TIMEOUT)
        except BROKER_FAULTS as error:
            why = _why(await _refusal(channel, error))
            raise BrokerError(f"this client cannot follow {'/'.join(key)}: {why}") from error

    def fail(self, reason: str) -> None:
        """Tell everybody who waits that nothing will come."""
        for followings in self._followings.values():
            for following in followings:
                following.fail(reason)

    async def forget_ended(self) -> None:
        """Take away the bindings of jobs that are over, so that their number stays small.

        Only whoever follows one of these again waits for that. One call at a time.
        """
        try:
            for key in [*self._followings]:
                if all(one.over for one in self._followings[key]):
                    await self._unbind(key)
        except BROKER_FAULTS:
            return  # those that are left are taken away the next time, or go with the connection

    async def _unbind(self, key: Key) -> None:
        left = self._leaving[key] = asyncio.Event()
        try:
            channel = await self._binder()
            for queue, exchange in self._queues:
                await channel.queue_unbind(queue.name, exchange, _pattern(key), timeout=RPC_TIMEOUT)
            del self._followings[key]
        finally:
            del self._leaving[key]
            left.set()

    async def _binder(self) -> aiormq.abc.AbstractChannel:
        """The channel for bindings: one of its own, since a refusal closes it, and must not end other jobs' news."""
        if self._connection is None:
            raise BrokerError("this client is not subscribed")
        async with asyncio.timeout(RPC_TIMEOUT), self._making:
            if self._binding is None or self._binding.is_closed:
                self._binding = await self._connection.channel(publisher_confirms=False)
            return await self._binding.get_underlay_channel()

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        self._give(message, Following.take_event)

    async def _on_batch(self, message: AbstractIncomingMessage) -> None:
        self._give(message, Following.take_batch)

    def _give(self, message: AbstractIncomingMessage, take: Callable[[Following, bytes], None]) -> None:
        words = (message.routing_key or "").split(".")
        if len(words) < _KEY_WORDS:
            return
        for following in self._followings.get((words[0], words[1]), ()):
            take(following, message.body)

    def _lost(self, _: object, error: BaseException | None) -> None:
        fault = f" ({describe(error)})" if error is not None else ""
        self.fail(f"the connection to the broker was lost{fault}; the job goes on without being followed")


def _pattern(key: Key) -> str:
    return f"{key[0]}.{key[1]}.#"


async def _refusal(channel: aiormq.abc.AbstractChannel | None, error: BaseException) -> BaseException:
    """Why the broker closed the channel, where it did so for what was sent before the call that failed."""
    if channel is None or not isinstance(error, aiormq.exceptions.ChannelInvalidStateError):
        return error
    closing = channel.closing
    await asyncio.wait({closing}, timeout=RPC_TIMEOUT)
    return (closing.exception() if closing.done() and not closing.cancelled() else None) or error


def _why(error: BaseException) -> str:
    if isinstance(error, aiormq.exceptions.ChannelNotFoundEntity):
        return "the topology is missing; have an operator run: runner topology apply"
    return describe(error)

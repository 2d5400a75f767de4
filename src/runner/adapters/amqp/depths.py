"""Counts what waits in the queues, and who listens to them."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import aiormq
from aio_pika.abc import AbstractConnection

from runner.adapters.amqp.link import RPC_TIMEOUT

_EVERY = 15.0
"""Seconds between two rounds: a count is a question to the broker for each queue and worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """A queue's count of messages that are ready, and of consumers; both None when there is no such queue for us."""

    queue: str
    ready: int | None = None
    consumers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """Tells the depth of each queue now and then. A user of the consume link."""

    queues: Sequence[str]
    tell: Callable[[str, int], None]

    async def use(self, connection: AbstractConnection) -> NoReturn:
        """Count until the connection ends, on channels of its own."""
        while True:
            for depth in await count(connection, self.queues):
                if depth.ready is not None:
                    self.tell(depth.queue, depth.ready)
            # Workers that were started together do not all ask together.
            await asyncio.sleep(_EVERY * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the load, keeps no secret


async def count(connection: AbstractConnection, queues: Sequence[str]) -> list[Depth]:
    """The broker's counts, by passive declarations. Raises one of `BROKER_FAULTS` when the connection is gone."""
    found: list[Depth] = []
    while len(found) < len(queues):
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
        try:
            for queue in queues[len(found) :]:
                async with asyncio.timeout(RPC_TIMEOUT):
                    result = (await channel.declare_queue(queue, passive=True)).declaration_result
                found.append(Depth(queue=queue, ready=result.message_count, consumers=result.consumer_count))
        except (aiormq.exceptions.ChannelNotFoundEntity, aiormq.exceptions.ChannelAccessRefused):
            found.append(Depth(queue=queues[len(found)]))  # which has closed the channel, too
            continue
        async with asyncio.timeout(RPC_TIMEOUT):
            await channel.close()
    return found

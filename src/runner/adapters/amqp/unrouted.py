"""Takes the jobs that no pool serves, so that their submitters hear of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.delivery import Desk, plain_ack
from runner.adapters.amqp.link import RPC_TIMEOUT, until_closed
from runner.ports import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrouted:
    """Hands messages of the queue for unrouted jobs to the worker, which rejects them. A user of the consume link."""

    desk: Desk
    offer: Callable[[Delivery], None]

    async def use(self, connection: AbstractConnection) -> None:
        """Take one at a time until the connection ends."""
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=1)
            queue = await channel.get_queue(self.desk.names.unrouted, ensure=False)
            await queue.consume(self._bring)
        await until_closed(channel)

    async def _bring(self, message: AbstractIncomingMessage) -> None:
        self.offer(self.desk.open_unrouted(message, plain_ack(message)))

"""What becomes of a lease that has expired: it is offered to its owner, then the job goes to whoever has room.

An expired lease says only that its owner was away for some time; after the broker itself was away, all leases may have
expired before any worker was back. So the first time a lease comes here it is put back into its owner's queue for a
while. An owner that is there takes it and goes on; else the broker brings it here again, and its owner has had its
chance. It is told that it was superseded, should it ever come back, and the job is run again. The broker holds the
lease at every moment, so that nothing is lost with the worker that sees to it.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.delivery import Desk, plain_ack
from runner.adapters.amqp.link import PAUSE_LONGEST, RPC_TIMEOUT, SessionOver, until_closed
from runner.adapters.amqp.names import Header
from runner.adapters.amqp.publisher import Unroutable
from runner.codec import new_id
from runner.errors import BrokerError
from runner.ports import Delivery

log = logging.getLogger(__name__)

_AGAIN = 1.0
_STUCK = 300.0
_TAKEN_KEPT = 10_000


@dataclass(slots=True, kw_only=True)
class Lost:
    """Sees to expired leases, one after the other. A user of the consume link.

    The broker has one worker of all do this at a time. A worker's room does not matter: jobs that are to run again go
    back into their own queues, as they may be of a pool or need a stack that this worker does not have.
    """

    desk: Desk
    worker: str
    heartbeat: timedelta
    offer: Callable[[Delivery], None]
    _since: float = 0.0
    _taken: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _stuck: asyncio.Event = field(default_factory=asyncio.Event)

    async def use(self, connection: AbstractConnection) -> None:
        """Take one at a time until the connection ends."""
        self._since = asyncio.get_running_loop().time()
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=1)
            queue = await channel.get_queue(self.desk.names.lost, ensure=False)
            await queue.consume(self._bring)
        self._stuck.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(until_closed(channel))
            await self._stuck.wait()
            raise SessionOver("an expired lease was stuck")

    async def _bring(self, message: AbstractIncomingMessage) -> None:
        claim, owner = str(message.headers.get(Header.CLAIM)), str(message.headers.get(Header.WORKER))
        try:
            if claim in self._taken:
                # There may be two copies of a lease: a worker can vanish between two steps of a renewal.
                await plain_ack(message)()
            elif (Header.OFFERED in message.headers and owner != self.worker) or not await self._give_back(
                message, claim, owner
            ):
                await self._take_over(message, claim, owner)
        except BrokerError:
            log.debug("an expired lease could not be settled; it will come again")

    async def _give_back(self, message: AbstractIncomingMessage, claim: str, owner: str) -> bool:
        """Put the lease into its owner's queue, for a while; false when the owner has no queue any more."""
        passport = self.desk.open(message, None, plain_ack(message)).passport
        seq = message.headers.get(Header.LEASE_SEQ)
        if passport is None or not isinstance(seq, int):
            return False
        copy = passport.message(claim=claim, worker=owner, lease_seq=seq, offered=1)
        copy.expiration = self._patience()
        while True:
            try:
                await self.desk.publisher.publish(self.desk.names.lease, owner, copy, mandatory=True)
            except Unroutable:
                return False
            except BrokerError as error:
                log.warning("an offer has to be repeated", extra={"owner": owner, "fault": str(error)})
                await asyncio.sleep(_AGAIN)
            else:
                break
        log.info("expired lease offered to its owner", extra={"claim": claim, "owner": owner})
        await plain_ack(message)()
        return True

    def _patience(self) -> float:
        """Seconds that an owner has. When the broker was away, all workers are on their way back to it as we were."""
        age = asyncio.get_running_loop().time() - self._since
        return max(PAUSE_LONGEST, 2 * PAUSE_LONGEST + self.heartbeat.total_seconds() - age)

    async def _take_over(self, message: AbstractIncomingMessage, claim: str, owner: str) -> None:
        """Tell the owner, for whenever it is back; then have the job run again."""
        log.warning("a job is taken over from a worker that went away", extra={"claim": claim, "owner": owner})
        names, publisher = self.desk.names, self.desk.publisher
        word = aio_pika.Message(
            b"",
            headers={Header.CLAIM.value: claim},
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=new_id(),
        )
        await publisher.publish_surely(names.lease, names.superseded_key(owner), word, mandatory=False)

        settled = asyncio.Event()

        async def ack() -> None:
            self._taken[claim] = None
            while len(self._taken) > _TAKEN_KEPT:
                self._taken.popitem(last=False)
            await plain_ack(message)()
            settled.set()

        self.offer(self.desk.open_lease(message, ack))
        await self._until_settled(settled)

    async def _until_settled(self, settled: asyncio.Event) -> None:
        """A worker that cannot settle a delivery (its disk is full, say) has to let another one do this."""
        try:
            async with asyncio.timeout(_STUCK):
                await settled.wait()
        except TimeoutError:
            log.error("an expired lease could not be settled here; another worker has to do it")  # noqa: TRY400
            self._stuck.set()

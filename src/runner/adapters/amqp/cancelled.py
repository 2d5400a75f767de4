"""Which jobs are not to run any more: read from the stream that everybody's cancels go into."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.control import cancel_reason
from runner.adapters.amqp.memory import Book, Cancel, Memory, Position
from runner.adapters.amqp.names import Names, is_smuggled
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.stream import Follower, Messages
from runner.codec import ID, WORD
from runner.job import JobKey

_WORDS = 4
"""`job.<tenant>.<job_id>.cancel`"""


@dataclass(slots=True, kw_only=True)
class Cancelled:
    """The port `Cancelled`. `use` is a user of the consume link; `cancel` is called for each cancel as it comes."""

    names: Names
    worker: str
    publisher: Publisher
    memory: Memory
    cancel: Callable[[JobKey, str], None]
    follower: Follower = field(init=False)

    def __post_init__(self) -> None:
        """Make the follower of the stream."""
        self.follower = Follower(
            names=self.names,
            worker=self.worker,
            book=Book.CANCELLED,
            publisher=self.publisher,
            memory=self.memory,
            keep=self._keep,
        )

    async def use(self, connection: AbstractConnection) -> None:
        """Follow until the connection ends."""
        await self.follower.use(connection)

    @property
    def up_to_date(self) -> bool:
        """Whether `reason` would answer at once."""
        return self.follower.up_to_date

    async def reason(self, key: JobKey) -> str | None:
        """Why the job was cancelled; None when it was not. Waits until we know of every cancel so far."""
        await self.follower.caught_up()
        return await self.memory.cancelled(key)

    async def _keep(self, messages: Messages, position: Position) -> None:
        cancels = [cancel for message in messages if (cancel := self._read(message)) is not None]
        await self.memory.add_cancels(cancels, position)
        for cancel in cancels:
            self.cancel(cancel.key, cancel.reason)

    def _read(self, message: AbstractIncomingMessage) -> Cancel | None:
        if message.exchange != self.names.control or is_smuggled(message.headers):
            return None
        key = cancelled_job(message.routing_key or "")
        return None if key is None else Cancel(key=key, reason=cancel_reason(message.body))


def cancelled_job(routing_key: str) -> JobKey | None:
    """The job that a routing key cancels; None when it cancels none.

    The broker checks a sender's permissions on this key alone, so nothing else may tell the tenant.
    """
    words = routing_key.split(".")
    if len(words) != _WORDS or words[0] != "job" or words[3] != "cancel":
        return None
    tenant, job_id = words[1], words[2]
    if not WORD.fullmatch(tenant) or not ID.fullmatch(job_id):
        return None
    return JobKey(tenant=tenant, id=job_id)

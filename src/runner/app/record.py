"""What jobs tell goes to two places: out into the world, and into this worker's history."""

from dataclasses import dataclass

from runner.adapters.amqp.events import EventPublisher
from runner.adapters.history import History
from runner.codec import encode_event
from runner.job import EventKind, JobKey
from runner.ports import Batch, Event, LogSink

_PATIENCE = 1.0
"""Seconds that a job which is over waits at most for its log and its record to be on the disk, beside the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvents:
    """The port `Events`."""

    publisher: EventPublisher
    history: History

    async def publish(self, event: Event) -> None:
        """Publish, and keep. The journal forgets a result when this returns, so by then the history has it.

        Written after it is told: whoever waits for it does not wait for the file as well.
        """
        notice = encode_event(event)
        self.history.note(notice)
        await self.publisher.send(notice)
        if event.kind is EventKind.FINISHED:
            await self.history.written(_PATIENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLogs:
    """The port `LogSink`."""

    publisher: LogSink
    history: History

    def offer(self, batch: Batch) -> None:
        """Publish when it can be done, and keep."""
        self.history.offer(batch)
        self.publisher.offer(batch)

    async def room(self, claim: str) -> None:
        """Return when the publisher has room for the claim's next batch."""
        await self.publisher.room(claim)

    def confirmed(self, claim: str) -> int:
        """How far the broker has it."""
        return self.publisher.confirmed(claim)

    async def flush(self, key: JobKey, claim: str, timeout: float) -> bool:
        """Whether the broker has all batches; the history has them, too, but its troubles make no log incomplete."""
        self.history.hurry()
        delivered = await self.publisher.flush(key, claim, timeout)
        await self.history.hurried(_PATIENCE)
        return delivered

    def forget(self, claim: str) -> None:
        """Nothing more comes for the claim."""
        self.publisher.forget(claim)

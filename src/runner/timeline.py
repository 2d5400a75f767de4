"""The events of one claim, in order, each confirmed before the claim is settled."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypedDict, Unpack

from runner.job import EventKind, Invalid, Job, JobResult, Json, Outcome, Stack, StopReason
from runner.ports import Event, Events


class Details(TypedDict, total=False):
    """What an event may say beside what all events of a claim say; see `runner.ports.Event`."""

    reason: str | None
    container: str | None
    warm: bool | None
    deadline: datetime | None
    progress: Json
    stop: StopReason | None
    outcome: Outcome | None
    delay: timedelta | None
    result: JobResult | None


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Tells what happens to one job while one worker has it. `tasks` owns the publishing."""

    events: Events
    tasks: asyncio.TaskGroup
    now: Callable[[], datetime]
    submission: Job | Invalid
    worker: str
    claim: str
    attempt: int
    stack: Stack | None = None
    claimed: datetime | None = None
    started: datetime | None = None
    seq: int = 0
    _untold: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def job_id(self) -> str:
        """The job's id, whatever was submitted."""
        return self.submission.key.id if isinstance(self.submission, Job) else self.submission.id

    def event(self, kind: EventKind, *, again: int | None = None, **details: Unpack[Details]) -> Event:
        """The next event; `send` it, or nobody hears of it.

        `again` is its number where an earlier life may have told it: whoever knows that one then drops this one.
        """
        if again is None:
            self.seq += 1
        return Event(
            kind=kind,
            submission=self.submission,
            worker=self.worker,
            claim=self.claim,
            seq=self.seq if again is None else again,
            attempt=self.attempt,
            time=self.now(),
            claimed=self.claimed,
            started=self.started,
            stack=self.stack,
            **details,
        )

    @property
    def behind(self) -> bool:
        """Whether the broker has not confirmed all events so far."""
        return any(not task.done() for task in self._untold)

    def send(self, event: Event) -> asyncio.Task[None]:
        """Have the event published, after all that were sent before; done when the broker has confirmed it."""
        self._untold = [task for task in self._untold if not task.done()]
        # Tasks start in the order of their making, and a channel sends in the order of its callers.
        telling = self.tasks.create_task(self.events.publish(event))
        self._untold.append(telling)
        return telling

    def tell(self, kind: EventKind, *, again: int | None = None, **details: Unpack[Details]) -> asyncio.Task[None]:
        """Make the next event and send it."""
        return self.send(self.event(kind, again=again, **details))

    async def told(self) -> None:
        """Return when the broker has confirmed every event so far."""
        while self._untold:
            await self._untold[0]
            del self._untold[0]

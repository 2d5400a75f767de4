"""The events of one claim, in order, each confirmed before the claim is settled."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runner.job import EventKind, Invalid, Job, JobResult, Json, Outcome, Stack, StopReason
from runner.ports import Event, Events


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
    _seq: int = 0
    _untold: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def job_id(self) -> str:
        """The job's id, whatever was submitted."""
        return self.submission.key.id if isinstance(self.submission, Job) else self.submission.id

    def tell(
        self,
        kind: EventKind,
        *,
        reason: str | None = None,
        container: str | None = None,
        warm: bool | None = None,
        deadline: datetime | None = None,
        progress: Json = None,
        stop: StopReason | None = None,
        outcome: Outcome | None = None,
        delay: timedelta | None = None,
        result: JobResult | None = None,
    ) -> None:
        """Have the event published, after all that were told before."""
        self._seq += 1
        event = Event(
            kind=kind,
            submission=self.submission,
            worker=self.worker,
            claim=self.claim,
            seq=self._seq,
            attempt=self.attempt,
            time=self.now(),
            stack=self.stack,
            reason=reason,
            container=container,
            warm=warm,
            deadline=deadline,
            progress=progress,
            stop=stop,
            outcome=outcome,
            delay=delay,
            result=result,
        )
        # Tasks start in the order of their making, and a channel sends in the order of its callers.
        self._untold.append(self.tasks.create_task(self.events.publish(event)))

    async def told(self) -> None:
        """Return when the broker has confirmed every event so far."""
        while self._untold:
            await self._untold[0]
            del self._untold[0]

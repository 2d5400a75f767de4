"""What the jobs of one worker share: the outside, the rules, the ledger, who is here, and how it is about to end."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runner.capacity import Capacity
from runner.executor import Run
from runner.fairness import Fairness
from runner.job import Choices, Job, JobKey, JobResult, StopReason, Times, container_name
from runner.plan import Policy
from runner.ports import (
    Cancelled,
    ClaimRecord,
    Delivery,
    Engine,
    Events,
    Intake,
    Journal,
    LogSink,
    Observer,
    OpenClaim,
    Phases,
    Secrets,
    Stacks,
    Uniqueness,
)
from runner.units import format_duration

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Everything that a worker needs from the outside."""

    intake: Intake
    engine: Engine
    secrets: Secrets
    events: Events
    log_sink: LogSink
    journal: Journal
    stacks: Stacks
    cancelled: Cancelled
    uniqueness: Uniqueness
    observer: Observer
    now: Callable[[], datetime]
    new_claim: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How this worker behaves, from its settings."""

    name: str
    policy: Policy
    max_lost: int
    max_deferred: timedelta
    drain_timeout: timedelta

    def nobody(self, reason: str) -> str:
        """Why a job is rejected that no worker could run for as long as it was passed on."""
        longest = self.max_deferred
        passed = f"passed on for {format_duration(longest)}" if longest else "not passed on"
        return f"{reason}; {passed}, and no worker could run it"


@dataclass(slots=True)
class Held:
    """A job that this worker has: taken, waiting for room, or running.

    A `quarantined` one has ended, and its container resists being removed: it keeps its room, and nobody waits for it.
    `waited` is the id of the container that waited for it. `removal` is that of one that did not wait for its settling.
    """

    claim: str
    job: Job
    delivery: Delivery
    admitted: asyncio.Future[None]
    claimed: bool = False
    run: Run | None = None
    cancelled: str | None = None
    cpu_seconds: float | None = None
    quarantined: bool = False
    removal: asyncio.Task[None] | None = None
    waited: str | None = None

    def has(self, key: JobKey) -> bool:
        """Whether this is that job, and the broker has not given it to somebody else meanwhile."""
        return self.job.key == key and (self.claimed or self.delivery.live)


@dataclass(slots=True, kw_only=True)
class Workplace:
    """What the jobs of one worker share. `admit` has the worker look who may start now, `rest` whether it is idle.

    `adoptable` are the claims of an earlier life that nothing was heard of yet, and `arriving` counts the deliveries
    that the ledger does not know of. The last three say how running jobs are to end.
    """

    rules: Rules
    outside: Outside
    capacity: Capacity
    fairness: Fairness
    admit: Callable[[], None]
    rest: Callable[[], None]
    adoptable: dict[str, OpenClaim]
    held: dict[str, Held] = field(default_factory=dict)
    arriving: int = 0
    stopping: bool = False
    at_once: bool = False
    handing_over: bool = False

    @property
    def policy(self) -> Policy:
        """What the operator lays down, within what there could be now if every job ended that will."""
        policy, reach = self.rules.policy, self.capacity.reach
        return replace(
            policy,
            cpus=min(policy.cpus, reach.millicpus / 1000),
            memory=min(policy.memory, reach.memory),
            scratch=reach.disk,
        )

    def wanted(self, tenant: str) -> bool:
        """Whether what the tenant's jobs claim keeps another one from starting, or from being asked for."""
        return self.capacity.wanted() or self.fairness.full(tenant)

    def cancel(self, key: JobKey, reason: str) -> None:
        """End the job if it is here."""
        for held in self.held.values():
            if held.job.key == key:
                held.cancelled = reason
                if held.run is not None:
                    held.run.stop(StopReason.CANCELLED, reason)
                elif not held.admitted.done():
                    held.admitted.set_result(None)

    def record(
        self, claim: str, key: JobKey, claimed: datetime, number: int, choices: Choices | None = None
    ) -> ClaimRecord:
        """A claim for the journal."""
        return ClaimRecord(
            claim=claim,
            key=key,
            container_name=container_name(self.rules.name, claim),
            attempt=number,
            claimed=claimed,
            choices=choices,
        )

    def report(self, result: JobResult, stack: str | None, key: JobKey, attempt: int) -> None:
        """Count and log the end of a job."""
        self.outside.observer.job_ended(stack, result.verdict.outcome, _phases(result.times))
        log.info(
            "job finished",
            extra={
                "job_id": key.id,
                "tenant": key.tenant,
                "attempt": attempt,
                "outcome": result.verdict.outcome.value,
                "reason": result.verdict.reason,
            },
        )


def _phases(times: Times) -> Phases:
    def between(start: datetime | None, end: datetime | None) -> float | None:
        return max(0.0, (end - start).total_seconds()) if start and end else None

    return Phases(
        queued=between(times.published, times.claimed),
        prepare=between(times.claimed, times.started),
        run=between(times.started, times.ended),
    )

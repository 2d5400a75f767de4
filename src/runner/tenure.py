"""A CLAIMED job: run it under its lease, tell how it ended, settle."""

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from runner.errors import BrokerError, DeferredError, EngineUnfit, ImageMissing, RejectedError
from runner.executor import Run
from runner.job import (
    Attempt,
    Blame,
    Choices,
    DeadCode,
    EventKind,
    JobResult,
    Outcome,
    Plan,
    StopReason,
    Times,
    Verdict,
)
from runner.ports import Event, Lease, OpenClaim, Phases
from runner.retry import History, Retry, decide, deferral
from runner.timeline import Timeline
from runner.units import format_duration
from runner.workplace import Held, Workplace

log = logging.getLogger(__name__)

_RESISTS_AFTER = 90.0
"""Seconds after which a removal may never end: more than those for which a create that got no answer is awaited."""
_REMOVED_WITHIN = 5.0
"""Seconds for which the settling waits for the removal of what may still run: it may be retried at once."""
_UNFIT_FOR = timedelta(hours=1)
"""How long a job is passed on from worker to worker whose engines start nothing, until that counts as a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """One claim of one job, from its lease to its settling."""

    place: Workplace
    held: Held
    lease: Lease
    timeline: Timeline

    async def begin(self, plan: Plan, claimed: datetime) -> None:
        """Start the job."""
        if self.held.job.unique is not None:
            record = self.place.record(self.held.claim, self.held.job.key, claimed, self.lease.number, Choices.of(plan))
            record = replace(record, told=self.timeline.seq + 1, waited=self.held.waited)
            await self.place.outside.journal.claimed(record)
        await self._see_through(self._make_run(plan, claimed))

    async def go_on(self, plan: Plan, earlier: OpenClaim) -> None:
        """See to the end what our earlier life began."""
        await self.place.outside.journal.adopted(self.held.claim)
        await self._see_through(self._make_run(plan, earlier.record.claimed, earlier))

    async def may_start(self, run: str) -> bool:
        """Deal with a unique job, which is of that run and not the only one: false when there is nothing to start.

        Asked under the lease, which has the run in it: a run that has won must not be forgotten by a crash.
        """
        key, span, outside = self.held.job.key, self.held.job.unique, self.place.outside
        if span is None:
            return True
        try:
            if await outside.uniqueness.wins(key, run, self.held.claim, span):
                return True
        except BrokerError as error:
            await self._pass_on(str(error))
            return False
        reason = f"another job of this id was started, and for {format_duration(span)} it is to be the only one"
        self.timeline.tell(EventKind.DUPLICATE, reason=reason)
        await self.timeline.told()
        await outside.journal.claimed(self.place.record(self.held.claim, key, outside.now(), self.lease.number))
        await outside.journal.ended(self.held.claim, finished=False)
        await self.lease.settle()
        return False

    async def _see_through(self, run: Run) -> None:
        """Run the job to its settling, and leave nothing of it."""
        place, held = self.place, self.held
        held.run = run
        if held.cancelled is not None:
            run.stop(StopReason.CANCELLED, held.cancelled)
        if place.stopping:
            run.stop(StopReason.SHUTDOWN, at_once=place.at_once)
        try:
            held.cpu_seconds = await self._run(run)
        finally:
            if not place.handing_over:
                await self._clean_up(run.attempt)

    async def _clean_up(self, attempt: Attempt) -> None:
        """Leave nothing of the job, however long that takes."""
        loop = asyncio.get_running_loop()
        ended = loop.time()
        await self._discard(attempt, patient=True)
        self.place.outside.observer.cleaned_up(attempt.plan.stack.name, loop.time() - ended)

    async def _discard(self, attempt: Attempt, *, patient: bool = False) -> None:
        """Remove what is left of it; a `patient` one only as long as nobody wants what it claims."""
        resisting = asyncio.get_running_loop().call_later(_RESISTS_AFTER, self._quarantine)
        try:
            if (removal := self.held.removal) is not None:
                await asyncio.wait({removal})
            if removal is None or removal.cancelled():
                patient = patient and not self.place.wanted(self.held.job.route.tenant)
                await self.place.outside.engine.discard(attempt, patient=patient)
        finally:
            resisting.cancel()

    async def _discard_ahead(self, attempt: Attempt) -> None:
        """Begin to remove what may still run: it may be long until all is told, and nothing holds it to its time."""
        discard = self.place.outside.engine.discard(attempt)
        removal = self.held.removal = self.timeline.tasks.create_task(discard)
        await asyncio.wait({removal}, timeout=_REMOVED_WITHIN)

    def _quarantine(self) -> None:
        log.error(
            "a container resists its removal; what the job claimed stays taken",
            extra={"job_id": self.held.job.key.id, "claim": self.held.claim},
        )
        self.held.quarantined = True
        self.place.capacity.quarantine(self.held.claim)
        self.place.rest()

    def _make_run(self, plan: Plan, claimed: datetime, earlier: OpenClaim | None = None) -> Run:
        outside = self.place.outside
        return Run(
            attempt=Attempt(plan=plan, worker=self.place.rules.name, claim=self.held.claim, number=self.lease.number),
            claimed=claimed,
            engine=outside.engine,
            secrets=outside.secrets,
            log_sink=outside.log_sink,
            journal=outside.journal,
            observer=outside.observer,
            timeline=self.timeline,
            now=outside.now,
            earlier=earlier,
        )

    async def _run(self, run: Run) -> float | None:
        """Run the job and settle it; the CPU seconds that it used, if known."""
        outside, timeline = self.place.outside, self.timeline
        watches = [timeline.tasks.create_task(_stop_unless_ours(run, self.lease))]
        if self.held.job.fence:
            watches.append(timeline.tasks.create_task(_fence(run, self.lease)))
        try:
            result = await run.execute()
        except ImageMissing as error:
            outside.stacks.invalidate(run.attempt.plan.stack.name)
            await self._pass_on(str(error))
            return 0.0
        except EngineUnfit as error:
            await self._hand_back(str(error), run.attempt)
            return 0.0
        except DeferredError as error:
            await self._pass_on(error.reason)
            return 0.0
        except RejectedError as error:
            await self._reject(error.reason, operator=error.operator)
            return 0.0
        finally:
            for watch in watches:
                watch.cancel()
        if run.stopped is StopReason.SUPERSEDED:
            # What is left of it has to go now: it may be long until the broker can tell whose the job is.
            await self._discard(run.attempt)
        elif run.may_live:
            await self._discard_ahead(run.attempt)
        if await self.lease.ours():
            await self._conclude(result, run.attempt)
        else:
            log.warning("job left to another worker", extra={"job_id": timeline.job_id, "claim": timeline.claim})
            await timeline.told()
            await outside.journal.ended(timeline.claim, finished=False)
        return result.usage.cpu_seconds

    async def _pass_on(self, reason: str) -> None:
        """Let another worker try a job that was claimed here and not started."""
        delay = deferral(self.lease.deferrals + 1, self.place.rules.max_deferred)
        if delay is None:
            await self._reject(self.place.rules.nobody(reason))
            return
        await self._defer(reason, delay)

    async def _hand_back(self, reason: str, attempt: Attempt) -> None:
        """Let another worker try a job that the platform has not even begun with; that is nobody's failure for long."""
        delay = deferral(self.lease.deferrals + 1, _UNFIT_FOR)
        if delay is not None:
            await self._defer(reason, delay)
            return
        verdict = Verdict(outcome=Outcome.LOST, reason=reason, blame=Blame.PLATFORM)
        job, outside = self.held.job, self.place.outside
        times = Times(published=job.published, claimed=self.timeline.claimed, ended=outside.now())
        await self._conclude(JobResult(verdict=verdict, times=times), attempt)

    async def _defer(self, reason: str, delay: timedelta) -> None:
        self.timeline.tell(EventKind.DEFERRED, reason=reason, delay=delay)
        await self.timeline.told()
        await self.lease.defer(delay)
        await self.place.outside.journal.ended(self.timeline.claim, finished=False)
        self.place.outside.observer.deferred()

    async def _reject(self, reason: str, *, operator: bool = False) -> None:
        """Tell why a job that was claimed here is not run by anybody, and keep its message for who is to mend it."""
        timeline, outside = self.timeline, self.place.outside
        # First, for a crash after it brings a second letter at most, and one before the last event none at all.
        await self.lease.bury(DeadCode.REJECTED, reason)
        last = rejection(timeline, reason, operator=operator)
        await outside.journal.ended(timeline.claim, finished=True, owed=last)
        timeline.send(last)
        await timeline.told()
        await outside.journal.paid(timeline.claim)
        await self.lease.settle()
        outside.observer.buried(DeadCode.REJECTED)
        outside.observer.job_ended(self.held.job.stack.name, Outcome.REJECTED, Phases())
        log.info("job rejected", extra={"job_id": timeline.job_id, "reason": reason})

    async def _conclude(self, result: JobResult, attempt: Attempt) -> None:
        """Tell how the attempt ended, then settle: the job is over, or starts again."""
        job, verdict, timeline, outside = attempt.plan.job, result.verdict, self.timeline, self.place.outside
        history = History(attempts=self.lease.number, lost=self.lease.lost, given_back=self.lease.given_back)
        decision = decide(verdict, job.retry, history, self.place.rules.max_lost)
        if isinstance(decision, Retry):
            timeline.tell(EventKind.RETRYING, outcome=verdict.outcome, delay=decision.delay, reason=verdict.reason)
            await timeline.told()
            # In this order: a lease whose claim is over counts as settled, and a crash in between would lose the job.
            await self.lease.retry(decision.delay, verdict.blame)
            await outside.journal.ended(timeline.claim, finished=False)
            outside.observer.retried(verdict.blame)
            return
        last = timeline.event(EventKind.FINISHED, result=result)
        await outside.journal.ended(timeline.claim, finished=True, owed=last)
        timeline.send(last)
        await timeline.told()
        await outside.journal.paid(timeline.claim)
        await self.lease.settle()
        self.place.report(result, attempt.plan.stack.name, job.key, attempt.number)


def rejection(timeline: Timeline, reason: str, *, operator: bool = False) -> Event:
    """Tells that the job is rejected; the `finished` that has to follow."""
    timeline.attempt = 0
    blame = Blame.OPERATOR if operator else Blame.REQUEST
    verdict = Verdict(outcome=Outcome.REJECTED, reason=reason, blame=blame)
    times = Times(published=timeline.submission.published, claimed=timeline.claimed, ended=timeline.now())
    timeline.tell(EventKind.REJECTED, reason=reason)
    return timeline.event(EventKind.FINISHED, result=JobResult(verdict=verdict, times=times))


async def _stop_unless_ours(run: Run, lease: Lease) -> None:
    """End the job when another worker has it."""
    await lease.taken_over()
    run.stop(StopReason.SUPERSEDED)


async def _fence(run: Run, lease: Lease) -> None:
    """End the job before another worker may have it."""
    why = "its worker was cut off from the broker for nearly as long as its lease, and the job is fenced"
    await lease.endangered(run.attempt.plan.limits.grace)
    run.stop(StopReason.SUPERSEDED, why)
    await lease.endangered(timedelta())
    run.stop(StopReason.SUPERSEDED, why, at_once=True)

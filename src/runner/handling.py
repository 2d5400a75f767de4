"""ONE delivery: decide what becomes of it, wait for room, claim it, and hand it on to its tenure."""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runner.capacity import Claim
from runner.errors import BrokerError, DeferredError, EngineError, RejectedError
from runner.job import (
    Blame,
    Choices,
    DeadCode,
    EventKind,
    Invalid,
    Job,
    JobKey,
    JobResult,
    Outcome,
    Plan,
    Times,
    Verdict,
    container_name,
)
from runner.noting import note
from runner.plan import check_request, make_plan
from runner.ports import Delivery, Lease, OpenClaim, Phases
from runner.retry import deferral
from runner.tenure import Tenure, rejection
from runner.timeline import Timeline
from runner.units import format_duration
from runner.workplace import Held, Workplace

log = logging.getLogger(__name__)

_DUPLICATES_FOR = timedelta(minutes=10)
_CLOCKS_DIFFER = timedelta(seconds=1)
"""A delay that the broker has seen to is over, even if this machine's clock is a little behind."""
_CAPPED_AGAIN = timedelta(seconds=2)
"""How long a job of the shared queue waits in the broker whose tenant runs as much here as it may."""
_SEQ_OF_A_LIFE = 1000
"""Events of a claim that goes on in another life are counted on from the next multiple of this."""


@dataclass(slots=True, kw_only=True)
class Handling:
    """One delivery, from its taking until it is settled."""

    place: Workplace
    delivery: Delivery
    lease: Lease | None = None
    timeline: Timeline = field(init=False)
    _arriving: bool = True
    _queued: bool = False

    def __post_init__(self) -> None:
        """Count it until the ledger does."""
        self.place.arriving += 1

    def arrived(self) -> None:
        """The ledger knows of it, or it is over."""
        if self._arriving:
            self.place.arriving -= 1
            self._arriving = False

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """See the delivery to its end; `tasks` owns what goes on beside it."""
        submission, vanished = self.delivery.submission, self.delivery.vanished
        self.timeline = self._timeline(tasks)
        if isinstance(submission, Invalid):
            await self._reject(submission.code, submission.reason)
            return
        known = any(held.has(submission.key) for held in self.place.held.values())
        if vanished is not None and (not self.delivery.live or vanished.claim in self.place.held):
            return  # it came twice, over a connection that broke meanwhile; the other one counts
        if vanished is not None and vanished.claim in self.place.adoptable:
            await self._adopt(submission, self.place.adoptable.pop(vanished.claim))
            return
        held = self._hold(self.timeline.claim, submission)
        try:
            await self._recall(submission.key)
            if self.delivery.fresh and (known or await self._finished_lately(submission.key)):
                await self._drop_duplicate()
            elif await self._is_lost_for_good(held):
                return
            elif vanished is not None and vanished.worker != self.place.rules.name:
                # Back into its own queue: we may be full, of another pool, or without its stack.
                await self.timeline.told()
                await self.delivery.defer(timedelta())
            else:
                await self._plan_and_run(held)
        finally:
            self._let_go(held)

    def _timeline(self, tasks: asyncio.TaskGroup) -> Timeline:
        submission, outside = self.delivery.submission, self.place.outside
        return Timeline(
            events=outside.events,
            tasks=tasks,
            now=outside.now,
            submission=submission,
            worker=self.place.rules.name,
            claim=outside.new_claim(),
            attempt=0 if isinstance(submission, Invalid) else self.delivery.number,
        )

    def _hold(self, claim: str, job: Job, *, claimed: bool = False) -> Held:
        admitted = asyncio.get_running_loop().create_future()
        held = self.place.held[claim] = Held(claim, job, self.delivery, admitted, claimed=claimed)
        return held

    def _let_go(self, held: Held) -> None:
        place = self.place
        del place.held[held.claim]
        place.capacity.withdraw(held.claim)
        place.capacity.release(held.claim)
        place.fairness.ended(held.claim, held.cpu_seconds, asyncio.get_running_loop().time())
        place.admit()

    async def _adopt(self, job: Job, earlier: OpenClaim) -> None:
        """Go on with a job that our earlier life started: same claim, same container, same deadline."""
        record, choices, place, timeline = earlier.record, earlier.record.choices, self.place, self.timeline
        if choices is None:
            raise AssertionError("a claim without a plan was to be adopted")
        plan, claim = choices.plan(job), record.claim
        timeline.claim, timeline.attempt, timeline.stack = claim, record.attempt, choices.stack
        timeline.claimed = record.claimed
        timeline.seq = _SEQ_OF_A_LIFE * (earlier.lives + 1)
        held = self._hold(claim, job, claimed=True)
        lasts = plan.limits.timeout + plan.limits.grace
        now = asyncio.get_running_loop().time()
        place.capacity.adopt(claim, Claim.of(plan.limits), lasts, now)
        place.fairness.started(claim, job.route.tenant, plan.limits.cpus, now)
        self.arrived()
        # Beside it: the job runs, and has its deadline, whether or not the fleet's memory answers.
        recalling = self.timeline.tasks.create_task(self._recall(job.key))
        try:
            lease = self.lease = await self.delivery.resume(claim)
            await Tenure(place=place, held=held, lease=lease, timeline=timeline).go_on(plan, earlier)
        finally:
            recalling.cancel()
            self._let_go(held)

    async def _recall(self, key: JobKey) -> None:
        """Learn of a cancel that came before the job did; with the job held already, none falls in between."""
        reason = await self.place.outside.cancelled.reason(key)
        if reason is not None:
            self.place.cancel(key, reason)

    async def _finished_lately(self, key: JobKey) -> bool:
        return await self.place.outside.journal.finished_lately(key, _DUPLICATES_FOR)

    async def _is_lost_for_good(self, held: Held) -> bool:
        """Deal with what a vanished worker left: true when there is nothing more to run."""
        gone, most = self.delivery.vanished, self.place.rules.max_lost
        if gone is None:
            return False
        if await self.place.outside.journal.is_over(gone.claim):
            await self.delivery.drop()  # it was settled, and only the broker did not hear of it
            return True
        reason = f"worker {gone.worker} went away while it had the job"
        self.timeline.tell(EventKind.LOST, reason=reason)
        if self.delivery.lost <= most:
            return False
        reason += f"; this was the {self.delivery.lost}. time, and worker.max_lost is {most}"
        await self._end_unstarted(held, (Outcome.LOST, Blame.PLATFORM, reason))
        return True

    async def _drop_duplicate(self) -> None:
        reason = "this worker has this job, or finished it in the last 10 minutes"
        self.timeline.tell(EventKind.DUPLICATE, reason=reason)
        await self.timeline.told()
        await self.delivery.drop()

    async def _plan_and_run(self, held: Held) -> None:
        delivery, rules = self.delivery, self.place.rules
        if await self._is_cancelled(held) or await self._is_late(held):
            return
        if delivery.lost > rules.max_lost:
            reason = f"the platform failed it {delivery.lost} times, and worker.max_lost is {rules.max_lost}"
            await self._end_unstarted(held, (Outcome.LOST, Blame.PLATFORM, reason))
            return
        plan = await self._plan(held)
        if plan is None:
            return
        if (delay := self._postponement(held.job)) > timedelta() and held.cancelled is None:
            await delivery.postpone(delay)
            return
        if not await self._admitted(held, plan):
            return
        # Its stack may have been given another revision while it waited for room, or lost the one that it pins.
        again = await self._plan(held) if self._queued else plan
        if again is not None:
            await self._claim_and_run(held, replace(again, limits=plan.limits))

    async def _plan(self, held: Held) -> Plan | None:
        """What the job gets here, as of now; None when this worker cannot run it, which is dealt with."""
        place = self.place
        try:
            check_request(held.job, place.policy)
            self.timeline.stack = await place.outside.stacks.resolve(held.job.stack)
            return make_plan(held.job, self.timeline.stack, place.policy)
        except RejectedError as error:
            await self._reject(DeadCode.REJECTED, error.reason, operator=error.operator)
        except DeferredError as error:
            await self._defer(error.reason)
        except EngineError as error:
            await self._defer(f"this worker's engine does not answer: {error}")
        return None

    def _postponement(self, job: Job) -> timedelta:
        """How long the job has to wait before it may start here at all."""
        now = self.place.outside.now()
        due = self.delivery.not_before or now  # not when it was published: the submitter's clock may be ahead
        if self.delivery.fresh and job.delay is not None:
            due = job.published + job.delay
        wait = due - now
        if wait > _CLOCKS_DIFFER:
            return wait
        return _CAPPED_AGAIN if self.place.fairness.full(job.route.tenant) else timedelta()

    async def _reject(self, code: DeadCode, reason: str, *, operator: bool = False) -> None:
        """Tell why, and keep the message for whoever is to mend it. Without a tenant there is nobody to tell."""
        submission, timeline, outside = self.delivery.submission, self.timeline, self.place.outside
        if not isinstance(submission, Invalid) or submission.tenant is not None:
            timeline.send(rejection(timeline, reason, operator=operator))
            await timeline.told()
        await self.delivery.bury(code, reason)
        outside.observer.buried(code)
        stack = str(submission.stack) if submission.stack else None
        outside.observer.job_ended(stack, Outcome.REJECTED, Phases())
        log.info("job rejected", extra={"job_id": timeline.job_id, "reason": reason})

    async def _defer(self, reason: str) -> None:
        delay = deferral(self.delivery.deferrals + 1, self.place.rules.max_deferred)
        if delay is None:
            await self._reject(DeadCode.REJECTED, self.place.rules.nobody(reason))
            return
        self.timeline.tell(EventKind.DEFERRED, reason=reason, delay=delay)
        await self.timeline.told()
        await self.delivery.defer(delay)
        self.place.outside.observer.deferred()

    async def _admitted(self, held: Held, plan: Plan) -> bool:
        """Wait for room. False when the job is over before it started: expired, cancelled, or given back."""
        limits, left = plan.limits, self._time_left(held.job)
        now = asyncio.get_running_loop().time()
        self.place.capacity.offer(held.claim, Claim.of(limits), limits.timeout + limits.grace, now)
        self.place.fairness.started(held.claim, held.job.route.tenant, limits.cpus, now)
        self.arrived()
        self.place.admit()
        if self.place.wanted(held.job.route.tenant):
            self.place.outside.engine.hurry()  # this one may wait for what ended ones still claim, or the next one
        self._queued = not held.admitted.done()
        try:
            async with asyncio.timeout(left):
                if held.cancelled is None:
                    await held.admitted
        except TimeoutError:
            await self._expire(held)
            return False
        except asyncio.CancelledError:
            if not held.admitted.cancelled() or _goes_down():
                raise
            await self.delivery.release()
            return False
        return not await self._is_cancelled(held)

    async def _is_cancelled(self, held: Held) -> bool:
        """Deal with a job that was cancelled before it started: true when it is over."""
        if held.cancelled is None:
            return False
        reason = f"cancelled: {held.cancelled}" if held.cancelled else "cancelled"
        await self._end_unstarted(held, (Outcome.CANCELLED, Blame.NONE, reason))
        return True

    async def _is_late(self, held: Held) -> bool:
        """Deal with a job whose `start_within` is over: true when it was."""
        left = self._time_left(held.job)
        if left is None or left > 0:
            return False
        await self._expire(held)
        return True

    async def _expire(self, held: Held) -> None:
        within = format_duration(held.job.start_within or timedelta())
        why = self.place.capacity.waits_for(held.claim)
        reason = f"not started within {within}, its start_within" + (f": {why}" if why else "")
        await self._end_unstarted(held, (Outcome.EXPIRED, Blame.PLATFORM, reason))

    async def _end_unstarted(self, held: Held, ending: tuple[Outcome, Blame, str]) -> None:
        outcome, blame, reason = ending
        job, journal, now = held.job, self.place.outside.journal, self.place.outside.now()
        verdict = Verdict(outcome=outcome, reason=reason, blame=blame)
        result = JobResult(verdict=verdict, times=Times(published=job.published, ended=now))
        last = self.timeline.event(EventKind.FINISHED, result=result)
        await journal.claimed(self.place.record(held.claim, job.key, now, self.delivery.number))
        await journal.ended(held.claim, finished=True, owed=last)
        self.timeline.send(last)
        await self.timeline.told()
        await journal.paid(held.claim)
        await self.delivery.drop()
        self.place.report(result, job.stack.name, job.key, self.delivery.number)

    def _time_left(self, job: Job) -> float | None:
        """Seconds in which the job has to be started for the first time, counted from when it may."""
        if job.start_by is None or self.delivery.number > 1:
            return None
        return max(0.0, (job.start_by - self.place.outside.now()).total_seconds())

    async def _claim_and_run(self, held: Held, plan: Plan) -> None:
        claimed, engine = self.place.outside.now(), self.place.outside.engine
        name = container_name(self.place.rules.name, held.claim)
        held.waited = engine.expect(name, plan)
        try:
            lease = await self._claim(held, plan, claimed)
            self.timeline.attempt, self.timeline.claimed = lease.number, claimed
            tenure = Tenure(place=self.place, held=held, lease=lease, timeline=self.timeline)
            if await tenure.may_start(self.delivery.run):
                await tenure.begin(plan, claimed)
        finally:
            if held.run is None:
                engine.drop(name)  # it did not come to a start

    async def _claim(self, held: Held, plan: Plan, claimed: datetime) -> Lease:
        """Take the lease, and have the claim on record beside it: nothing was made for the job yet.

        A record without a lease is given up by whoever finds it. That of a job which may turn out not to be the only
        one comes later, for whoever adopts a claim asks no more.
        """
        journal = self.place.outside.journal
        if held.job.unique is not None:
            return await self._take(held)
        record = self.place.record(held.claim, held.job.key, claimed, self.delivery.number, Choices.of(plan))
        lease, fault = await asyncio.gather(
            self._take(held),
            journal.claimed(replace(record, told=self.timeline.seq + 1, waited=held.waited)),
            return_exceptions=True,
        )
        if isinstance(lease, BaseException):
            if fault is not None:
                log.warning("a claim came to nothing, nor is it on record", extra={"error": str(fault)})
            await note("that a claim came to nothing", held.claim, journal.forgotten(held.claim))
            raise lease
        if fault is not None:
            raise fault
        return lease

    async def _take(self, held: Held) -> Lease:
        """Take the lease. From then on another submission is a duplicate, whatever the journal does meanwhile."""
        self.lease = await self.delivery.claim(held.claim)
        held.claimed = True
        return self.lease

    async def recover(self) -> None:
        """After a fault of ours, let the job be run again, anywhere; `max_lost` and the poison count end it."""
        try:
            if self.lease is not None:
                await self.lease.abandon()
            else:
                await self.delivery.release()
        except BrokerError as error:
            log.warning("a job could not be given back yet", extra={"error": str(error)})


def _goes_down() -> bool:
    """Whether this task itself was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""MANY jobs: take deliveries, admit what fits, run each, publish how it ended, settle, clean up; cancel; drain.

The drain has one order: stop taking, let jobs finish, stop them with a reason, settle, clean up. Cancel, logs and
metrics stay up to the end.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from runner.capacity import Capacity, Claim
from runner.errors import BrokerError, DeferredError, EngineError, ImageMissing, RejectedError
from runner.executor import Run
from runner.fairness import Fairness
from runner.job import (
    Attempt,
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
    StopReason,
    Times,
    Verdict,
    container_name,
)
from runner.plan import Policy, check_request, make_plan
from runner.ports import (
    Cancelled,
    ClaimRecord,
    Delivery,
    Engine,
    Events,
    Intake,
    Journal,
    Lease,
    LogSink,
    Observer,
    OpenClaim,
    Phases,
    Stacks,
    Uniqueness,
)
from runner.retry import History, Retry, decide, deferral
from runner.timeline import Timeline
from runner.units import format_duration

log = logging.getLogger(__name__)

_DUPLICATES_FOR = timedelta(minutes=10)
_DRAIN = "drain"
_CLOCKS_DIFFER = timedelta(seconds=1)
"""A delay that the broker has seen to is over, even if this machine's clock is a little behind."""
_CAPPED_AGAIN = timedelta(seconds=2)
"""How long a job of the shared queue waits in the broker whose tenant runs as much here as it may."""
_SEQ_OF_A_LIFE = 1000
"""Events of a claim that goes on in another life are counted on from the next multiple of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Everything that a worker needs from the outside."""

    intake: Intake
    engine: Engine
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


@dataclass(slots=True)
class _Held:
    """A job that this worker has: taken, waiting for room, or running."""

    claim: str
    job: Job
    delivery: Delivery
    admitted: asyncio.Future[None]
    claimed: bool = False
    run: Run | None = None
    cancelled: str | None = None
    cpu_seconds: float | None = None

    def has(self, key: JobKey) -> bool:
        """Whether this is that job, and the broker has not given it to somebody else meanwhile."""
        return self.job.key == key and (self.claimed or self.delivery.live)


class Worker:
    """Takes jobs and sees each of them to its end."""

    def __init__(
        self,
        rules: Rules,
        outside: Outside,
        capacity: Capacity,
        fairness: Fairness | None = None,
        adoptable: Mapping[str, OpenClaim] | None = None,
    ) -> None:
        self._rules = rules
        self._fairness = fairness or Fairness({})
        self._adoptable = dict(adoptable or {})
        self._handing_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._outside = outside
        self._capacity = capacity
        self._held: dict[str, _Held] = {}
        self._arriving = 0
        self._pauses: dict[str, str] = {}
        self._draining = False
        self._stopping = self._at_once = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._drained = asyncio.Event()

    @property
    def taking(self) -> bool:
        """Whether this worker takes jobs when it has room."""
        return not (self._pauses or self._draining)

    @property
    def draining(self) -> bool:
        """Whether this worker is on its way out."""
        return self._draining

    @property
    def pauses(self) -> Mapping[str, str]:
        """Who keeps this worker from taking jobs, and why."""
        return self._pauses

    @property
    def running(self) -> int:
        """How many jobs have a container now."""
        return sum(1 for held in self._held.values() if held.run is not None)

    def waiting(self) -> dict[JobKey, str]:
        """The jobs that wait here for room, and why."""
        why = {held.job.key: self._capacity.waits_for(claim) for claim, held in self._held.items()}
        return {key: reason for key, reason in why.items() if reason is not None}

    def held(self) -> dict[str, JobKey]:
        """The jobs that are here, by claim: running, waiting, or left by an earlier life and not taken up yet."""
        left = {claim: earlier.record.key for claim, earlier in self._adoptable.items()}
        return left | {claim: held.job.key for claim, held in self._held.items()}

    def free(self) -> tuple[Claim, int]:
        """What no running job claims, and how many more jobs could run if they were small enough."""
        return self._capacity.free, max(0, self._capacity.slots)

    def container_names(self) -> frozenset[str]:
        """The containers that belong to a job of ours; a sweep leaves them alone."""
        return frozenset(container_name(self._rules.name, claim) for claim in self._held)

    async def run(self) -> None:
        """Take and run jobs until `drain` was called and has finished."""
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(self._take(tasks))
            self._ask()
            await self._drained.wait()
            taking.cancel()

    async def drain(self) -> None:
        """Stop taking; let jobs end for up to `drain_timeout`, then stop them; return when all is settled and clean."""
        log.info("draining", extra={"running": self.running})
        self._draining = True
        self._ask()
        await self._outside.intake.close()
        self._admit()
        await self._empty()
        await self._idle.wait()
        self._drained.set()

    async def drain_until_resumed(self) -> None:
        """The same, but stay: this worker takes jobs again once somebody calls `resume`. Returns when it is empty."""
        self.pause(_DRAIN, "drained by command; the command resume takes it back")
        self._admit()
        await self._empty()

    async def _empty(self) -> None:
        """Let running jobs end for up to `drain_timeout`, then stop them."""
        try:
            async with asyncio.timeout(self._rules.drain_timeout.total_seconds()):
                await self._idle.wait()
        except TimeoutError:
            if self._draining or _DRAIN in self._pauses:
                self.stop_all()

    async def hand_over(self) -> None:
        """Stop taking and let go of all running jobs as they are; this worker's next life goes on with them."""
        log.info("handing over", extra={"running": self.running})
        self._draining = self._handing_over = True
        self._ask()
        await self._outside.intake.close()
        self._admit()
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()
        self._drained.set()

    def cut_short(self) -> None:
        """Leave whatever could not be settled: the broker is away. Containers are removed all the same."""
        for task in self._tasks:
            task.cancel()

    async def abandon(self) -> None:
        """Give up the claims of our earlier life whose leases have not come back: somebody else has those jobs."""
        for claim, earlier in list(self._adoptable.items()):
            log.warning("a lease of an earlier life has not come back", extra={"job_id": earlier.record.key.id})
            del self._adoptable[claim]
            self._outside.engine.drop(earlier.record.container_name)
            await self._outside.journal.forgotten(claim)

    async def superseded(self, claim: str) -> None:
        """Give up a claim of our earlier life: somebody else has the job. Running jobs hear of it by their leases."""
        earlier = self._adoptable.pop(claim, None)
        if earlier is not None:
            log.warning("a claim of an earlier life is lost", extra={"job_id": earlier.record.key.id, "claim": claim})
            self._outside.engine.drop(earlier.record.container_name)
            await self._outside.journal.ended(claim, finished=False)

    def stop_all(self, *, at_once: bool = False) -> None:
        """End every job that runs, or is about to, so that another worker may run it again."""
        self._at_once = self._at_once or at_once
        self._stopping = True
        for held in self._held.values():
            if held.run is not None:
                held.run.stop(StopReason.SHUTDOWN, at_once=at_once)

    def pause(self, who: str, why: str) -> None:
        """Take nothing more until `who` has resumed; what runs goes on."""
        self._pauses[who] = why
        self._ask()

    def resume_all(self) -> None:
        """Take back what the commands `pause` and `drain` did."""
        self.resume("operator")
        self.resume(_DRAIN)

    def resume(self, who: str) -> None:
        """Take jobs again, unless somebody else keeps us from it."""
        if self._pauses.pop(who, None) is not None:
            self._ask()

    def cancel(self, key: JobKey, reason: str) -> None:
        """End the job if it is here; whoever takes it later finds it cancelled by `Outside.cancelled`."""
        for held in self._held.values():
            if held.job.key == key:
                held.cancelled = reason
                if held.run is not None:
                    held.run.stop(StopReason.CANCELLED, reason)
                elif not held.admitted.done():
                    held.admitted.set_result(None)

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            delivery = await self._outside.intake.take()
            self._arriving += 1
            self._idle.clear()
            self._ask()
            task = tasks.create_task(self._handle(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _ask(self) -> None:
        """Ask for as much as there is room for, less what is on its way to the ledger."""
        room = self._capacity.room() - self._arriving if self.taking else 0
        self._outside.intake.want(max(0, room))

    def _admit(self) -> None:
        """Start what fits; a worker that drains starts nothing."""
        if self._draining or _DRAIN in self._pauses:
            self._tell_claims()
            for held in self._held.values():
                if held.run is None and not held.admitted.done():
                    held.admitted.cancel()
            return
        for claim in self._capacity.admit(asyncio.get_running_loop().time()):
            held = self._held[claim]
            if not held.admitted.done():
                held.admitted.set_result(None)
        self._tell_claims()
        self._ask()

    def _tell_claims(self) -> None:
        claimed = self._capacity.claimed
        self._outside.observer.claims(cpus=claimed.millicpus / 1000, memory=claimed.memory)

    async def _handle(self, delivery: Delivery) -> None:
        """The job boundary: whatever goes wrong with one job stays with that job."""
        arrived = _Arrival(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._see_to(delivery, tasks, arrived)
        except* BrokerError as errors:
            log.warning("a delivery was lost to the broker, which has it again", extra={"error": _told(errors)})
        except* Exception as errors:
            log.exception("a job met a fault of the runner", extra={"error": _told(errors)})
            await self._recover(delivery, arrived.lease)
        finally:
            arrived.over()
            if not self._held and self._arriving == 0:
                self._idle.set()
            self._ask()

    async def _recover(self, delivery: Delivery, lease: Lease | None) -> None:
        """After a fault of ours, let the job be run again, anywhere; `max_lost` and the poison count end it."""
        try:
            if lease is not None:
                await lease.abandon()
            else:
                await delivery.release()
        except BrokerError as error:
            log.warning("a job could not be given back yet", extra={"error": str(error)})

    async def _see_to(self, delivery: Delivery, tasks: asyncio.TaskGroup, arrived: "_Arrival") -> None:
        submission = delivery.submission
        if isinstance(submission, Invalid):
            await self._reject(delivery, self._timeline(delivery, tasks), submission.code, submission.reason)
            return
        timeline = self._timeline(delivery, tasks)
        known = any(held.has(submission.key) for held in self._held.values())
        if delivery.vanished is not None and (not delivery.live or delivery.vanished.claim in self._held):
            return  # it came twice, over a connection that broke meanwhile; the other one counts
        if delivery.vanished is not None and delivery.vanished.claim in self._adoptable:
            earlier = self._adoptable.pop(delivery.vanished.claim)
            await self._adopt(delivery, submission, earlier, tasks, arrived)
            return
        held = _Held(timeline.claim, submission, delivery, asyncio.get_running_loop().create_future())
        self._held[timeline.claim] = held
        try:
            await self._recall(submission.key)
            if delivery.fresh and (known or await self._finished_lately(submission.key)):
                await self._drop_duplicate(delivery, timeline)
            elif await self._is_lost_for_good(delivery, held, timeline):
                return
            elif delivery.vanished is not None and delivery.vanished.worker != self._rules.name:
                # Back into its own queue: we may be full, of another pool, or without its stack.
                await timeline.told()
                await delivery.defer(timedelta())
            else:
                await self._plan_and_run(delivery, held, timeline, arrived)
        finally:
            self._let_go(held)

    def _timeline(self, delivery: Delivery, tasks: asyncio.TaskGroup) -> Timeline:
        submission = delivery.submission
        return Timeline(
            events=self._outside.events,
            tasks=tasks,
            now=self._outside.now,
            submission=submission,
            worker=self._rules.name,
            claim=self._outside.new_claim(),
            attempt=0 if isinstance(submission, Invalid) else delivery.number,
        )

    async def _adopt(
        self, delivery: Delivery, job: Job, earlier: OpenClaim, tasks: asyncio.TaskGroup, arrived: "_Arrival"
    ) -> None:
        """Go on with a job that our earlier life started: same claim, same container, same deadline."""
        record, choices = earlier.record, earlier.record.choices
        if choices is None:
            raise AssertionError("a claim without a plan was to be adopted")
        plan, claim = choices.plan(job), record.claim
        timeline = self._timeline(delivery, tasks)
        timeline.claim, timeline.attempt, timeline.stack = claim, record.attempt, choices.stack
        timeline.claimed = record.claimed
        timeline.seq = _SEQ_OF_A_LIFE * (earlier.lives + 1)
        held = _Held(claim, job, delivery, asyncio.get_running_loop().create_future(), claimed=True)
        self._held[claim] = held
        lasts = plan.limits.timeout + plan.limits.grace
        now = asyncio.get_running_loop().time()
        self._capacity.adopt(claim, Claim.of(plan.limits), lasts, now)
        self._fairness.started(claim, job.route.tenant, plan.limits.cpus, now)
        arrived.over()
        # Beside it: the job runs, and has its deadline, whether or not the fleet's memory answers.
        recalling = tasks.create_task(self._recall(job.key))
        try:
            lease = arrived.lease = await delivery.resume(claim)
            await self._outside.journal.adopted(claim)
            attempt = Attempt(plan=plan, worker=self._rules.name, claim=claim, number=lease.number)
            run = self._make_run(attempt, record.claimed, timeline, earlier)
            await self._run_claimed(held, run, lease)
        finally:
            recalling.cancel()
            self._let_go(held)

    async def _recall(self, key: JobKey) -> None:
        """Learn of a cancel that came before the job did; with the job held already, none falls in between."""
        reason = await self._outside.cancelled.reason(key)
        if reason is not None:
            self.cancel(key, reason)

    def _let_go(self, held: _Held) -> None:
        del self._held[held.claim]
        self._capacity.withdraw(held.claim)
        self._capacity.release(held.claim)
        self._fairness.ended(held.claim, held.cpu_seconds, asyncio.get_running_loop().time())
        self._admit()

    async def _finished_lately(self, key: JobKey) -> bool:
        return await self._outside.journal.finished_lately(key, _DUPLICATES_FOR)

    async def _is_lost_for_good(self, delivery: Delivery, held: _Held, timeline: Timeline) -> bool:
        """Deal with what a vanished worker left: true when there is nothing more to run."""
        gone = delivery.vanished
        if gone is None:
            return False
        if await self._outside.journal.is_over(gone.claim):
            await delivery.drop()  # it was settled, and only the broker did not hear of it
            return True
        reason = f"worker {gone.worker} went away while it had the job"
        timeline.tell(EventKind.LOST, reason=reason)
        if delivery.lost <= self._rules.max_lost:
            return False
        reason += f"; this was the {delivery.lost}. time, and worker.max_lost is {self._rules.max_lost}"
        await self._end_unstarted(delivery, held, timeline, (Outcome.LOST, Blame.PLATFORM, reason))
        return True

    async def _drop_duplicate(self, delivery: Delivery, timeline: Timeline) -> None:
        timeline.tell(EventKind.DUPLICATE, reason="this worker has this job, or finished it in the last 10 minutes")
        await timeline.told()
        await delivery.drop()

    async def _plan_and_run(self, delivery: Delivery, held: _Held, timeline: Timeline, arrived: "_Arrival") -> None:
        if await self._is_cancelled(delivery, held, timeline) or await self._is_late(delivery, held, timeline):
            return
        if delivery.lost > self._rules.max_lost:
            reason = f"the platform failed it {delivery.lost} times, and worker.max_lost is {self._rules.max_lost}"
            await self._end_unstarted(delivery, held, timeline, (Outcome.LOST, Blame.PLATFORM, reason))
            return
        try:
            check_request(held.job, self._rules.policy)
            timeline.stack = await self._outside.stacks.resolve(held.job.stack)
            plan = make_plan(held.job, timeline.stack, self._rules.policy)
        except RejectedError as error:
            await self._reject(delivery, timeline, DeadCode.REJECTED, error.reason, operator=error.operator)
            return
        except DeferredError as error:
            await self._defer(delivery, timeline, error.reason)
            return
        except EngineError as error:
            await self._defer(delivery, timeline, f"this worker's engine does not answer: {error}")
            return
        if (delay := self._postponement(delivery, held.job)) > timedelta() and held.cancelled is None:
            await delivery.postpone(delay)
            return
        if await self._admitted(held, plan, delivery, timeline, arrived):
            await self._claim_and_run(delivery, held, plan, timeline, arrived)

    def _postponement(self, delivery: Delivery, job: Job) -> timedelta:
        """How long the job has to wait before it may start here at all."""
        now = self._outside.now()
        due = delivery.not_before or now  # not when it was published: the submitter's clock may be ahead
        if delivery.fresh and job.delay is not None:
            due = job.published + job.delay
        wait = due - now
        if wait > _CLOCKS_DIFFER:
            return wait
        return _CAPPED_AGAIN if self._fairness.full(job.route.tenant) else timedelta()

    async def _reject(
        self, delivery: Delivery, timeline: Timeline, code: DeadCode, reason: str, *, operator: bool = False
    ) -> None:
        """Tell why, and keep the message for whoever is to mend it. Without a tenant there is nobody to tell."""
        submission = delivery.submission
        timeline.attempt = 0
        if not isinstance(submission, Invalid) or submission.tenant is not None:
            blame = Blame.OPERATOR if operator else Blame.REQUEST
            verdict = Verdict(outcome=Outcome.REJECTED, reason=reason, blame=blame)
            times = Times(published=submission.published, ended=self._outside.now())
            timeline.tell(EventKind.REJECTED, reason=reason)
            timeline.tell(EventKind.FINISHED, result=JobResult(verdict=verdict, times=times))
            await timeline.told()
        await delivery.bury(code, reason)
        self._outside.observer.buried(code)
        stack = str(submission.stack) if submission.stack else None
        self._outside.observer.job_ended(stack, Outcome.REJECTED, Phases())
        log.info("job rejected", extra={"job_id": timeline.job_id, "reason": reason})

    async def _defer(self, delivery: Delivery, timeline: Timeline, reason: str) -> None:
        longest = self._rules.max_deferred
        delay = deferral(delivery.deferrals + 1, longest)
        if delay is None:
            passed = f"passed on for {format_duration(longest)}" if longest else "not passed on"
            await self._reject(delivery, timeline, DeadCode.REJECTED, f"{reason}; {passed}, and no worker could run it")
            return
        timeline.tell(EventKind.DEFERRED, reason=reason, delay=delay)
        await timeline.told()
        await delivery.defer(delay)
        self._outside.observer.deferred()

    async def _admitted(
        self, held: _Held, plan: Plan, delivery: Delivery, timeline: Timeline, arrived: "_Arrival"
    ) -> bool:
        """Wait for room. False when the job is over before it started: expired, cancelled, or given back."""
        limits, left = plan.limits, self._time_left(held.job, delivery.number)
        now = asyncio.get_running_loop().time()
        self._capacity.offer(held.claim, Claim.of(limits), limits.timeout + limits.grace, now)
        self._fairness.started(held.claim, held.job.route.tenant, limits.cpus, now)
        arrived.over()
        self._admit()
        try:
            async with asyncio.timeout(left):
                if held.cancelled is None:
                    await held.admitted
        except TimeoutError:
            await self._expire(delivery, held, timeline)
            return False
        except asyncio.CancelledError:
            if not held.admitted.cancelled() or _goes_down():
                raise
            await delivery.release()
            return False
        return not await self._is_cancelled(delivery, held, timeline)

    async def _is_cancelled(self, delivery: Delivery, held: _Held, timeline: Timeline) -> bool:
        """Deal with a job that was cancelled before it started: true when it is over."""
        if held.cancelled is None:
            return False
        reason = f"cancelled: {held.cancelled}" if held.cancelled else "cancelled"
        await self._end_unstarted(delivery, held, timeline, (Outcome.CANCELLED, Blame.NONE, reason))
        return True

    async def _is_late(self, delivery: Delivery, held: _Held, timeline: Timeline) -> bool:
        """Deal with a job whose `start_within` is over: true when it was."""
        left = self._time_left(held.job, delivery.number)
        if left is None or left > 0:
            return False
        await self._expire(delivery, held, timeline)
        return True

    async def _expire(self, delivery: Delivery, held: _Held, timeline: Timeline) -> None:
        within = format_duration(held.job.start_within or timedelta())
        why = self._capacity.waits_for(held.claim)
        reason = f"not started within {within}, its start_within" + (f": {why}" if why else "")
        await self._end_unstarted(delivery, held, timeline, (Outcome.EXPIRED, Blame.PLATFORM, reason))

    async def _end_unstarted(
        self, delivery: Delivery, held: _Held, timeline: Timeline, ending: tuple[Outcome, Blame, str]
    ) -> None:
        outcome, blame, reason = ending
        now = self._outside.now()
        verdict = Verdict(outcome=outcome, reason=reason, blame=blame)
        result = JobResult(verdict=verdict, times=Times(published=held.job.published, ended=now))
        last = timeline.event(EventKind.FINISHED, result=result)
        await self._outside.journal.claimed(self._record(held.claim, held.job.key, now, delivery.number))
        await self._outside.journal.ended(held.claim, finished=True, owed=last)
        timeline.send(last)
        await timeline.told()
        await self._outside.journal.paid(held.claim)
        await delivery.drop()
        self._report(result, held.job.stack.name, held.job.key, delivery.number)

    def _record(
        self, claim: str, key: JobKey, claimed: datetime, number: int, choices: Choices | None = None
    ) -> ClaimRecord:
        return ClaimRecord(
            claim=claim,
            key=key,
            container_name=container_name(self._rules.name, claim),
            attempt=number,
            claimed=claimed,
            choices=choices,
        )

    def _time_left(self, job: Job, number: int) -> float | None:
        """Seconds in which the job has to be started for the first time, counted from when it may."""
        if job.start_within is None or number > 1:
            return None
        latest = job.published + (job.delay or timedelta()) + job.start_within
        return max(0.0, (latest - self._outside.now()).total_seconds())

    async def _claim_and_run(
        self, delivery: Delivery, held: _Held, plan: Plan, timeline: Timeline, arrived: "_Arrival"
    ) -> None:
        claimed = self._outside.now()
        lease = arrived.lease = await delivery.claim(held.claim)
        held.claimed = True
        timeline.attempt, timeline.claimed = lease.number, claimed
        if not await self._may_start(delivery.run, held, lease, timeline):
            return
        attempt = Attempt(plan=plan, worker=self._rules.name, claim=held.claim, number=lease.number)
        choices = Choices.of(plan)
        await self._outside.journal.claimed(self._record(held.claim, held.job.key, claimed, lease.number, choices))
        timeline.tell(EventKind.CLAIMED)
        await self._run_claimed(held, self._make_run(attempt, claimed, timeline), lease)

    async def _may_start(self, run: str, held: _Held, lease: Lease, timeline: Timeline) -> bool:
        """Deal with a unique job that is not the only one: false when there is nothing to start.

        Asked under the lease, which has the run in it: a run that has won must not be forgotten by a crash.
        """
        key, span = held.job.key, held.job.unique
        if span is None:
            return True
        try:
            if await self._outside.uniqueness.wins(key, run, held.claim, span):
                return True
        except BrokerError as error:
            await self._pass_on(lease, timeline, str(error))
            return False
        reason = f"another job of this id was started, and for {format_duration(span)} it is to be the only one"
        timeline.tell(EventKind.DUPLICATE, reason=reason)
        await timeline.told()
        await self._outside.journal.claimed(self._record(held.claim, key, self._outside.now(), lease.number))
        await self._outside.journal.ended(held.claim, finished=False)
        await lease.settle()
        return False

    async def _run_claimed(self, held: _Held, run: Run, lease: Lease) -> None:
        held.run, attempt = run, run.attempt
        if held.cancelled is not None:
            held.run.stop(StopReason.CANCELLED, held.cancelled)
        if self._stopping:
            held.run.stop(StopReason.SHUTDOWN, at_once=self._at_once)
        try:
            held.cpu_seconds = await self._run(run, lease)
        finally:
            if not self._handing_over:
                ended = asyncio.get_running_loop().time()
                await self._outside.engine.discard(attempt)
                seconds = asyncio.get_running_loop().time() - ended
                self._outside.observer.cleaned_up(attempt.plan.stack.name, seconds)

    def _make_run(
        self, attempt: Attempt, claimed: datetime, timeline: Timeline, earlier: OpenClaim | None = None
    ) -> Run:
        outside = self._outside
        return Run(
            attempt=attempt,
            claimed=claimed,
            engine=outside.engine,
            log_sink=outside.log_sink,
            journal=outside.journal,
            observer=outside.observer,
            timeline=timeline,
            now=outside.now,
            earlier=earlier,
        )

    async def _run(self, run: Run, lease: Lease) -> float | None:
        """Run the job and settle it; the CPU seconds that it used, if known."""
        timeline = run.timeline
        watch = timeline.tasks.create_task(_stop_unless_ours(run, lease))
        try:
            result = await run.execute()
        except ImageMissing as error:
            self._outside.stacks.invalidate(run.attempt.plan.stack.name)
            await self._pass_on(lease, timeline, str(error))
            return 0.0
        finally:
            watch.cancel()
        if run.stopped is StopReason.SUPERSEDED:
            # What is left of it has to go now: it may be long until the broker can tell whose the job is.
            await self._outside.engine.discard(run.attempt)
        if await lease.ours():
            await self._conclude(result, run.attempt, lease, timeline)
        else:
            log.warning("job left to another worker", extra={"job_id": timeline.job_id, "claim": timeline.claim})
            await timeline.told()
            await self._outside.journal.ended(timeline.claim, finished=False)
        return result.usage.cpu_seconds

    async def _pass_on(self, lease: Lease, timeline: Timeline, reason: str) -> None:
        """Let another worker try a job that was claimed here and not started."""
        delay = timedelta(seconds=1)
        timeline.tell(EventKind.DEFERRED, reason=reason, delay=delay)
        await timeline.told()
        await lease.defer(delay)
        await self._outside.journal.ended(timeline.claim, finished=False)
        self._outside.observer.deferred()

    async def _conclude(self, result: JobResult, attempt: Attempt, lease: Lease, timeline: Timeline) -> None:
        """Tell how the attempt ended, then settle: the job is over, or starts again."""
        job, verdict = attempt.plan.job, result.verdict
        history = History(attempts=lease.number, lost=lease.lost, given_back=lease.given_back)
        decision = decide(verdict, job.retry, history, self._rules.max_lost)
        if isinstance(decision, Retry):
            timeline.tell(EventKind.RETRYING, outcome=verdict.outcome, delay=decision.delay, reason=verdict.reason)
            await timeline.told()
            # In this order: a lease whose claim is over counts as settled, and a crash in between would lose the job.
            await lease.retry(decision.delay, verdict.blame)
            await self._outside.journal.ended(timeline.claim, finished=False)
            self._outside.observer.retried(verdict.blame)
            return
        last = timeline.event(EventKind.FINISHED, result=result)
        await self._outside.journal.ended(timeline.claim, finished=True, owed=last)
        timeline.send(last)
        await timeline.told()
        await self._outside.journal.paid(timeline.claim)
        await lease.settle()
        self._report(result, attempt.plan.stack.name, job.key, attempt.number)

    def _report(self, result: JobResult, stack: str | None, key: JobKey, attempt: int) -> None:
        self._outside.observer.job_ended(stack, result.verdict.outcome, _phases(result.times))
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


def _goes_down() -> bool:
    """Whether this task itself was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Arrival:
    """A delivery between its taking and the ledger's knowing of it."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker
        self.lease: Lease | None = None

    def over(self) -> None:
        if self._worker is not None:
            self._worker._arriving -= 1  # noqa: SLF001 - a part of the worker
            self._worker = None


async def _stop_unless_ours(run: Run, lease: Lease) -> None:
    """End the job when another worker has it, or a fenced one before another worker may have it."""
    async with asyncio.TaskGroup() as tasks:
        if run.attempt.plan.job.fence:
            tasks.create_task(_fence(run, lease))
        await lease.taken_over()
        run.stop(StopReason.SUPERSEDED)


async def _fence(run: Run, lease: Lease) -> None:
    why = "its worker was cut off from the broker for nearly as long as its lease, and the job is fenced"
    await lease.endangered(run.attempt.plan.limits.grace)
    run.stop(StopReason.SUPERSEDED, why)
    await lease.endangered(timedelta())
    run.stop(StopReason.SUPERSEDED, why, at_once=True)


def _phases(times: Times) -> Phases:
    def between(start: datetime | None, end: datetime | None) -> float | None:
        return max(0.0, (end - start).total_seconds()) if start and end else None

    return Phases(
        queued=between(times.published, times.claimed),
        prepare=between(times.claimed, times.started),
        run=between(times.started, times.ended),
    )


def _told(errors: BaseExceptionGroup[BaseException]) -> str:
    return "; ".join(f"{type(error).__name__}: {error}" for error in errors.exceptions)

"""ONE job: start it, pump its log, wait for its end or a reason to end it, judge.

Stopping is a message with a reason (`Run.stop`): time-out, cancel, shutdown and limits use the same door, and the first
reason wins. Cancelling the task is for going down hard; whoever does it discards the attempt afterwards.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runner.errors import (
    DeferredError,
    EngineError,
    EngineUnfit,
    ExpiredError,
    ImageMissing,
    NeverStarted,
    RejectedError,
    StartError,
)
from runner.job import (
    PROGRESS_MAX,
    Attempt,
    Blame,
    EventKind,
    Exit,
    JobResult,
    Json,
    Outcome,
    SecretRef,
    StopReason,
    Stream,
    Times,
    Verdict,
)
from runner.logs import JobLog
from runner.noting import note
from runner.ports import Container, Engine, Journal, LogPosition, LogSink, Observer, OpenClaim, Secrets
from runner.pump import SEQ_OF_A_LIFE, LogPump
from runner.redaction import Redactor
from runner.stopping import Stop, Stopping
from runner.timeline import Timeline
from runner.units import format_duration
from runner.verdict import judge, parse_told

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
"""Seconds, about, between two looks at what a job tells of its progress, and what it has written."""
_LOOKS_MEET = 0.1
"""All jobs are looked at in the same tenths of a second: hundreds are not to wake the daemon hundreds of times."""
_DISK_SHARE = 20
_DISK_LONGEST = 30.0
"""A look at the disk that takes long is not repeated for 20 times as long, but for so many seconds at most."""
_LAUNCHES = 3
"""Lives of the daemon that may start a job anew that none of them saw begin: it may be what ended them."""
_KILL_BUDGET = timedelta(seconds=60)
_NEWS_IS_LATE = timedelta(seconds=1)
"""A job that ended so long before its time-out was not ended by it, whatever clocks do."""
_READ_AGAIN = 0.1
_READ_AGAIN_LONGEST = 5.0
"""Seconds between two tries to read a secret."""
_MAY_RUN = "and it may still run"
_UNANSWERED = f"the container engine has not answered until the job's time was over, {_MAY_RUN}"


@dataclass(slots=True, kw_only=True)
class Run:
    """One attempt, from its plan to its result. `earlier` is what an earlier life of the daemon left of it, if any.

    A job whose end cannot be brought about within `kill_budget` of the first SIGKILL is told of without it. `may_live`
    says that a job that has its result may run all the same, and that nothing holds it to its time any more.
    """

    attempt: Attempt
    claimed: datetime
    engine: Engine
    secrets: Secrets
    log_sink: LogSink
    journal: Journal
    observer: Observer
    timeline: Timeline
    now: Callable[[], datetime]
    earlier: OpenClaim | None = None
    kill_budget: timedelta = _KILL_BUDGET
    may_live: bool = field(default=False, init=False)
    _stopping: Stopping = field(init=False)
    _pump: LogPump = field(init=False)
    _bytes: int = 0
    _started: datetime | None = None
    _telling: asyncio.Task[None] | None = None
    _ended: datetime | None = None
    _own_end: datetime | None = None
    _progress_told: bytes | None = None
    _progress_due: float = 0.0
    _unadopted: str = _UNANSWERED
    _redactor: Redactor = field(default_factory=Redactor)

    def __post_init__(self) -> None:
        """Make the log of this attempt, and its door for reasons to end it."""
        claim, plan, earlier = self.attempt.claim, self.attempt.plan, self.earlier
        self._stopping = Stopping(
            claim=claim,
            limits=plan.limits,
            journal=self.journal,
            timeline=self.timeline,
            now=self.now,
            kill_budget=self.kill_budget,
        )
        known = earlier.logged if earlier is not None else LogPosition()
        seq = known.seq + SEQ_OF_A_LIFE if earlier is not None else 0
        self._pump = LogPump(
            key=plan.job.key,
            claim=claim,
            log=JobLog(plan.job.key, claim, plan.limits.log_bytes, seq=seq),
            sink=self.log_sink,
            journal=self.journal,
            observer=self.observer,
            now=self.now,
            known=known,
        )
        if earlier is not None and earlier.stop is not None:
            self.stop(earlier.stop, earlier.stop_detail)

    @property
    def stopped(self) -> StopReason | None:
        """Why the job is or was ended, if we did it."""
        return self._stopping.reason

    def stop(self, reason: StopReason, detail: str = "", *, at_once: bool = False) -> None:
        """End the job: SIGTERM, its grace, SIGKILL. `at_once` leaves out the grace, also of an earlier stop."""
        self._stopping.ask(Stop(reason=reason, detail=detail, at_once=at_once))

    async def execute(self) -> JobResult:
        """Run the job to its end and say how it ended.

        Raises `ImageMissing`, `EngineUnfit`, `DeferredError` or `RejectedError` for a job that is not to start here,
        or anywhere; every other failure is a result.
        """
        try:
            end = await self._run()
        except (ImageMissing, EngineUnfit):
            raise
        except ExpiredError as error:
            late = Verdict(outcome=Outcome.EXPIRED, reason=error.reason, blame=Blame.PLATFORM)
            return await self._result(late, Exit())
        except StartError as error:
            reason = f"the engine refused the job: {error}"
            return await self._result(Verdict(outcome=Outcome.FAILED, reason=reason, blame=Blame.OPERATOR), Exit())
        except EngineError as error:
            self.may_live = True
            end = Exit(lost=f"the container engine failed: {error}")
        stop = None if self._ended_in_time() else self._stopping.first
        verdict = judge(self.attempt.plan, end, stop.reason if stop else None, stop.detail if stop else "")
        return await self._result(verdict, end)

    def _ended_in_time(self) -> bool:
        """Whether a job that seemed to exceed its time had ended before: the engine was away, and the news late."""
        if self.stopped is not StopReason.TIMEOUT or not (self._started and self._own_end):
            return False
        return self._own_end < self._started + self.attempt.plan.limits.timeout - _NEWS_IS_LATE

    async def _run(self) -> Exit:
        container = await (self._launch() if self.earlier is None else self._adopt(self.earlier))
        if container is None:
            self.may_live = True  # it may have been told to begin
            return Exit() if self.earlier is None else Exit(lost=self._unadopted, remains=self._unadopted)
        started = self._begun(container)
        self._end_flood()
        try:
            return await self._see_through(container, started)
        finally:
            self.observer.attempt_ended(self.attempt.plan.stack.name)

    async def _see_through(self, container: Container, started: datetime) -> Exit:
        """Watch over a job that runs until it has ended."""
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(container.wait())
            ends: list[asyncio.Task[Exit] | asyncio.Task[None]] = [ending]
            if container.ended is None:  # else it ended by itself while no daemon ran, perhaps long ago
                ends.append(tasks.create_task(self._stopping.enforce(container, started)))
            beside = [
                tasks.create_task(self._write_down(container, started)),
                tasks.create_task(self._look_after(container, tasks)),
                tasks.create_task(self._pump.run()),
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._own_end = container.ended
                self._ended = container.ended or self.now()
            finally:
                for task in (*beside, *ends):
                    task.cancel()
        return ending.result() if not ending.cancelled() else self._resisted()

    def _resisted(self) -> Exit:
        """The end of a job that could not be killed."""
        self.may_live = True
        seconds = format_duration(self.kill_budget)
        return Exit(remains=f"its container could not be ended within {seconds}, and what is in it may still run")

    async def _launch(self) -> Container | None:
        """The started container; None when the job was stopped before its process ran."""
        return await self._made(self._start(), self._stopping.asked.wait())

    async def _start(self) -> Container:
        """Get what the job needs, for as long as it may still start, and launch it."""
        job = self.attempt.plan.job
        if self.earlier is None:
            # Sent when this first waits for something: where nothing is to be prepared, the job has its container then.
            self.timeline.tell(EventKind.CLAIMED)
        late = None
        if job.start_by is not None and self.attempt.number == 1:
            late = max(0.0, (job.start_by - self.now()).total_seconds())
        try:
            async with asyncio.timeout(late):
                await self.engine.prepare(self.attempt)
        except TimeoutError:
            within = format_duration(job.start_within or timedelta())
            reason = f"not started within {within}, its start_within: its code was not here yet"
            raise ExpiredError(reason) from None
        values = await self.secrets.read(job.key.tenant, self.attempt.plan.secrets)
        self.attempt = replace(self.attempt, secrets=values)
        self._redactor = Redactor(values.values())
        return await self.engine.launch(self.attempt, self._output)

    async def _adopt(self, earlier: OpenClaim) -> Container | None:
        """The container that our earlier life started; a new one where that life ended before the job had begun.

        None when the engine says nothing of it, or its secrets cannot be read, until the job's time is over.
        """
        if not earlier.start_told:
            self.timeline.tell(EventKind.CLAIMED, again=earlier.record.told)
        try:
            container = await self._made(self._take_up(), self._out_of_patience(earlier))
        except NeverStarted:
            if earlier.container is not None or earlier.lives >= _LAUNCHES:
                self._know_start(earlier)
                raise
        except EngineError:
            self._know_start(earlier)
            raise
        else:
            if container is None:
                self._know_start(earlier)
            return container
        try:
            async with asyncio.timeout(self.kill_budget.total_seconds()):
                await self.engine.discard(self.attempt)
        except TimeoutError:
            raise EngineError("what an earlier life of its worker left of it cannot be removed") from None
        return await self._launch()

    async def _take_up(self) -> Container:
        """Learn anew what is to be kept out of the log, and go on with the container, which has its secrets."""
        job, values = self.attempt.plan.job, list[bytes]()
        for secret in self.attempt.plan.secrets:
            try:
                values += (await self._read_again(secret)).values()
            except RejectedError as error:
                problem = {"job_id": job.key.id, "problem": error.reason}
                log.warning("a secret is not kept out of an adopted job's log", extra=problem)
        self._redactor = Redactor(values)
        return await self.engine.adopt(self.attempt, self._output)

    async def _read_again(self, secret: SecretRef) -> Mapping[str, bytes]:
        """A secret that the job has. Waits until it can be read: until then none of the log may go out.

        Raises `RejectedError` when it is gone.
        """
        key, pause = self.attempt.plan.job.key, _READ_AGAIN
        while True:
            try:
                values = await self.secrets.read(key.tenant, (secret,))
            except DeferredError as error:
                self._unadopted = f"{error.reason}: the job could not be adopted until its time was over, {_MAY_RUN}"
                log.warning("an adopted job waits for its secret", extra={"job_id": key.id, "problem": error.reason})
            else:
                self._unadopted = _UNANSWERED
                return values
            await asyncio.sleep(pause)
            pause = min(2 * pause, _READ_AGAIN_LONGEST)

    async def _made(
        self, making: Coroutine[object, object, Container], giving_up: Coroutine[object, object, object]
    ) -> Container | None:
        """The container, unless giving up comes first. Raises what making it raises."""
        async with asyncio.TaskGroup() as tasks:
            given_up = tasks.create_task(giving_up)
            made = tasks.create_task(_outcome_of(making))
            try:
                await asyncio.wait((made, given_up), return_when=asyncio.FIRST_COMPLETED)
            finally:
                given_up.cancel()
                if not made.done():
                    made.cancel()
        if made.cancelled():
            return None
        outcome = made.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _out_of_patience(self, earlier: OpenClaim) -> None:
        """Return when there is no more use in waiting for an engine that does not answer."""
        limits = self.attempt.plan.limits
        over = earlier.deadline or self.claimed + limits.timeout + limits.grace
        try:
            async with asyncio.timeout((over - self.now()).total_seconds()):
                await self._stopping.asked.wait()
        except TimeoutError:
            pass
        await asyncio.sleep(self.kill_budget.total_seconds())

    def _begun(self, container: Container) -> datetime:
        """Tell of the start, unless our earlier life has; when it was."""
        plan = self.attempt.plan
        started = self._started = container.started
        if self.earlier is not None and self.earlier.deadline is not None:
            # The container may have to guess, where the beginning of a long log is gone.
            started = self._started = self.earlier.deadline - plan.limits.timeout - plan.limits.grace
            self.observer.job_adopted(plan)
        else:
            seconds = (started - self.claimed).total_seconds()
            self.observer.job_started(plan, warm=container.warm, seconds=max(0.0, seconds))
        self.timeline.started = started
        self._tell_start(started, container.id, warm=container.warm)
        return started

    def _know_start(self, earlier: OpenClaim) -> None:
        """Of a job that cannot be adopted, say when it started, if that is on record."""
        limits = self.attempt.plan.limits
        if earlier.deadline is not None:
            self._started = self.timeline.started = earlier.deadline - limits.timeout - limits.grace
            self._tell_start(self._started, earlier.container, warm=None)

    def _tell_start(self, started: datetime, container: str | None, *, warm: bool | None) -> None:
        """Tell of the start, unless an earlier life is known to have done so."""
        earlier = self.earlier
        if earlier is None or not earlier.start_told:
            again = earlier.record.told + 1 if earlier is not None else None
            deadline = started + self.attempt.plan.limits.timeout
            self._telling = self.timeline.tell(
                EventKind.STARTED, again=again, container=container, warm=warm, deadline=deadline
            )

    async def _write_down(self, container: Container, started: datetime) -> None:
        """Put the start on record, and that it was told as soon as it was: a life that finds both tells it no more."""
        limits = self.attempt.plan.limits
        deadline = started + limits.timeout + limits.grace
        claim, telling = self.attempt.claim, self._telling
        await note("a job's start", claim, self.journal.started(claim, container.id, deadline))
        if telling is not None:
            await asyncio.wait({telling})
            if not telling.cancelled() and telling.exception() is None:
                await note("that a job's start was told", claim, self.journal.start_told(claim))

    def _output(self, stream: Stream, data: bytes) -> None:
        if self._stopping.resisted:
            return  # the last word on it has been said
        self._bytes += len(data)
        self._pump.write(stream, self._redactor.feed(stream, data))
        self._end_flood()

    def _end_flood(self) -> None:
        """End a job that wrote too much, if its stack wants that; not before its launch is over, which is at hand."""
        plan = self.attempt.plan
        if self._started is not None and plan.stack.log_flood_kills and self._bytes > plan.limits.log_bytes:
            self.stop(StopReason.OUTPUT_LIMIT)

    async def _look_after(self, container: Container, tasks: asyncio.TaskGroup) -> None:
        """Once a second, note how far the log is safe, tell the job's progress, and end it if it wrote too much.

        A look at what it wrote is one of `tasks`, for it may take a minute. None is made where it would find nothing.
        """
        loop, look = asyncio.get_running_loop(), None
        try:
            while True:
                await asyncio.sleep(_until_look(loop.time()))
                if not self.timeline.behind:  # else the broker is away; the newest word goes out when it is back
                    self._tell_progress(container)
                await self._pump.note_position()
                due = look is None or (look.done() and loop.time() >= look.result())
                if due and container.may_exceed:
                    look = tasks.create_task(self._look_at_disk(container))
        finally:
            if look is not None:
                look.cancel()
            if self._ended is not None:
                self._tell_progress(container)  # its last word

    async def _look_at_disk(self, container: Container) -> float:
        """Look once; when to look again, by the loop's clock. The more that costs, the later."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if (excess := await container.excess()) is not None:
            self.stop(StopReason.DISK_LIMIT, excess, at_once=True)
            return math.inf
        return began + min(_DISK_SHARE * (loop.time() - began), _DISK_LONGEST)

    def _tell_progress(self, container: Container) -> None:
        """Tell what the job wrote, unless that was told before, or anything within a second."""
        now = asyncio.get_running_loop().time()
        if now < self._progress_due - _LOOKS_MEET / 2:
            return
        found = container.progress()
        if found is not None and found != self._progress_told:
            self.timeline.tell(EventKind.PROGRESS, progress=_progress(found, self._redactor))
            self._progress_due = now + _LOOK_EVERY
        self._progress_told = found

    async def _result(self, verdict: Verdict, end: Exit) -> JobResult:
        job, redactor = self.attempt.plan.job, self._redactor
        for stream in (Stream.OUT, Stream.ERR):
            self._pump.write(stream, redactor.flush(stream))
        verdict = replace(verdict, reason=redactor.text(verdict.reason), output=redactor.json(verdict.output))
        delivered = await self._pump.finish()
        stats = self._pump.stats(complete=delivered and (end.complete or self._started is None))
        self.observer.output_omitted(stats.omitted_bytes)
        succeeded = verdict.outcome is Outcome.SUCCEEDED
        times = Times(
            published=job.published, claimed=self.claimed, started=self._started, ended=self._ended or self.now()
        )
        return JobResult(
            verdict=verdict,
            times=times,
            usage=end.usage,
            logs=stats,
            tail=() if succeeded else self._pump.tail(),
        )


async def _outcome_of(launch: Awaitable[Container]) -> Container | Exception:
    """A launch's outcome as a value, so that a task group does not wrap its errors."""
    try:
        return await launch
    except (DeferredError, EngineError, ExpiredError, RejectedError, StartError) as error:
        return error


def _until_look(now: float) -> float:
    """Seconds until the next look, from one at `now` by the loop's clock."""
    this = round(now / _LOOKS_MEET)  # a timer goes off a little late
    return (this + math.ceil(_LOOK_EVERY / _LOOKS_MEET)) * _LOOKS_MEET - now


def _progress(raw: bytes, redactor: Redactor) -> Json:
    """What a job wrote to its progress file: JSON, or else a string, of at most 4 KiB."""
    text = raw[:PROGRESS_MAX].decode(errors="replace")
    try:
        return redactor.json(parse_told(text))
    except ValueError:
        return redactor.beginning(raw, PROGRESS_MAX) if len(raw) > PROGRESS_MAX else redactor.text(text)

"""ONE job: start it, pump its log, wait for its end or a reason to end it, judge.

Stopping is a message with a reason (`Run.stop`): time-out, cancel, shutdown and limits use the same door, and the first
reason wins. Cancelling the task is for going down hard; whoever does it discards the attempt afterwards.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runner.errors import (
    DeferredError,
    EngineError,
    EngineUnfit,
    ExpiredError,
    ImageMissing,
    JournalError,
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
from runner.ports import Batch, Container, Engine, Journal, LogPosition, LogSink, Observer, OpenClaim, Secrets
from runner.redaction import Redactor
from runner.timeline import Timeline
from runner.units import format_duration
from runner.verdict import judge, parse_told

log = logging.getLogger(__name__)

_LOG_CONFIRM = 5.0
"""Seconds that the rest of a log may take to be confirmed before the result goes out without it."""
_LOG_STRIDE = 8
"""How many of the last batches are on their way at once."""
_PROGRESS_EVERY = 1.0
_NOTE_EVERY = 1.0
_NOTED_WITHIN = 5.0
"""Seconds that the journal may take; it goes on writing afterwards."""
_DISK_EVERY = 1.0
_DISK_SHARE = 20
_DISK_LONGEST = 30.0
"""Seconds between two looks at what a job has written: 20 times as long as a look takes, within these bounds."""
_SEQ_OF_A_LIFE = 100_000
"""Batches of a log that goes on in another life are counted on from this much later: the last ones were not noted."""
_LAUNCHES = 3
"""Lives of the daemon that may start a job anew that none of them saw begin: it may be what ended them."""
_KILL_AGAIN = 5.0
"""Seconds between two tries to kill, while the engine does not help."""
_TERM_PATIENCE = 15.0
"""Seconds that the engine may take to send SIGTERM."""
_KILL_BUDGET = timedelta(seconds=60)
_NEWS_IS_LATE = timedelta(seconds=1)
"""A job that ended so long before its time-out was not ended by it, whatever clocks do."""
_READ_AGAIN = 0.1
_READ_AGAIN_LONGEST = 5.0
"""Seconds between two tries to read a secret."""
_MAY_RUN = "and it may still run"
_UNANSWERED = f"the container engine has not answered until the job's time was over, {_MAY_RUN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why a job is ended, and how soon. `detail` is what the asker said."""

    reason: StopReason
    detail: str = ""
    at_once: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One attempt, from its plan to its result. `earlier` is what an earlier life of the daemon left of it, if any.

    A job whose end cannot be brought about within `kill_budget` of the first SIGKILL is told of without it.
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
    _stop: Stop | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _stubborn: asyncio.Event = field(default_factory=asyncio.Event)
    _written: asyncio.Event = field(default_factory=asyncio.Event)
    _bytes: int = 0
    _replayed: dict[Stream, int] = field(default_factory=dict)
    _started: datetime | None = None
    _ended: datetime | None = None
    _own_end: datetime | None = None
    _unadopted: str = _UNANSWERED
    _redactor: Redactor = field(default_factory=Redactor)
    _log: JobLog = field(init=False)
    _logged: LogPosition = field(default_factory=LogPosition)
    _offered: deque[LogPosition] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Make the log of this attempt."""
        plan = self.attempt.plan
        if self.earlier is None:
            self._log = JobLog(plan.job.key, self.attempt.claim, plan.limits.log_bytes)
            return
        self._logged = known = self.earlier.logged
        self._replayed = {Stream.OUT: known.out, Stream.ERR: known.err}
        seq = known.seq + _SEQ_OF_A_LIFE
        self._log = JobLog(plan.job.key, self.attempt.claim, plan.limits.log_bytes, seq=seq)
        if self.earlier.stop is not None:
            self.stop(self.earlier.stop, self.earlier.stop_detail)

    @property
    def stopped(self) -> StopReason | None:
        """Why the job is or was ended, if we did it."""
        return self._stop.reason if self._stop else None

    def stop(self, reason: StopReason, detail: str = "", *, at_once: bool = False) -> None:
        """End the job: SIGTERM, its grace, SIGKILL. `at_once` leaves out the grace, also of an earlier stop."""
        if self._stop is None:
            self._stop = Stop(reason=reason, detail=detail, at_once=at_once)
            self._stopping.set()
        if at_once:
            self._hurry.set()

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
            end = Exit(lost=f"the container engine failed: {error}")
        stop = None if self._ended_in_time() else self._stop
        verdict = judge(self.attempt.plan, end, stop.reason if stop else None, stop.detail if stop else "")
        return await self._result(verdict, end)

    def _ended_in_time(self) -> bool:
        """Whether a job that seemed to exceed its time had ended before: the engine was away, and the news late."""
        if self._stop is None or self._stop.reason is not StopReason.TIMEOUT or not (self._started and self._own_end):
            return False
        return self._own_end < self._started + self.attempt.plan.limits.timeout - _NEWS_IS_LATE

    async def _run(self) -> Exit:
        container = await (self._launch() if self.earlier is None else self._adopt(self.earlier))
        if container is None:
            return Exit() if self.earlier is None else Exit(lost=self._unadopted, remains=self._unadopted)
        started = self._begun(container)
        try:
            return await self._see_through(container, started)
        finally:
            self.observer.attempt_ended(self.attempt.plan.stack.name)

    async def _see_through(self, container: Container, started: datetime) -> Exit:
        """Watch over a job that runs until it has ended."""
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(container.wait())
            stubborn = tasks.create_task(self._stubborn.wait())
            watches = [
                stubborn,
                tasks.create_task(self._enforce(container, started)),
                tasks.create_task(self._write_down(container, started)),
                tasks.create_task(self._watch_progress(container)),
                tasks.create_task(self._watch_disk(container)),
                tasks.create_task(self._pump_log()),
                tasks.create_task(self._note_log()),
            ]
            try:
                await asyncio.wait((ending, stubborn), return_when=asyncio.FIRST_COMPLETED)
                self._own_end = container.ended
                self._ended = container.ended or self.now()
            finally:
                for watch in (*watches, ending):
                    watch.cancel()
        return ending.result() if not ending.cancelled() else self._resisted()

    def _resisted(self) -> Exit:
        """The end of a job that could not be killed."""
        seconds = format_duration(self.kill_budget)
        return Exit(remains=f"its container could not be ended within {seconds}, and what is in it may still run")

    async def _launch(self) -> Container | None:
        """The started container; None when the job was stopped before its process ran."""
        return await self._made(self._start(), self._stopping.wait())

    async def _start(self) -> Container:
        """Get what the job needs, for as long as it may still start, and launch it."""
        job = self.attempt.plan.job
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
        try:
            return await self._made(self._take_up(), self._out_of_patience(earlier))
        except NeverStarted:
            if earlier.container is not None or earlier.lives >= _LAUNCHES:
                raise
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
                await self._stopping.wait()
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
            self.timeline.started = started
            return started
        self.timeline.started = started
        seconds = (started - self.claimed).total_seconds()
        self.observer.job_started(plan, warm=container.warm, seconds=max(0.0, seconds))
        self.timeline.tell(
            EventKind.STARTED,
            again=self.earlier.record.told + 1 if self.earlier is not None else None,
            container=container.id,
            warm=container.warm,
            deadline=started + plan.limits.timeout,
        )
        return started

    async def _write_down(self, container: Container, started: datetime) -> None:
        limits = self.attempt.plan.limits
        deadline = started + limits.timeout + limits.grace
        await self._note("a job's start", self.journal.started(self.attempt.claim, container.id, deadline))

    async def _note(self, what: str, writing: Awaitable[None]) -> None:
        """Put it on record. Where the journal's disk is full or hangs, the job is ended in time all the same."""
        try:
            async with asyncio.timeout(_NOTED_WITHIN):
                await writing
        except (JournalError, TimeoutError) as error:
            fault = str(error) or f"the journal took more than {_NOTED_WITHIN:g} s"
            log.warning("%s was not noted", what, extra={"claim": self.attempt.claim, "fault": fault})

    def _output(self, stream: Stream, data: bytes) -> None:
        if self._stubborn.is_set():
            return  # the last word on it has been said
        self._bytes += len(data)
        self._show(stream, self._redactor.feed(stream, data))
        plan = self.attempt.plan
        if plan.stack.log_flood_kills and self._bytes > plan.limits.log_bytes:
            self.stop(StopReason.OUTPUT_LIMIT)

    def _show(self, stream: Stream, data: bytes) -> None:
        """Put text without secrets in the log."""
        if data and (known := self._replayed.get(stream, 0)) > 0:
            # Our earlier life has offered this much; a cut at its end lets `_offer` tell what is new.
            data, again = data[known:], data[:known]
            self._replayed[stream] -= len(again)
            self._write(stream, again)
            if not any(self._replayed.values()):
                while (batch := self._log.take(float("inf"))) is not None:
                    self._offer(batch)
        if data:
            self._write(stream, data)

    def _write(self, stream: Stream, data: bytes) -> None:
        self._log.write(stream, data, at=self.now(), now=asyncio.get_running_loop().time())
        self.observer.output(stream, len(data))
        self._written.set()

    async def _enforce(self, container: Container, started: datetime) -> None:
        """End the job when its time is up or somebody asks; the reason goes on record before a signal is sent."""
        if container.ended is not None:
            return  # it ended by itself while no daemon ran, perhaps long ago
        limits = self.attempt.plan.limits
        ran = max(timedelta(), self.now() - started)
        try:
            async with asyncio.timeout((limits.timeout - ran).total_seconds()):
                await self._stopping.wait()
        except TimeoutError:
            self.stop(StopReason.TIMEOUT)
        stop = self._stop
        if stop is None:
            raise AssertionError("stopping without a reason")
        await self._note("why a job is ended", self.journal.stopping(self.attempt.claim, stop.reason, stop.detail))
        self.timeline.tell(EventKind.STOPPING, stop=stop.reason)
        if not self._hurry.is_set():
            await self._terminate(container)
            await self._grace(limits.grace.total_seconds())
        await self._kill(container)

    async def _terminate(self, container: Container) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TERM_PATIENCE):
                await _although_engine_fails(container.terminate)

    async def _kill(self, container: Container) -> None:
        """Kill the job again and again; what cannot be killed is left to whoever removes the container."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.kill_budget.total_seconds()):
                while True:
                    await _although_engine_fails(container.kill)
                    await asyncio.sleep(_KILL_AGAIN)
        log.warning("a job could not be ended", extra={"claim": self.attempt.claim, "container": container.id})
        self._stubborn.set()

    async def _grace(self, grace: float) -> None:
        try:
            async with asyncio.timeout(grace):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _watch_progress(self, container: Container) -> None:
        loop = asyncio.get_running_loop()
        told, due = None, loop.time()
        try:
            while True:
                await asyncio.sleep(_PROGRESS_EVERY)
                told, due = self._tell_progress(container, told), loop.time() + _PROGRESS_EVERY
        finally:
            if loop.time() >= due:
                self._tell_progress(container, told)  # the job has ended: its last word

    async def _watch_disk(self, container: Container) -> None:
        """End a job at once that writes too much where nothing but this bounds it; look the less, the more it costs."""
        loop, pause = asyncio.get_running_loop(), _DISK_EVERY
        while True:
            await asyncio.sleep(pause)
            began = loop.time()
            if (excess := await container.excess()) is not None:
                return self.stop(StopReason.DISK_LIMIT, excess, at_once=True)
            pause = min(max(_DISK_EVERY, _DISK_SHARE * (loop.time() - began)), _DISK_LONGEST)

    def _tell_progress(self, container: Container, told: bytes | None) -> bytes | None:
        """Tell what the job wrote, unless that was told before; what is told now."""
        found = container.progress()
        if self.timeline.behind:
            return told  # the broker is away; the newest word goes out when it is back
        if found is not None and found != told:
            self.timeline.tell(EventKind.PROGRESS, progress=_progress(found, self._redactor))
        return found

    async def _pump_log(self) -> None:
        """Offer the log's batches as they fall due and find room; the last one is cut when the job has ended."""
        loop = asyncio.get_running_loop()
        while True:
            await self._written.wait()
            self._written.clear()
            while (due := self._log.due) is not None:
                await self._until(due)
                await self.log_sink.room(self.attempt.claim)
                if (batch := self._log.take(loop.time())) is not None:
                    self._offer(batch)

    async def _send_rest_of_log(self) -> bool:
        """Offer what is left, a little at a time, so that no memory fills up; false when any of the log was lost."""
        key, claim = self.attempt.plan.job.key, self.attempt.claim
        give_up = asyncio.get_running_loop().time() + _LOG_CONFIRM
        for number, batch in enumerate(self._log.finish(self.now()), start=1):
            self._offer(batch)
            await asyncio.sleep(0)  # a batch may hold thousands of lines, and others want the loop, too
            if number % _LOG_STRIDE == 0:
                await self.log_sink.flush(key, claim, give_up - asyncio.get_running_loop().time())
        return await self.log_sink.flush(key, claim, give_up - asyncio.get_running_loop().time())

    def _offer(self, batch: Batch) -> None:
        """Offer a batch, unless our earlier life has offered all of it."""
        known = self._logged
        if not batch.end and batch.until_out <= known.out and batch.until_err <= known.err:
            return
        if batch.seq is not None:
            self._logged = LogPosition(out=batch.until_out, err=batch.until_err, seq=batch.seq)
            self._offered.append(self._logged)
        self.log_sink.offer(batch)

    async def _note_log(self) -> None:
        """Keep on record how far the log is safe, so that a later life can go on from there."""
        claim = self.attempt.claim
        while True:
            await asyncio.sleep(_NOTE_EVERY)
            safe, sure = None, self.log_sink.confirmed(claim)
            while self._offered and self._offered[0].seq <= sure:
                safe = self._offered.popleft()
            if safe is None:
                continue
            await self._note("a log's position", self.journal.logged(claim, safe))

    async def _until(self, due: float) -> None:
        """Wait until the log's next batch is due; what is written meanwhile may make it due earlier."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._written.wait()
            except TimeoutError:
                return
            self._written.clear()
            due = min(due, self._log.due or due)

    async def _result(self, verdict: Verdict, end: Exit) -> JobResult:
        job, redactor = self.attempt.plan.job, self._redactor
        for stream in (Stream.OUT, Stream.ERR):
            self._show(stream, redactor.flush(stream))
        verdict = replace(verdict, reason=redactor.text(verdict.reason), output=redactor.json(verdict.output))
        delivered = await self._send_rest_of_log()
        self.log_sink.forget(self.attempt.claim)
        stats = self._log.stats(complete=delivered and (end.complete or self._started is None))
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
            tail=() if succeeded else self._log.tail(),
        )


async def _outcome_of(launch: Awaitable[Container]) -> Container | Exception:
    """A launch's outcome as a value, so that a task group does not wrap its errors."""
    try:
        return await launch
    except (DeferredError, EngineError, ExpiredError, RejectedError, StartError) as error:
        return error


async def _although_engine_fails(call: Callable[[], Awaitable[None]]) -> None:
    """A signal that the engine would not send is sent again later, by the loop that asked for it."""
    try:
        await call()
    except EngineError:
        return


def _progress(raw: bytes, redactor: Redactor) -> Json:
    """What a job wrote to its progress file: JSON, or else a string, of at most 4 KiB."""
    text = raw[:PROGRESS_MAX].decode(errors="replace")
    try:
        return redactor.json(parse_told(text))
    except ValueError:
        return redactor.beginning(raw, PROGRESS_MAX) if len(raw) > PROGRESS_MAX else redactor.text(text)

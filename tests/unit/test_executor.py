"""One attempt: how it is started, watched, stopped and told of."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.attempts import make_attempt
from tests.fake_engine import FakeContainer, Script
from tests.fakes import (
    NOW,
    Clock,
    Diary,
    FakeEvents,
    FakeLogSink,
    FakeObserver,
    FakeSecrets,
    NotingEngine,
    NotingJournal,
    until,
)

from runner import executor, noting, pump, stopping
from runner.errors import (
    DeferredError,
    EngineError,
    EngineGone,
    EngineUnfit,
    ImageMissing,
    JournalError,
    RejectedError,
    StartError,
)
from runner.executor import Run
from runner.job import (
    Attempt,
    Blame,
    Bytes,
    EventKind,
    Exit,
    JobResult,
    Limits,
    Outcome,
    Stack,
    StopReason,
    Stream,
)
from runner.ports import ClaimRecord, LogPosition, OnOutput, OpenClaim
from runner.redaction import Redactor
from runner.timeline import Timeline

ENDS = ("ends",)
SPEAKS = ("speaks",)
RUNS = ("runs",)
DEAF = ("deaf",)
BEGIN = (EventKind.CLAIMED, EventKind.STARTED)
HANGS = ("hangs",)
FETCHES = ("fetches",)
SCRIPTS: Mapping[tuple[str, ...], Script] = {
    ENDS: Script(end=Exit(code=0, complete=True, output=b'{"answer": 42}')),
    SPEAKS: Script(output=[(Stream.OUT, b"one\ntwo"), (Stream.ERR, b"three\n")], end=Exit(code=2, complete=True)),
    RUNS: Script(),
    DEAF: Script(ignores_term=True),
    HANGS: Script(hangs=True),
    FETCHES: Script(prepares_for_ever=True),
}
SHORT = timedelta(milliseconds=5)
LONG = timedelta(hours=1)


class House:
    """One attempt and its outside."""

    def __init__(self, *command: str, limits: Limits | None = None, stack: Stack | None = None) -> None:
        self.diary = Diary()
        self.clock = Clock()
        self.events = FakeEvents(self.diary)
        self.logs = FakeLogSink(self.diary)
        self.journal = NotingJournal(self.diary, self.clock)
        self.engine = NotingEngine(self.diary, dict(SCRIPTS))
        self.observer = FakeObserver()
        self.secrets = FakeSecrets()
        self.attempt = make_attempt(*command, claim="c1", limits=limits or Limits(grace=SHORT), stack=stack)
        self.earlier: OpenClaim | None = None
        self.kill_budget = LONG

    def let_start_within(self, span: timedelta) -> None:
        plan = self.attempt.plan
        job = replace(plan.job, published=NOW, start_within=span)
        self.attempt = replace(self.attempt, plan=replace(plan, job=job))

    @property
    def container(self) -> FakeContainer:
        return self.engine.live[self.attempt.container_name]

    @property
    def runs(self) -> bool:
        return EventKind.STARTED in self.events.kinds("job-1")

    @property
    def record(self) -> ClaimRecord:
        attempt = self.attempt
        return ClaimRecord(
            claim="c1", key=attempt.plan.job.key, container_name=attempt.container_name, attempt=1, claimed=NOW
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[tuple[Run, "asyncio.Task[JobResult]"]]:
        """The run, under way; it has to have ended at the end."""
        await self.journal.claimed(self.record)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            timeline = Timeline(
                events=self.events,
                tasks=tasks,
                now=self.clock,
                submission=self.attempt.plan.job,
                worker="w1",
                claim="c1",
                attempt=1,
            )
            run = Run(
                attempt=self.attempt,
                claimed=NOW,
                engine=self.engine,
                secrets=self.secrets,
                log_sink=self.logs,
                journal=self.journal,
                observer=self.observer,
                timeline=timeline,
                now=self.clock,
                earlier=self.earlier,
                kill_budget=self.kill_budget,
            )
            running = tasks.create_task(run.execute())
            yield run, running
        assert running.done()

    async def result(self) -> JobResult:
        async with self.run() as (_, running):
            pass
        return running.result()

    def stops(self) -> list[StopReason | None]:
        return [event.stop for event in self.events.published if event.kind is EventKind.STOPPING]


async def on_a_full_disk(*_: object) -> None:
    """In place of what writes to the journal."""
    raise JournalError("the journal failed: database or disk is full")


async def on_a_disk_that_hangs(*_: object) -> None:
    await asyncio.Event().wait()


async def test_a_job_runs_although_its_start_cannot_be_noted() -> None:
    house = House(*ENDS)
    house.journal.started = on_a_full_disk  # type: ignore[assignment, method-assign]
    assert (await house.result()).verdict.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(
    ("reason", "outcome"), [(StopReason.TIMEOUT, Outcome.TIMED_OUT), (StopReason.CANCELLED, Outcome.CANCELLED)]
)
async def test_a_job_is_ended_although_its_intent_cannot_be_noted(reason: StopReason, outcome: Outcome) -> None:
    house = House(*DEAF)
    house.journal.stopping = on_a_full_disk  # type: ignore[assignment, method-assign]
    async with house.run() as (run, running):
        await until(lambda: house.runs)
        run.stop(reason)
    assert running.result().verdict.outcome is outcome
    assert house.stops() == [reason]


async def test_a_job_is_ended_although_the_journal_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "_NOTED_WITHIN", 0.01)
    house = House(*DEAF)
    house.journal.stopping = on_a_disk_that_hangs  # type: ignore[assignment, method-assign]
    async with house.run() as (run, running):
        await until(lambda: house.runs)
        run.stop(StopReason.CANCELLED)
    assert running.result().verdict.outcome is Outcome.CANCELLED


async def test_a_job_that_ends_well_gives_its_output() -> None:
    house = House(*ENDS)
    result = await house.result()
    assert (result.verdict.outcome, result.verdict.output) == (Outcome.SUCCEEDED, {"answer": 42})
    assert (result.times.claimed, result.times.started) == (NOW, NOW)
    assert result.tail == ()
    assert house.observer.started == house.observer.attempts_ended == ["busybox"]


async def test_started_tells_the_container_and_the_deadline() -> None:
    house = House(*ENDS, limits=Limits(timeout=timedelta(minutes=3)))
    await house.result()
    [event] = [event for event in house.events.published if event.kind is EventKind.STARTED]
    assert (event.container, event.warm) == (house.engine.of["job-1"].id, False)
    assert event.deadline == NOW + timedelta(minutes=3)


async def test_the_journal_knows_when_the_container_has_to_be_gone() -> None:
    house = House(*RUNS, limits=Limits(timeout=timedelta(minutes=3), grace=timedelta(minutes=1)))
    async with house.run() as (_, _running):
        await until(lambda: house.journal.containers)
        assert house.journal.containers == {"c1": (house.container.id, NOW + timedelta(minutes=4))}
        house.container.finish(Exit(code=0))


# The log


async def test_the_whole_log_is_offered_and_flushed_before_the_result() -> None:
    house = House(*SPEAKS)
    result = await house.result()
    assert house.logs.text("c1") == "one\nthree\ntwo"
    assert [batch.end for batch in house.logs.batches][-1]
    assert house.diary.entries[-1] == "flush job-1"
    assert (result.logs.stdout_bytes, result.logs.stderr_bytes, result.logs.complete) == (7, 6, True)
    assert [line.text for line in result.tail] == ["one", "three", "two"]
    assert house.observer.bytes == {Stream.OUT: 7, Stream.ERR: 6}


async def test_a_log_without_a_word_ends_all_the_same() -> None:
    house = House(*ENDS)
    result = await house.result()
    [batch] = house.logs.batches
    assert (batch.end, list(batch.lines), result.logs.complete) == (True, [], True)


async def test_output_is_offered_while_the_job_runs() -> None:
    house = House(*RUNS)
    async with house.run():
        await until(lambda: house.runs)
        house.container.emit(Stream.OUT, b"hello\n")
        await until(lambda: house.logs.text("c1") == "hello\n")
        house.container.finish(Exit(code=0))


@pytest.mark.parametrize("command", [SPEAKS, ENDS], ids=["with words", "without"])
async def test_a_log_is_forgotten_once_it_has_ended(command: tuple[str, ...]) -> None:
    house = House(*command)
    await house.result()
    assert house.logs.forgotten == ["c1"]


async def test_a_log_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_CONFIRM", 0.01)
    house = House(*SPEAKS)
    house.logs.stuck = True
    result = await house.result()
    assert result.verdict.exit_code == 2
    assert result.logs.complete is False


async def test_a_log_that_the_engine_did_not_hand_over_whole_is_not_complete() -> None:
    house = House(*RUNS)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        house.container.finish(Exit(code=0, complete=False))
    assert running.result().logs.complete is False


async def test_what_is_over_the_log_limit_is_left_out_and_counted() -> None:
    house = House(*RUNS, limits=Limits(log_bytes=Bytes(1000)))
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        house.container.emit(Stream.OUT, b"0123456789" * 500)
        house.container.finish(Exit(code=0, complete=True))
    logs = running.result().logs
    assert (logs.stdout_bytes, logs.complete) == (5000, True)
    assert logs.omitted_bytes >= 4000
    assert house.observer.omitted == logs.omitted_bytes


async def test_a_flood_ends_a_job_whose_stack_says_so() -> None:
    stack = Stack(name="busybox", revision="1", image="sha256:" + 64 * "0", log_flood_kills=True)
    house = House(*RUNS, limits=Limits(log_bytes=Bytes(10)), stack=stack)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        house.container.emit(Stream.OUT, b"0123456789")
        assert house.stops() == []
        house.container.emit(Stream.ERR, b"!")
    assert running.result().verdict.outcome is Outcome.OUTPUT_LIMIT
    assert house.stops() == [StopReason.OUTPUT_LIMIT]


# Stopping


async def test_a_job_whose_time_is_up_gets_a_term_then_a_kill() -> None:
    house = House(*DEAF, limits=Limits(timeout=SHORT, grace=SHORT))
    result = await house.result()
    assert house.engine.of["job-1"].signals == ["TERM", "KILL"]
    assert (result.verdict.outcome, result.verdict.signal) == (Outcome.TIMED_OUT, 9)
    assert house.stops() == [StopReason.TIMEOUT]


async def test_a_job_that_heeds_the_term_is_not_killed() -> None:
    house = House(*RUNS, limits=Limits(timeout=SHORT, grace=LONG))
    result = await house.result()
    assert house.engine.of["job-1"].signals == ["TERM"]
    assert result.verdict.outcome is Outcome.TIMED_OUT


async def test_the_reason_is_on_record_before_any_signal_is_sent() -> None:
    house = House(*RUNS, limits=Limits(grace=LONG))
    seen: list[object] = []
    async with house.run() as (run, _):
        await until(lambda: house.runs)
        terminate = house.container.terminate

        async def watched() -> None:
            seen.extend([dict(house.journal.stops), house.stops()])
            await terminate()

        house.container.terminate = watched  # type: ignore[method-assign]
        run.stop(StopReason.CANCELLED, "no longer wanted")
    assert seen[0] == {"c1": (StopReason.CANCELLED, "no longer wanted")}


async def test_the_first_reason_wins() -> None:
    house = House(*DEAF, limits=Limits(grace=LONG))
    async with house.run() as (run, running):
        await until(lambda: house.runs)
        run.stop(StopReason.CANCELLED, "first")
        run.stop(StopReason.SHUTDOWN, at_once=True)
    verdict = running.result().verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.CANCELLED, "cancelled: first")
    assert house.stops() == [StopReason.CANCELLED]
    assert house.container.signals[-1] == "KILL"


async def test_a_hurry_during_the_grace_kills_at_once() -> None:
    house = House(*DEAF, limits=Limits(grace=LONG))
    async with house.run() as (run, _):
        await until(lambda: house.runs)
        run.stop(StopReason.SHUTDOWN)
        await until(lambda: house.container.signals == ["TERM"])
        run.stop(StopReason.SHUTDOWN, at_once=True)
    assert house.engine.of["job-1"].signals == ["TERM", "KILL"]


async def test_a_job_that_is_stopped_at_once_gets_no_term() -> None:
    house = House(*DEAF, limits=Limits(grace=LONG))
    async with house.run() as (run, _):
        await until(lambda: house.runs)
        run.stop(StopReason.SHUTDOWN, at_once=True)
    assert house.engine.of["job-1"].signals == ["KILL"]


@pytest.mark.parametrize("early", [True, False])
async def test_a_job_that_is_stopped_while_it_is_launched_never_starts(*, early: bool) -> None:
    house = House(*HANGS)
    async with house.run() as (run, running):
        if not early:
            await until(lambda: house.engine.live)
        run.stop(StopReason.CANCELLED)
    result = running.result()
    assert result.verdict.outcome is Outcome.CANCELLED
    assert result.times.started is None
    assert house.observer.started == house.observer.attempts_ended == []
    assert EventKind.STARTED not in house.events.kinds("job-1")


async def test_a_signal_that_the_engine_does_not_send_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_KILL_AGAIN", 0.001)
    house = House(*DEAF)
    async with house.run() as (run, running):
        await until(lambda: house.runs)
        kill, tries = house.container.kill, []

        async def flaky() -> None:
            tries.append("kill")
            if len(tries) < 3:
                raise EngineGone("no answer")
            await kill()

        async def never() -> None:
            raise EngineGone("no answer")

        house.container.kill = flaky  # type: ignore[method-assign]
        house.container.terminate = never  # type: ignore[method-assign]
        run.stop(StopReason.CANCELLED)
    assert len(tries) == 3
    assert running.result().verdict.outcome is Outcome.CANCELLED


async def test_a_job_that_cannot_be_killed_is_told_of_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_KILL_AGAIN", 0.001)
    house = House(*DEAF, limits=Limits(timeout=SHORT, grace=SHORT))
    house.kill_budget = timedelta(milliseconds=300)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        tries = []

        async def never() -> None:
            tries.append("kill")
            raise EngineGone("no answer")

        house.container.kill = never  # type: ignore[method-assign]
        house.container.emit(Stream.OUT, b"before\n")
        await asyncio.wait({running})
        house.container.emit(Stream.OUT, b"after\n")
    assert len(tries) > 1
    verdict = running.result().verdict
    assert (verdict.outcome, verdict.exit_code, verdict.signal) == (Outcome.TIMED_OUT, None, None)
    assert verdict.reason.endswith("could not be ended within 0.3s, and what is in it may still run")
    assert house.logs.text("c1") == "before\n"
    assert running.result().logs.complete is False
    assert house.observer.attempts_ended == ["busybox"]


async def test_a_term_that_the_engine_does_not_send_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_TERM_PATIENCE", 0.001)
    house = House(*DEAF, limits=Limits(grace=SHORT))
    async with house.run() as (run, running):
        await until(lambda: house.runs)

        async def hangs() -> None:
            await asyncio.Event().wait()

        house.container.terminate = hangs  # type: ignore[method-assign]
        run.stop(StopReason.CANCELLED)
    assert house.engine.of["job-1"].signals == ["KILL"]
    assert running.result().verdict.outcome is Outcome.CANCELLED


async def test_a_job_that_ends_by_itself_after_its_term_was_still_stopped_by_us() -> None:
    house = House(*DEAF, limits=Limits(grace=LONG))
    async with house.run() as (run, running):
        await until(lambda: house.runs)
        run.stop(StopReason.CANCELLED)
        await until(lambda: house.container.signals == ["TERM"])
        house.container.finish(Exit(code=0, complete=True))
    verdict = running.result().verdict
    assert (verdict.outcome, verdict.exit_code) == (Outcome.CANCELLED, 0)


async def test_an_attempt_that_is_cancelled_goes_down_hard() -> None:
    house = House(*RUNS)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        running.cancel()
    assert running.cancelled()
    assert house.engine.of["job-1"].signals == []


# Progress


def progress_of(house: House) -> list[object]:
    return [event.progress for event in house.events.published if event.kind is EventKind.PROGRESS]


async def no_more_looks(house: House, monkeypatch: pytest.MonkeyPatch, told: bytes | None = None) -> None:
    """Have the job's progress looked at, and then for long not any more."""
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    await until(lambda: house.runs)
    await until(lambda: house.container.looks)
    monkeypatch.setattr(executor, "_LOOK_EVERY", 3600.0)
    house.container.told = told
    looks = house.container.looks
    await until(lambda: house.container.looks > looks)


async def test_progress_is_told_when_it_changes_and_no_more_often_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executor._LOOK_EVERY == 1.0
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    house = House(*RUNS)
    async with house.run():
        await until(lambda: house.runs)
        house.container.told = b'{"percent": 5}'
        await until(lambda: len(progress_of(house)) == 1)
        await asyncio.sleep(0.005)
        house.container.told = b"nearly there"
        await until(lambda: len(progress_of(house)) == 2)
        house.container.finish(Exit(code=0))
    assert progress_of(house) == [{"percent": 5}, "nearly there"]


async def test_the_last_word_is_told_though_the_job_has_ended_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(*RUNS)
    async with house.run():
        await no_more_looks(house, monkeypatch)
        house.container.told = b"all done"
        house.container.finish(Exit(code=0))
    assert progress_of(house) == ["all done"]
    assert house.events.kinds("job-1")[-1] is EventKind.PROGRESS


async def test_but_not_within_a_second_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(*RUNS)
    async with house.run():
        await no_more_looks(house, monkeypatch, b"half")
        await until(lambda: progress_of(house) == ["half"])
        house.container.told = b"all done"
        house.container.finish(Exit(code=0))
    assert progress_of(house) == ["half"]


async def test_that_of_an_attempt_that_goes_down_hard_is_left_to_the_next_life() -> None:
    house = House(*RUNS)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        house.container.told = b"half"
        running.cancel()
    assert progress_of(house) == []


async def test_progress_is_told_while_a_look_at_the_disk_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    house = House(*RUNS)
    async with house.run():
        await until(lambda: house.runs)
        house.container.answers.clear()
        await until(lambda: house.container.waiting)
        house.container.told = b"half"
        await until(lambda: progress_of(house))
        assert house.container.waiting == 1
        house.container.finish(Exit(code=0))
    assert house.container.waiting == 0


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", ""),
        (b"null", None),
        (b'"quoted"', "quoted"),
        (b"{broken", "{broken"),
        (b"\xff", "�"),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b'["\\ud800"]', '["\\ud800"]'),
        (b"x" * 5000, "x" * 4096),
    ],
)
def test_progress_is_json_or_a_string_that_can_be_sent(raw: bytes, told: object) -> None:
    assert executor._progress(raw, Redactor()) == told


@pytest.mark.parametrize("depth", [50, 500, 900, 950, 980, 990, 1000, 2000])
async def test_progress_of_any_depth_can_be_told(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    house = House(*RUNS)
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        house.container.told = b"[" * depth + b"]" * depth
        await until(lambda: EventKind.PROGRESS in house.events.kinds("job-1"))
        house.container.finish(Exit(code=0))
    assert running.result().verdict.outcome is Outcome.SUCCEEDED


# What goes wrong at the start


@pytest.mark.parametrize(
    ("error", "outcome", "blame"),
    [
        (StartError("unknown runtime"), Outcome.FAILED, Blame.OPERATOR),
        (EngineError("no space left"), Outcome.LOST, Blame.PLATFORM),
        (EngineGone("no answer"), Outcome.LOST, Blame.PLATFORM),
    ],
)
async def test_a_start_that_fails_is_a_result(error: Exception, outcome: Outcome, blame: Blame) -> None:
    house = House("fails")
    house.engine.scripts["fails",] = Script(error=error)
    result = await house.result()
    assert (result.verdict.outcome, result.verdict.blame) == (outcome, blame)
    assert str(error) in result.verdict.reason
    assert result.times.started is None
    assert house.logs.batches[-1].end


async def test_a_job_is_stopped_while_it_is_prepared() -> None:
    house = House(*FETCHES)
    async with house.run() as (run, running):
        await until(lambda: house.engine.preparing)
        run.stop(StopReason.CANCELLED, "enough")
    verdict = running.result().verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.CANCELLED, "cancelled: enough")
    assert house.engine.launched == []


async def test_a_job_whose_start_comes_too_late_while_it_is_prepared_has_expired() -> None:
    house = House(*FETCHES)
    house.let_start_within(SHORT)
    result = await house.result()
    assert (result.verdict.outcome, result.verdict.blame) == (Outcome.EXPIRED, Blame.PLATFORM)
    assert result.verdict.reason == "not started within 0.005s, its start_within: its code was not here yet"
    assert house.engine.launched == []


async def test_a_job_that_starts_again_may_be_prepared_for_longer() -> None:
    house = House(*FETCHES)
    house.let_start_within(timedelta())
    house.attempt = replace(house.attempt, number=2)
    async with house.run() as (run, running):
        await until(lambda: house.engine.preparing)
        run.stop(StopReason.CANCELLED)
    assert running.result().verdict.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("error", [RejectedError("code: it is no good"), DeferredError("its server is away")])
async def test_what_cannot_be_prepared_is_for_the_worker_to_see_to(error: Exception) -> None:
    house = House(*FETCHES)
    house.engine.scripts[FETCHES] = Script(unprepared=error)
    with pytest.raises(ExceptionGroup) as caught:
        await house.result()
    assert caught.group_contains(type(error))


@pytest.mark.parametrize("error", [ImageMissing("No such image"), EngineUnfit("its disk is full")])
async def test_a_job_that_is_not_to_start_here_is_for_the_worker_to_see_to(error: EngineError) -> None:
    house = House("fails")
    house.engine.scripts["fails",] = Script(error=error)
    with pytest.raises(ExceptionGroup) as caught:
        await house.result()
    assert caught.group_contains(type(error))


# Adoption


async def adopted(house: House, **more: object) -> None:
    """Let an earlier life have launched the container, and have written it down."""
    container = await house.engine.launch(house.attempt, lambda *_: None)
    limits = house.attempt.plan.limits
    deadline = container.started + limits.timeout + limits.grace
    house.earlier = replace(
        OpenClaim(record=house.record, lives=0, container=container.id, deadline=deadline, start_told=True),
        **more,  # type: ignore[arg-type]
    )


async def test_a_job_of_an_earlier_life_goes_on_where_it_was() -> None:
    house = House(*RUNS)
    await adopted(house, logged=LogPosition(out=6, err=0, seq=4))
    house.engine.live[house.attempt.container_name].emit(Stream.OUT, b"known\nnew\n")
    async with house.run() as (_, running):
        await until(lambda: house.logs.text("c1"))
        house.container.finish(Exit(code=0, complete=True))
    assert running.result().verdict.outcome is Outcome.SUCCEEDED
    assert EventKind.STARTED not in house.events.kinds("job-1"), "it was told by the earlier life"
    assert "new" in house.logs.text("c1")
    assert min(batch.seq for batch in house.logs.batches if batch.seq) > 4
    assert house.observer.started == []


async def test_a_start_that_an_earlier_life_did_not_note_is_told_under_the_number_that_it_had_there() -> None:
    house = House(*RUNS)
    await adopted(house, deadline=None, start_told=False, record=replace(house.record, told=2))
    assert await told_again(house) == [(EventKind.CLAIMED, 2), (EventKind.STARTED, 3)]
    assert len(house.observer.started) == 1


async def test_a_start_that_nobody_may_have_heard_of_is_told_again_though_it_is_on_record() -> None:
    house = House(*RUNS)
    await adopted(house, start_told=False, record=replace(house.record, told=2))
    assert await told_again(house) == [(EventKind.CLAIMED, 2), (EventKind.STARTED, 3)]
    assert house.observer.started == [], "the earlier life counted it"


async def told_again(house: House) -> list[tuple[EventKind, int]]:
    """What a later life tells of the start, and under which numbers."""
    async with house.run() as (_, _running):
        await until(lambda: house.runs)
        house.container.finish(Exit(code=0, complete=True))
    return [(event.kind, event.seq) for event in house.events.of("job-1") if event.kind in BEGIN]


async def test_that_a_start_was_told_is_on_record_once_it_is_confirmed_and_the_start_at_once() -> None:
    house = House(*RUNS)
    house.events.confirms.clear()
    async with house.run() as (_, _running):
        await until(lambda: "c1" in house.journal.containers)
        assert house.journal.told == set()
        house.events.confirms.set()
        await until(lambda: house.journal.told == {"c1"})
        house.container.finish(Exit(code=0, complete=True))


def test_jobs_that_began_at_different_moments_are_looked_at_in_the_same_ones_once_a_second() -> None:
    looks = {began: began + executor._until_look(began) for began in (5.02, 5.031, 5.049)}
    assert {round(look, 6) for look in looks.values()} == {6.0}
    assert 6.003 + executor._until_look(6.003) == pytest.approx(7.0), "a timer that went off late"


async def test_a_job_that_an_earlier_life_was_ending_is_ended_for_the_same_reason() -> None:
    house = House(*RUNS)
    await adopted(house, stop=StopReason.TIMEOUT)
    result = await house.result()
    assert result.verdict.outcome is Outcome.TIMED_OUT


async def test_the_time_that_a_job_ran_under_an_earlier_life_counts() -> None:
    house = House(*RUNS, limits=Limits(timeout=LONG, grace=SHORT))
    house.clock.now = NOW + LONG
    await adopted(house)
    result = await house.result()
    assert result.verdict.outcome is Outcome.TIMED_OUT


async def test_a_job_that_ended_in_time_has_not_timed_out_however_late_that_is_seen() -> None:
    house = House(*RUNS, limits=Limits(timeout=LONG, grace=SHORT))
    await adopted(house)
    house.container.ended = ended = house.container.started + timedelta(seconds=1)
    house.container.finish(Exit(code=0, complete=True))
    house.clock.now = NOW + 2 * LONG
    result = await house.result()
    assert (result.verdict.outcome, result.times.ended) == (Outcome.SUCCEEDED, ended)
    assert house.stops() == []


async def test_a_job_that_ended_in_time_has_not_timed_out_though_the_news_came_after_it() -> None:
    house = House(*DEAF, limits=Limits(timeout=timedelta(seconds=2), grace=LONG))
    house.clock.now = NOW + timedelta(seconds=2) - SHORT
    async with house.run() as (_, running):
        await until(house.stops)
        house.container.ended = house.container.started + timedelta(milliseconds=500)
        house.container.finish(Exit(code=0, complete=True))
    assert running.result().verdict.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("stopped", [True, False])
async def test_an_engine_that_says_nothing_of_an_earlier_lifes_job_is_not_waited_for_for_ever(*, stopped: bool) -> None:
    house = House(*RUNS, limits=Limits(timeout=LONG, grace=SHORT))
    await adopted(house)
    house.kill_budget = SHORT
    asked = asyncio.Event()

    async def hangs(attempt: Attempt, on_output: OnOutput) -> FakeContainer:  # noqa: ARG001
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    house.engine.adopt = hangs  # type: ignore[method-assign]
    if not stopped:
        house.clock.now = NOW + LONG
    async with house.run() as (run, running):
        await asked.wait()
        if stopped:
            run.stop(StopReason.CANCELLED, "enough")
    verdict = running.result().verdict
    assert verdict.outcome is (Outcome.CANCELLED if stopped else Outcome.LOST)
    assert "may still run" in verdict.reason


async def test_the_deadline_on_record_holds_where_the_start_is_not_known() -> None:
    house = House(*RUNS, limits=Limits(timeout=LONG, grace=SHORT))
    await adopted(house)
    began = house.container.started
    house.container.started = began + LONG
    house.clock.now = began + LONG
    result = await house.result()
    assert (result.verdict.outcome, result.times.started) == (Outcome.TIMED_OUT, began)


async def test_a_job_that_no_life_has_started_is_started() -> None:
    house = House(*ENDS)
    house.earlier = OpenClaim(record=house.record, lives=1)
    result = await house.result()
    assert result.verdict.outcome is Outcome.SUCCEEDED
    assert house.engine.launched == [house.attempt.container_name]
    assert house.engine.discarded == [house.attempt.container_name]
    assert EventKind.STARTED in house.events.kinds("job-1")


async def test_a_job_whose_remains_cannot_be_removed_is_not_waited_for_for_ever() -> None:
    house = House(*ENDS)
    house.earlier = OpenClaim(record=house.record, lives=1)
    house.kill_budget = SHORT
    house.engine.cleans.clear()
    result = await house.result()
    assert result.verdict.outcome is Outcome.LOST
    assert "cannot be removed" in result.verdict.reason
    assert house.engine.launched == []


async def test_a_job_that_life_after_life_has_not_started_is_lost() -> None:
    house = House(*ENDS)
    house.earlier = OpenClaim(record=house.record, lives=3)
    assert (await house.result()).verdict.outcome is Outcome.LOST
    assert house.engine.launched == []


async def test_a_job_whose_container_is_gone_is_lost() -> None:
    house = House(*RUNS)
    house.earlier = OpenClaim(record=house.record, lives=0, container="f" * 64)
    result = await house.result()
    assert result.verdict.outcome is Outcome.LOST


@pytest.mark.parametrize("told", [True, False])
async def test_a_job_whose_container_is_gone_has_started_when_the_record_says(*, told: bool) -> None:
    house = House(*RUNS)
    limits = house.attempt.plan.limits
    deadline = NOW + limits.timeout + limits.grace
    house.earlier = OpenClaim(record=house.record, lives=0, container="f" * 64, deadline=deadline, start_told=told)
    result = await house.result()
    assert (result.verdict.outcome, result.times.started) == (Outcome.LOST, NOW)
    again = [(event.kind, event.seq) for event in house.events.of("job-1") if event.kind in BEGIN]
    assert again == ([] if told else [(EventKind.CLAIMED, 1), (EventKind.STARTED, 2)])


# Disk


async def test_the_engine_is_not_asked_about_a_job_that_can_have_no_excess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    house = House(*DEAF, limits=Limits(grace=LONG))
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        container = house.container
        container.may_exceed, looks = False, container.looks
        await until(lambda: container.looks > looks + 2 and not container.waiting)  # the last question is answered
        container.too_much, looks = "wrote 5 GiB", container.looks
        await until(lambda: container.looks > looks + 2)
        assert house.stops() == []
        container.may_exceed = True
    assert running.result().verdict.outcome is Outcome.DISK_LIMIT


@pytest.mark.parametrize("broker", ["there", "away"])
async def test_a_job_that_writes_too_much_is_ended_at_once(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.001)
    house = House(*DEAF, limits=Limits(grace=LONG))
    if broker == "away":
        house.events.confirms.clear()  # nor is the start on record
    async with house.run() as (_, running):
        await until(lambda: house.runs)
        container = house.container
        container.too_much = "wrote 5 GiB"
        await until(running.done)
        house.events.confirms.set()
    verdict = running.result().verdict
    assert (verdict.outcome, verdict.blame, verdict.reason) == (Outcome.DISK_LIMIT, Blame.JOB, "wrote 5 GiB")
    assert container.signals == ["KILL"]
    assert house.stops() == [StopReason.DISK_LIMIT]

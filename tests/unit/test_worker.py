"""What a worker does with what it is given, whatever happens, and in which order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count

import pytest
from tests.fake_engine import Script
from tests.fakes import (
    NOW,
    STACK,
    Clock,
    Diary,
    FakeCancelled,
    FakeDelivery,
    FakeEvents,
    FakeIntake,
    FakeLogSink,
    FakeObserver,
    FakeSecrets,
    FakeStacks,
    FakeUniqueness,
    NotingEngine,
    NotingJournal,
    make_invalid,
    make_job,
    until,
)

from runner import tenure
from runner.capacity import NOTHING, Budget, Capacity, Claim
from runner.errors import (
    BrokerError,
    DeferredError,
    EngineError,
    EngineGone,
    EngineUnfit,
    ImageMissing,
    JournalError,
    RejectedError,
    StartError,
)
from runner.fairness import Fairness
from runner.job import (
    Attempt,
    Blame,
    Bytes,
    DeadCode,
    EventKind,
    Exit,
    Job,
    JobResult,
    Limits,
    LimitsRequest,
    Outcome,
    RetryPolicy,
    SecretRef,
    StopReason,
    Stream,
)
from runner.plan import Policy
from runner.ports import ClaimRecord, OnOutput, Vanished
from runner.worker import Worker
from runner.workplace import Outside, Rules

MIB = 2**20
ENDS = ("ends",)
FAILS = ("fails",)
RUNS = ("runs",)
DEAF = ("deaf",)
HANGS = ("hangs",)
SCRIPTS: Mapping[tuple[str, ...], Script] = {
    ENDS: Script(output=[(Stream.OUT, b"hello\n")], end=Exit(code=0, complete=True)),
    FAILS: Script(end=Exit(code=3, complete=True)),
    RUNS: Script(),
    DEAF: Script(ignores_term=True),
    HANGS: Script(hangs=True),
}
LIMITS = Limits(cpus=1, memory=Bytes(64 * MIB), disk=Bytes(0), grace=timedelta(milliseconds=5))
RULES = Rules(
    name="w1",
    policy=Policy(
        default=LIMITS,
        maximum=LimitsRequest(cpus=3),
        cpus=2,
        memory=Bytes(256 * MIB),
        tenant_stacks={"other": frozenset()},
    ),
    max_lost=3,
    max_deferred=timedelta(hours=1),
    drain_timeout=timedelta(milliseconds=20),
)


@dataclass
class House:
    """A worker of two CPUs, and the outside that it lives in."""

    clock: Clock = field(default_factory=Clock)
    diary: Diary = field(default_factory=Diary)
    scripts: Mapping[tuple[str, ...], Script] = field(default_factory=lambda: SCRIPTS)
    max_jobs: int = 64
    fairness: Fairness = field(default_factory=lambda: Fairness({}))

    def __post_init__(self) -> None:
        self.intake = FakeIntake(self.diary)
        self.events = FakeEvents(self.diary)
        self.logs = FakeLogSink(self.diary)
        self.journal = NotingJournal(self.diary, self.clock)
        self.engine = NotingEngine(self.diary, self.scripts)
        self.stacks = FakeStacks()
        self.cancelled = FakeCancelled()
        self.uniqueness = FakeUniqueness()
        self.observer = FakeObserver()
        self.secrets = FakeSecrets()
        total = Claim(millicpus=2000, memory=Bytes(256 * MIB))
        self.capacity = Capacity(budget=Budget(total=total, max_jobs=self.max_jobs), typical=Claim.of(LIMITS))

    def worker(self, rules: Rules = RULES) -> Worker:
        numbers = count(1)
        outside = Outside(
            intake=self.intake,
            engine=self.engine,
            secrets=self.secrets,
            events=self.events,
            log_sink=self.logs,
            journal=self.journal,
            stacks=self.stacks,
            cancelled=self.cancelled,
            uniqueness=self.uniqueness,
            observer=self.observer,
            now=self.clock,
            new_claim=lambda: f"c{next(numbers)}",
        )
        return Worker(rules, outside, self.capacity, self.fairness)

    def put(self, job: Job, **more: object) -> FakeDelivery:
        return self.intake.put(FakeDelivery(submission=job), **more)

    def offer(self, job: Job, **more: object) -> FakeDelivery:
        """Let the worker have the job even when it is full."""
        return self.intake.offer(FakeDelivery(submission=job), **more)

    def runs(self, job_id: str) -> bool:
        return job_id in self.engine.of

    def result(self, job_id: str) -> JobResult:
        found = [event.result for event in self.events.of(job_id) if event.kind is EventKind.FINISHED]
        assert len(found) == 1
        assert found[0] is not None
        return found[0]


@asynccontextmanager
async def at_work(house: House, rules: Rules = RULES) -> AsyncIterator[Worker]:
    """A worker that runs; at the end it is drained, and nothing is left of it."""
    worker = house.worker(rules)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
        async with asyncio.timeout(30):
            if not worker.draining:
                await worker.drain()
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    house.intake.check()
    assert not house.engine.live
    assert house.capacity.claimed == NOTHING
    assert not worker.waiting()
    assert not house.journal.open
    assert worker.running == 0


async def settled(delivery: FakeDelivery) -> None:
    await until(lambda: delivery.how is not None, "settled")


# One job, from its delivery to its end


async def test_a_job_goes_its_way_in_this_order() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        await settled(delivery)
        await until(lambda: house.diary.count("discard a"))
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.STARTED, EventKind.FINISHED]
    assert house.diary.order(
        "claim a", "write claimed a", "launch a", "flush a", "finished a", "settle a", "discard a"
    ) == ["claim a", "write claimed a", "launch a", "flush a", "finished a", "settle a", "discard a"]
    assert house.logs.text("c1") == "hello\n"
    assert house.observer.ended == [("busybox", Outcome.SUCCEEDED)]
    assert house.observer.cleaned == ["busybox"]
    assert house.journal.owed == {}


async def test_all_events_of_a_job_are_one_claim_counted_from_one() -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
    events = house.events.of("a")
    assert [event.seq for event in events] == [1, 2, 3]
    assert {event.claim for event in events} == {"c1"}
    assert {event.attempt for event in events} == {1}
    assert {event.worker for event in events} == {"w1"}


async def test_nothing_is_settled_before_finished_is_confirmed() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        await until(lambda: house.events.kinds("a") == [EventKind.CLAIMED])
        house.events.confirms.clear()
        await until(lambda: house.events.outcome("a"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert delivery.how is None
        assert "c1" in house.journal.owed, "whoever comes after a crash has to know what is owed"
        house.events.confirms.set()
        await settled(delivery)


async def test_room_is_free_again_only_when_nothing_is_left_of_the_job() -> None:
    house = House(max_jobs=1)
    house.engine.cleans.clear()
    async with at_work(house):
        first, second = (house.put(make_job(name, command=ENDS)) for name in "ab")
        await settled(first)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not house.runs("b")
        house.engine.cleans.set()
        await settled(second)
    assert house.diary.order("discard a", "launch b") == ["discard a", "launch b"]


async def test_a_job_that_fails_is_told_and_over() -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=FAILS)))
    verdict = house.result("a").verdict
    assert (verdict.outcome, verdict.exit_code, verdict.blame) == (Outcome.FAILED, 3, Blame.JOB)


# Duplicates


async def test_a_second_submission_of_a_job_that_is_here_is_a_duplicate() -> None:
    house = House()
    async with at_work(house):
        first = house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        second = house.put(make_job("a", command=RUNS))
        await settled(second)
        assert second.how == "drop"
        assert EventKind.DUPLICATE in house.events.kinds("a")
        house.engine.of["a"].finish(Exit(code=0))
        await settled(first)
        assert first.how == "settle"
    assert house.events.outcome("a") is Outcome.SUCCEEDED
    assert house.engine.launched == ["runner-w1-c1"]


async def test_a_second_submission_is_a_duplicate_while_the_journal_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    house, go_on = House(), asyncio.Event()
    write = house.journal.claimed

    async def hang(record: ClaimRecord) -> None:
        await go_on.wait()
        await write(record)

    monkeypatch.setattr(house.journal, "claimed", hang)
    async with at_work(house):
        first = house.put(make_job("a", command=RUNS))
        await until(lambda: first.lease is not None)
        first.gone = True  # it is acked, once the lease is there
        second = house.put(make_job("a", command=RUNS))
        await settled(second)
        assert EventKind.DUPLICATE in house.events.kinds("a")
        first.gone = False
        go_on.set()
        await until(lambda: house.runs("a"))
        house.engine.of["a"].finish(Exit(code=0))
        await settled(first)
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_job_that_finished_lately_is_a_duplicate_and_one_that_finished_long_ago_is_not() -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
        house.clock.now += timedelta(minutes=10)
        again = house.put(make_job("a", command=ENDS))
        await settled(again)
        assert again.how == "drop"
        house.clock.now += timedelta(seconds=1)
        much_later = house.put(make_job("a", command=ENDS))
        await settled(much_later)
        assert much_later.how == "settle"


async def test_the_same_id_of_another_tenant_is_another_job() -> None:
    house = House()
    async with at_work(house):
        first = make_job("a", command=ENDS)
        other = replace(first, key=replace(first.key, tenant="beta"))
        for delivery in [house.put(first), house.put(other)]:
            await settled(delivery)
            assert delivery.how == "settle"


@pytest.mark.parametrize("fresh", [True, False])
async def test_what_comes_by_an_internal_way_is_never_a_duplicate(*, fresh: bool) -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
        again = house.put(make_job("a", command=ENDS), fresh=fresh, number=2)
        await settled(again)
    assert again.how == ("drop" if fresh else "settle")


async def test_a_job_that_comes_again_since_the_broker_took_it_back_is_no_duplicate() -> None:
    house = House(max_jobs=1)
    async with at_work(house):
        house.put(make_job("long", command=RUNS))
        await until(lambda: house.runs("long"))
        waiting = house.offer(make_job("a", command=ENDS))
        await until(lambda: waiting in house.intake.given)
        waiting.gone = True
        again = house.offer(make_job("a", command=ENDS))
        await until(lambda: again in house.intake.given)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not again.settled
        house.engine.of["long"].finish(Exit(code=0))
        await settled(again)
        assert again.how == "settle"
    assert house.events.outcome("a") is Outcome.SUCCEEDED
    assert house.diary.count("launch a") == 1


# Rejection


async def test_what_is_no_job_is_told_and_buried() -> None:
    house = House()
    async with at_work(house):
        delivery = house.intake.put(make_invalid("stack: is required"))
        await settled(delivery)
    assert delivery.dead == (DeadCode.REJECTED, "stack: is required")
    assert house.events.kinds("broken-1") == [EventKind.REJECTED, EventKind.FINISHED]
    assert {event.attempt for event in house.events.of("broken-1")} == {0}
    verdict = house.result("broken-1").verdict
    assert (verdict.outcome, verdict.blame, verdict.reason) == (
        Outcome.REJECTED,
        Blame.REQUEST,
        "stack: is required",
    )
    assert house.diary.order("finished broken-1", "bury broken-1") == ["finished broken-1", "bury broken-1"]
    assert house.observer.dead == {DeadCode.REJECTED: 1}
    assert house.observer.ended == [(None, Outcome.REJECTED)]


async def test_what_belongs_to_nobody_is_buried_without_a_word() -> None:
    house = House()
    async with at_work(house):
        delivery = house.intake.put(make_invalid(tenant=None))
        await settled(delivery)
    assert delivery.how == "bury"
    assert house.events.published == []


@pytest.mark.parametrize(
    ("job", "names"),
    [
        (make_job(limits=LimitsRequest(cpus=4)), "limits.cpus"),
        (make_job(limits=LimitsRequest(memory=Bytes(5 * MIB))), "limits.memory"),
    ],
)
async def test_a_job_that_no_worker_would_run_is_rejected(job: Job, names: str) -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(job)
        await settled(delivery)
    assert delivery.dead
    assert delivery.dead[1].startswith(names)
    assert house.result(job.key.id).verdict.blame is Blame.REQUEST
    assert house.engine.launched == []


async def test_what_an_operator_has_to_mend_is_blamed_on_the_operator() -> None:
    house = House()
    house.stacks.stacks["broken"] = RejectedError("stack broken has no image", operator=True)
    async with at_work(house):
        await settled(house.put(make_job("a", stack=replace(make_job().stack, name="broken"))))
    assert house.result("a").verdict.blame is Blame.OPERATOR


# Passing on


async def test_a_job_whose_stack_is_not_here_is_passed_on() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", stack=replace(make_job().stack, name="elsewhere")))
        await settled(delivery)
    assert (delivery.how, delivery.delay) == ("pass on", timedelta(seconds=1))
    [event] = house.events.of("a")
    assert (event.kind, event.delay) == (EventKind.DEFERRED, timedelta(seconds=1))
    assert event.reason == "this worker has no stack elsewhere"
    assert house.diary.order("deferred a", "pass on a") == ["deferred a", "pass on a"]
    assert house.observer.deferrals == 1


@pytest.mark.parametrize(("before", "delay"), [(1, 2), (4, 16), (5, 32), (6, 60), (40, 60)])
async def test_the_pause_grows_with_each_time_that_a_job_is_passed_on(before: int, delay: int) -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job(limits=LimitsRequest(cpus=2.5)), deferrals=before)
        await settled(delivery)
    assert delivery.delay == timedelta(seconds=delay)


@pytest.mark.parametrize(
    ("longest", "before", "passed_on"),
    [(timedelta(hours=1), 64, True), (timedelta(hours=1), 65, False), (timedelta(0), 0, False)],
)
async def test_a_job_is_not_passed_on_for_ever(longest: timedelta, before: int, *, passed_on: bool) -> None:
    house = House()
    async with at_work(house, replace(RULES, max_deferred=longest)):
        delivery = house.put(make_job("a", limits=LimitsRequest(cpus=2.5)), deferrals=before)
        await settled(delivery)
    if passed_on:
        assert delivery.how == "pass on"
        return
    assert delivery.how == "bury"
    assert house.events.outcome("a") is Outcome.REJECTED
    assert "needs 2.5 CPUs, this worker has 2" in house.result("a").verdict.reason


async def test_an_engine_that_does_not_answer_is_no_fault_of_the_job() -> None:
    house = House()
    house.stacks.stacks["busybox"] = EngineGone("connection refused")
    async with at_work(house):
        delivery = house.put(make_job("a"))
        await settled(delivery)
    assert delivery.how == "pass on"


async def test_a_job_whose_image_is_gone_is_passed_on_from_its_lease() -> None:
    house = House(scripts={RUNS: Script(error=ImageMissing("No such image"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
    assert (delivery.how, delivery.delay) == ("defer", timedelta(seconds=1))
    assert house.stacks.invalidated == ["busybox"]
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.DEFERRED]
    assert house.diary.order("defer a", "write ended a") == ["defer a", "write ended a"]
    assert house.observer.deferrals == 1


async def test_a_container_may_be_chosen_while_the_job_is_being_claimed() -> None:
    house = House()
    house.engine.waited = "f" * 64
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        delivery.claimable.clear()
        await until(lambda: house.engine.expected)
        assert house.engine.launched == []
        delivery.claimable.set()
        await settled(delivery)
    assert house.engine.expected == {}
    assert {record.waited for record, _, _ in house.journal.over.values()} == {"f" * 64}
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_claim_is_put_on_record_while_the_lease_is_on_its_way() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        delivery.claimable.clear()
        await until(lambda: house.journal.open)
        assert house.engine.launched == []
        delivery.claimable.set()
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_claim_that_came_to_nothing_leaves_no_record() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        delivery.claimable.clear()
        await until(lambda: house.journal.open)
        delivery.gone = True
        delivery.claimable.set()
        await until(lambda: not house.journal.open)
    assert house.journal.over == {}, "the lease may come back, and is no ended claim's"


async def test_a_job_whose_claim_cannot_be_put_on_record_is_given_back_unstarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def full(_: ClaimRecord) -> None:
        raise JournalError("the journal failed: database or disk is full")

    house = House()
    monkeypatch.setattr(house.journal, "claimed", full)
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        await settled(delivery)
    assert delivery.how == "abandon"
    assert house.engine.launched == []


async def test_a_unique_job_is_on_record_only_once_it_is_known_to_be_the_only_one() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(replace(make_job("a", command=ENDS), unique=timedelta(hours=1)))
        delivery.claimable.clear()
        await until(lambda: house.engine.expected)
        assert house.journal.open == {}
        delivery.claimable.set()
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_what_was_expected_is_given_up_when_the_claim_fails() -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        delivery.claimable.clear()
        await until(lambda: house.engine.expected)
        delivery.gone = True
        delivery.claimable.set()
        await until(lambda: not house.engine.expected)
    assert house.engine.launched == []


async def test_a_job_that_nothing_can_be_prepared_for_is_passed_on_more_slowly_each_time() -> None:
    house = House(scripts={RUNS: Script(error=DeferredError("its code cannot be fetched"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS), deferrals=3)
        await settled(delivery)
    assert (delivery.how, delivery.delay) == ("defer", timedelta(seconds=8))


async def test_what_an_engine_cannot_even_begin_with_is_passed_on_and_costs_nothing() -> None:
    house = House(scripts={RUNS: Script(error=EngineUnfit("the engine's disk is full"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
    assert (delivery.how, delivery.delay) == ("defer", timedelta(seconds=1))
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.DEFERRED]


async def test_an_hour_of_that_counts_as_one_loss() -> None:
    house = House(scripts={RUNS: Script(error=EngineUnfit("the engine's disk is full"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS), deferrals=1000)
        await settled(delivery)
    assert (delivery.how, delivery.dead) == ("retry", None)
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.RETRYING]


async def test_a_job_is_not_passed_on_for_ever_from_its_lease() -> None:
    house = House(scripts={RUNS: Script(error=DeferredError("its code cannot be fetched"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS), deferrals=1000)
        await settled(delivery)
    assert delivery.dead is not None
    assert delivery.dead[1].startswith("its code cannot be fetched; passed on for ")
    assert house.events.outcome("a") is Outcome.REJECTED


async def test_a_job_that_is_found_to_be_wrong_when_it_starts_is_rejected() -> None:
    house = House(scripts={RUNS: Script(error=RejectedError("code: its archive has a device, x/null"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
    assert (delivery.how, delivery.dead) == ("settle", (DeadCode.REJECTED, "code: its archive has a device, x/null"))
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.REJECTED, EventKind.FINISHED]
    order = ("bury a", "write finished a", "settle a")
    assert house.diary.order(*order) == list(order)
    last = house.events.of("a")[-1].result
    assert last is not None
    assert (last.verdict.outcome, last.verdict.blame) == (Outcome.REJECTED, Blame.REQUEST)


# The engine's failures


async def test_a_failing_engine_costs_the_platform_and_at_last_the_job() -> None:
    house = House(scripts={RUNS: Script(error=EngineError("no space left on device"))})
    async with at_work(house):
        for lost in range(4):
            delivery = house.put(make_job("a", command=RUNS), number=lost + 1, lost=lost, fresh=lost == 0)
            await settled(delivery)
            assert delivery.how == ("retry" if lost < 3 else "settle")
            assert delivery.blame is (Blame.PLATFORM if lost < 3 else None)
    assert house.events.outcome("a") is Outcome.LOST
    verdict = house.result("a").verdict
    assert verdict.blame is Blame.PLATFORM
    assert "no space left on device" in verdict.reason
    assert house.observer.retries == {Blame.PLATFORM: 3}


async def test_what_the_engine_refuses_for_good_is_not_tried_again() -> None:
    house = House(scripts={RUNS: Script(error=StartError("unknown runtime"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
    assert delivery.how == "settle"
    assert house.result("a").verdict.blame is Blame.OPERATOR


async def test_a_job_that_may_try_again_does() -> None:
    house = House()
    policy = RetryPolicy(max=1, delay=timedelta(seconds=7))
    async with at_work(house):
        first = house.put(make_job("a", command=FAILS, retry=policy))
        await settled(first)
        assert (first.how, first.delay, first.blame) == ("retry", timedelta(seconds=7), Blame.JOB)
        second = house.put(make_job("a", command=FAILS, retry=policy), number=2, fresh=False)
        await settled(second)
    assert second.how == "settle"
    assert [kind for kind in house.events.kinds("a") if kind in (EventKind.RETRYING, EventKind.FINISHED)] == [
        EventKind.RETRYING,
        EventKind.FINISHED,
    ]


async def test_a_claim_is_over_on_record_only_after_the_job_is_on_its_way_again() -> None:
    """In the other order, a crash between the two loses the job: its lease would be taken for settled."""
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=FAILS, retry=RetryPolicy(max=1))))
        await until(lambda: house.diary.count("write ended a"))
    assert house.diary.order("retrying a", "retry a", "write ended a") == ["retrying a", "retry a", "write ended a"]


# What another worker, or an earlier life, lost


async def test_a_job_that_was_lost_is_told_and_runs_again() -> None:
    house = House()
    async with at_work(house):
        lost = house.put(
            make_job("a", command=ENDS), fresh=False, number=2, lost=1, vanished=Vanished(worker="w1", claim="old")
        )
        await settled(lost)
    assert house.events.kinds("a") == [EventKind.LOST, EventKind.CLAIMED, EventKind.STARTED, EventKind.FINISHED]
    assert "w1" in str(house.events.of("a")[0].reason)
    assert house.events.of("a")[-1].attempt == 2


async def test_a_job_that_another_worker_lost_goes_back_to_where_all_can_take_it() -> None:
    house = House()
    async with at_work(house):
        lost = house.put(
            make_job("a", command=ENDS), fresh=False, number=2, lost=1, vanished=Vanished(worker="w9", claim="old")
        )
        await settled(lost)
    assert (lost.how, lost.delay) == ("pass on", timedelta(0))
    assert house.events.kinds("a") == [EventKind.LOST]
    assert house.diary.order("lost a", "pass on a") == ["lost a", "pass on a"]


async def test_a_job_that_was_lost_too_often_is_given_up() -> None:
    house = House()
    async with at_work(house):
        lost = house.put(
            make_job("a", command=ENDS), fresh=False, number=5, lost=4, vanished=Vanished(worker="w9", claim="old")
        )
        await settled(lost)
    assert lost.how == "drop"
    assert house.events.kinds("a") == [EventKind.LOST, EventKind.FINISHED]
    assert house.events.outcome("a") is Outcome.LOST
    assert "max_lost is 3" in house.result("a").verdict.reason
    assert house.engine.launched == []


async def test_a_lease_whose_claim_is_over_is_forgotten() -> None:
    house = House()
    job = make_job("a", command=ENDS)
    record = ClaimRecord(claim="old", key=job.key, container_name="runner-w1-old", attempt=1, claimed=NOW)
    await house.journal.claimed(record)
    await house.journal.ended("old", finished=True)
    async with at_work(house):
        lost = house.put(job, fresh=False, number=2, lost=1, vanished=Vanished(worker="w1", claim="old"))
        await settled(lost)
    assert lost.how == "drop"
    assert house.events.published == []


# Room


async def test_jobs_wait_until_there_is_room_and_say_what_for() -> None:
    house = House()
    async with at_work(house) as worker:
        jobs = [make_job(name, command=RUNS, limits=LimitsRequest(cpus=0.75)) for name in "abc"]
        deliveries = [house.offer(job) for job in jobs]
        await until(lambda: house.runs("a") and house.runs("b"))
        await until(worker.waiting)
        assert worker.waiting() == {jobs[2].key: "needs 0.75 CPUs, 0.5 are free"}
        assert worker.running == 2
        assert house.observer.claimed == (1.5, 128 * MIB)
        house.engine.of["a"].finish(Exit(code=0))
        await until(lambda: house.runs("c"))
        for name in "bc":
            house.engine.of[name].finish(Exit(code=0))
        for delivery in deliveries:
            await settled(delivery)
    assert house.observer.claimed == (0, 0)


async def test_a_worker_never_asks_for_more_than_it_has_room_for() -> None:
    house = House()
    async with at_work(house):
        for number in range(20):
            house.put(make_job(f"j{number}", command=RUNS))
        for number in range(20):
            await until(lambda number=number: house.runs(f"j{number}"))  # type: ignore[misc]
            assert len(house.engine.live) <= 2
            unfinished = [delivery for delivery in house.intake.given if delivery.how is None]
            assert len(unfinished) <= 2
            house.engine.of[f"j{number}"].finish(Exit(code=0))
        await until(lambda: len([d for d in house.intake.given if d.how]) == 20)
    assert house.intake.most_wanted == 2


async def test_a_worker_whose_slots_are_full_asks_for_nothing() -> None:
    house = House(max_jobs=1)
    async with at_work(house):
        house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        assert house.intake.wanted == 0


async def test_a_job_that_is_not_started_in_time_expires() -> None:
    house = House(max_jobs=1)
    async with at_work(house):
        house.put(make_job("long", command=RUNS))
        await until(lambda: house.runs("long"))
        hurried = house.offer(make_job("a", command=ENDS, start_within=timedelta(milliseconds=5)))
        await settled(hurried)
        assert hurried.how == "drop"
    verdict = house.result("a").verdict
    assert (verdict.outcome, verdict.blame) == (Outcome.EXPIRED, Blame.PLATFORM)
    assert verdict.reason == "not started within 0.005s, its start_within: all 1 slots of this worker are taken"


async def test_a_job_that_is_started_in_time_does_not_expire() -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS, start_within=timedelta(minutes=5))))
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_job_that_comes_too_late_expires_even_where_there_is_room() -> None:
    house = House()
    async with at_work(house):
        late = house.put(
            make_job("a", command=ENDS, published=NOW - timedelta(hours=1), start_within=timedelta(minutes=1))
        )
        await settled(late)
    assert house.events.outcome("a") is Outcome.EXPIRED
    assert house.engine.launched == []


async def test_a_job_may_start_again_also_when_its_start_was_late() -> None:
    house = House()
    async with at_work(house):
        again = house.put(
            make_job("a", command=ENDS, published=NOW - timedelta(hours=1), start_within=timedelta(minutes=1)),
            fresh=False,
            number=2,
        )
        await settled(again)
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_job_that_comes_too_early_waits_in_the_broker() -> None:
    house = House()
    async with at_work(house):
        early = house.put(make_job("a", command=ENDS), fresh=False, not_before=NOW + timedelta(seconds=90))
        await settled(early)
    assert (early.how, early.delay) == ("postpone", timedelta(seconds=90))
    assert house.events.published == []


@pytest.mark.parametrize("ahead", [1, 59])
async def test_a_submitter_whose_clock_is_ahead_does_not_delay_its_job(ahead: int) -> None:
    house = House()
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS, published=NOW + timedelta(seconds=ahead)))
        await settled(delivery)
    assert delivery.how == "settle"


# Pauses


async def test_a_worker_takes_nothing_while_anybody_keeps_it_from_it() -> None:
    house = House()
    async with at_work(house) as worker:
        worker.pause("disk", "full")
        worker.pause("operator", "by hand")
        assert (worker.taking, house.intake.wanted) == (False, 0)
        assert dict(worker.pauses) == {"disk": "full", "operator": "by hand"}
        worker.resume("disk")
        assert (worker.taking, house.intake.wanted) == (False, 0)
        delivery = house.put(make_job("a", command=ENDS))
        worker.resume("operator")
        worker.resume("operator")
        assert worker.taking
        await settled(delivery)


async def test_what_runs_goes_on_while_a_worker_pauses() -> None:
    house = House()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        worker.pause("operator", "by hand")
        house.engine.of["a"].finish(Exit(code=0))
        await settled(delivery)
        assert house.intake.wanted == 0
    assert house.events.outcome("a") is Outcome.SUCCEEDED


# Cancel


async def test_a_running_job_is_cancelled() -> None:
    house = House()
    async with at_work(house) as worker:
        job = make_job("a", command=RUNS, limits=LimitsRequest(grace=timedelta(hours=1)))
        delivery = house.put(job)
        await until(lambda: house.runs("a"))
        worker.cancel(job.key, "wrong input")
        await settled(delivery)
    assert house.engine.of["a"].signals == ["TERM"]
    verdict = house.result("a").verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.CANCELLED, "cancelled: wrong input")
    assert EventKind.STOPPING in house.events.kinds("a")


async def test_a_job_that_waits_for_room_is_cancelled() -> None:
    house = House(max_jobs=1)
    async with at_work(house) as worker:
        house.put(make_job("long", command=RUNS))
        await until(lambda: house.runs("long"))
        job = make_job("a", command=RUNS)
        delivery = house.offer(job)
        await until(lambda: job.key in worker.waiting())
        worker.cancel(job.key, "")
        await settled(delivery)
        assert delivery.how == "drop"
    assert house.events.kinds("a") == [EventKind.FINISHED]
    assert house.result("a").verdict.reason == "cancelled"


async def test_a_job_that_the_disk_has_become_too_full_for_is_given_back_and_passed_on() -> None:
    house = House()
    rules = replace(RULES, policy=replace(RULES.policy, maximum=LimitsRequest()))
    job = make_job("a", command=RUNS, limits=LimitsRequest(scratch=Bytes(6 * MIB)))
    async with at_work(house, rules) as worker:
        worker.resize(Bytes(10 * MIB))
        long = make_job("long", command=RUNS, limits=LimitsRequest(scratch=Bytes(6 * MIB)))
        house.put(long)
        await until(lambda: house.runs("long"))
        waiting = house.offer(job)
        await until(lambda: job.key in worker.waiting())
        worker.resize(Bytes(5 * MIB))
        await settled(waiting)
        again = house.offer(job)
        await settled(again)
    assert (waiting.how, again.how) == ("release", "pass on")
    [event] = house.events.of("a")
    assert event.reason == "needs 6 MiB of scratch, this worker's disk holds 5 MiB"


async def test_a_job_that_is_being_claimed_is_cancelled() -> None:
    house = House()
    async with at_work(house) as worker:
        job = make_job("a", command=DEAF)
        delivery = house.put(job, claimable=asyncio.Event())
        await until(lambda: house.capacity.claimed != NOTHING)
        worker.cancel(job.key, "late")
        delivery.claimable.set()
        await settled(delivery)
    assert delivery.how == "settle"
    assert house.events.outcome("a") is Outcome.CANCELLED


async def test_a_job_whose_launch_hangs_is_cancelled_and_cleaned_up() -> None:
    house = House()
    async with at_work(house) as worker:
        job = make_job("a", command=HANGS)
        delivery = house.put(job)
        await until(lambda: house.engine.live)
        worker.cancel(job.key, "")
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.CANCELLED
    assert house.diary.count("discard a") == 1


async def test_a_job_that_was_cancelled_before_it_came_never_starts() -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", command=RUNS)
        house.cancelled.reasons[job.key] = "not wanted"
        delivery = house.put(job)
        await settled(delivery)
    assert delivery.how == "drop"
    assert house.result("a").verdict.reason == "cancelled: not wanted"
    assert house.engine.launched == []


@pytest.mark.parametrize(
    "way",
    [
        {"fresh": False, "deferrals": 2},
        {"fresh": False, "number": 2},
        {"fresh": False, "not_before": NOW + timedelta(hours=1)},
        {"fresh": False, "number": 2, "lost": 1, "vanished": Vanished(worker=RULES.name, claim="gone")},
    ],
)
async def test_a_cancel_holds_by_whichever_way_the_job_comes(way: dict[str, object]) -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", command=RUNS)
        house.cancelled.reasons[job.key] = ""
        await settled(house.put(job, **way))
    assert house.events.outcome("a") is Outcome.CANCELLED
    assert house.engine.launched == []


async def test_every_copy_of_a_cancelled_job_ends() -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", command=RUNS)
        house.cancelled.reasons[job.key] = ""
        for _ in range(2):
            await settled(house.put(job, fresh=False))
    assert house.engine.launched == []
    assert [event.kind for event in house.events.of("a")] == [EventKind.FINISHED] * 2


async def test_no_job_starts_before_it_is_known_what_was_cancelled() -> None:
    house = House()
    house.cancelled.caught_up.clear()
    async with at_work(house) as worker:
        job = make_job("a", command=RUNS)
        delivery = house.put(job)
        await until(lambda: job.key in worker.held().values())
        worker.cancel(job.key, "while reading")
        house.cancelled.caught_up.set()
        await settled(delivery)
    assert house.result("a").verdict.reason == "cancelled: while reading"
    assert house.engine.launched == []


async def test_a_cancelled_job_is_over_also_where_it_could_not_run() -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", stack=replace(make_job().stack, name="elsewhere"))
        house.cancelled.reasons[job.key] = ""
        delivery = house.put(job, fresh=False, deferrals=3)
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.CANCELLED


async def test_a_cancelled_job_is_not_tried_again() -> None:
    house = House()
    async with at_work(house) as worker:
        job = make_job("a", command=RUNS, retry=RetryPolicy(max=5))
        delivery = house.put(job)
        await until(lambda: house.runs("a"))
        worker.cancel(job.key, "")
        await settled(delivery)
    assert delivery.how == "settle"


# Unique jobs


async def test_a_job_that_need_not_be_unique_asks_nobody() -> None:
    house = House()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
    assert house.uniqueness.asked == []


async def test_of_two_runs_of_a_unique_job_one_is_started() -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", command=ENDS, unique=timedelta(hours=1))
        first = house.put(job, run="r1", fresh=False)
        await settled(first)
        second = house.put(job, run="r2", fresh=False)
        await settled(second)
        assert (first.how, second.how) == ("settle", "settle")
    assert len(house.engine.launched) == 1
    assert house.events.kinds("a")[-1] is EventKind.DUPLICATE
    assert house.events.kinds("a").count(EventKind.CLAIMED) == 1
    assert house.events.outcome("a") is Outcome.SUCCEEDED
    assert await house.journal.is_over("c2")
    # Asked under the lease, so that no crash can make the winner forget that it has won.
    assert house.diary.order("claim a", "settle a", "duplicate a")[-2:] == ["duplicate a", "settle a"]


async def test_the_same_run_of_a_unique_job_is_started_again() -> None:
    house = House()
    async with at_work(house):
        job = make_job("a", command=FAILS, unique=timedelta(hours=1), retry=RetryPolicy(max=1))
        for number in (1, 2):
            await settled(house.put(job, run="r1", fresh=False, number=number))
    assert [run for _, run, _, _ in house.uniqueness.asked] == ["r1", "r1"]
    assert len(house.engine.launched) == 2


async def test_a_unique_job_is_passed_on_while_nobody_can_tell() -> None:
    house = House()
    house.uniqueness.fault = BrokerError("the stream does not answer")
    async with at_work(house):
        delivery = house.put(make_job("a", unique=timedelta(hours=1)))
        await settled(delivery)
    assert delivery.how == "defer"
    assert house.events.kinds("a") == [EventKind.DEFERRED]
    assert house.engine.launched == []


async def test_a_unique_job_that_is_cancelled_while_it_is_decided_does_not_run() -> None:
    house = House()
    house.uniqueness.answers.clear()
    async with at_work(house) as worker:
        job = make_job("a", command=DEAF, unique=timedelta(hours=1))
        delivery = house.put(job)
        await until(lambda: house.uniqueness.asked)
        worker.cancel(job.key, "late")
        house.uniqueness.answers.set()
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.CANCELLED


# Faults stay where they are


async def test_a_fault_of_one_job_does_not_touch_the_others(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    launch = house.engine.launch

    async def broken(attempt: Attempt, on_output: OnOutput) -> object:
        if attempt.plan.job.key.id == "bad":
            raise ZeroDivisionError("a fault of the runner")
        return await launch(attempt, on_output)

    house.engine.launch = broken  # type: ignore[method-assign,assignment]
    with caplog.at_level(logging.ERROR):
        async with at_work_with_faults(house) as worker:
            good = house.put(make_job("good", command=RUNS))
            await until(lambda: house.runs("good"))
            bad = house.put(make_job("bad", command=RUNS))
            await until(lambda: house.diary.count("discard bad"))
            await until(lambda: worker.running == 1)
            assert house.capacity.claimed.millicpus == 1000
            house.engine.of["good"].finish(Exit(code=0))
            await settled(good)
    assert [record.message for record in caplog.records] == ["a job met a fault of the runner"]
    assert bad.settled == ["claim"]
    assert bad.ended == ["abandon"], "it is started again, anywhere"
    assert house.events.outcome("good") is Outcome.SUCCEEDED


@asynccontextmanager
async def at_work_with_faults(house: House) -> AsyncIterator[Worker]:
    """As `at_work`, without asking that every delivery was settled."""
    house.intake.check = lambda: None  # type: ignore[method-assign]
    house.journal.open = _Forgetful()
    async with at_work(house) as worker:
        yield worker


class _Forgetful(dict[str, ClaimRecord]):
    def __bool__(self) -> bool:
        return False


async def test_a_delivery_that_the_broker_took_back_is_nobodys_loss() -> None:
    house = House()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=RUNS), claimable=asyncio.Event())
        await until(lambda: house.capacity.claimed != NOTHING)
        delivery.gone = True
        delivery.claimable.set()
        await until(lambda: house.capacity.claimed == NOTHING)
        assert worker.taking
        again = house.put(make_job("a", command=ENDS))
        await settled(again)
        assert again.how == "settle"
    assert house.diary.count("launch a") == 1


# The end


async def test_a_drain_lets_jobs_end_and_gives_back_what_waits() -> None:
    house = House(max_jobs=1)
    async with at_work(house, replace(RULES, drain_timeout=timedelta(hours=1))) as worker:
        running = house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        waiting = house.offer(make_job("b", command=RUNS))
        await until(worker.waiting)
        untaken = house.put(make_job("c", command=RUNS))
        draining = asyncio.create_task(worker.drain())
        await settled(waiting)
        assert waiting.how == "release"
        assert worker.draining
        assert not worker.taking
        assert not draining.done()
        house.engine.of["a"].finish(Exit(code=0))
        await draining
        assert running.how == "settle"
        assert untaken.how is None
    assert house.diary.order("close intake", "release b", "settle a", "discard a") == [
        "close intake",
        "release b",
        "settle a",
        "discard a",
    ]
    assert house.events.outcome("a") is Outcome.SUCCEEDED


async def test_a_drain_whose_time_is_up_stops_jobs_and_has_others_run_them() -> None:
    house = House()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=DEAF))
        await until(lambda: house.runs("a"))
        await worker.drain()
        assert (delivery.how, delivery.blame) == ("retry", Blame.NONE)
    assert house.engine.of["a"].signals == ["TERM", "KILL"]
    stops = [event.stop for event in house.events.of("a") if event.kind is EventKind.STOPPING]
    assert stops == [StopReason.SHUTDOWN]


async def test_however_often_a_job_is_given_back_it_is_not_lost() -> None:
    house = House()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=RUNS), number=9, lost=3, given_back=5, fresh=False)
        await until(lambda: house.runs("a"))
        await worker.drain()
        assert (delivery.how, delivery.blame) == ("retry", Blame.NONE)
    last = house.events.of("a")[-1]
    assert (last.kind, last.outcome) == (EventKind.RETRYING, Outcome.LOST)
    assert house.observer.retries == {Blame.NONE: 1}


async def test_a_job_that_was_given_back_keeps_its_retries() -> None:
    house = House()
    job = make_job("a", command=FAILS, retry=RetryPolicy(max=1))
    async with at_work(house):
        first = house.put(job, number=6, given_back=5, fresh=False)
        await settled(first)
        assert (first.how, first.blame) == ("retry", Blame.JOB)
        second = house.put(job, number=7, given_back=5, fresh=False)
        await settled(second)
        assert second.how == "settle"


async def test_stopping_at_once_leaves_out_the_grace() -> None:
    house = House()
    grace = LimitsRequest(grace=timedelta(hours=1))
    async with at_work(house, replace(RULES, drain_timeout=timedelta(hours=1))) as worker:
        delivery = house.put(make_job("a", command=DEAF, limits=grace))
        await until(lambda: house.runs("a"))
        draining = asyncio.create_task(worker.drain())
        worker.stop_all()
        await until(lambda: house.engine.of["a"].signals == ["TERM"])
        worker.stop_all(at_once=True)
        await draining
        assert delivery.how == "retry"
    assert house.engine.of["a"].signals == ["TERM", "KILL"]


async def test_a_job_that_was_being_claimed_when_all_were_stopped_is_stopped_too() -> None:
    house = House()
    async with at_work(house, replace(RULES, drain_timeout=timedelta(hours=1))) as worker:
        delivery = house.put(make_job("a", command=RUNS), claimable=asyncio.Event())
        await until(lambda: house.capacity.claimed != NOTHING)
        draining = asyncio.create_task(worker.drain())
        await until(lambda: house.diary.count("close intake"))
        worker.stop_all()
        delivery.claimable.set()
        await settled(delivery)
        assert delivery.how == "retry"
        await draining


async def test_a_container_that_resists_its_removal_keeps_its_room_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenure, "_RESISTS_AFTER", 0.01)
    house = House()
    house.engine.cleans.clear()
    worker = house.worker(RULES)
    running = asyncio.create_task(worker.run())
    delivery = house.put(make_job("a", command=ENDS))
    await settled(delivery)
    assert EventKind.FINISHED in house.events.kinds("a")
    await until(lambda: worker.quarantined)
    assert [key.id for key in worker.quarantined] == ["a"]
    assert house.capacity.claimed != NOTHING
    await worker.drain()
    await running
    assert "discard a" not in house.diary.entries


async def test_a_job_that_waits_for_quarantined_room_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure, "_RESISTS_AFTER", 0.01)
    house = House()
    whole = LimitsRequest(cpus=house.capacity.budget.total.millicpus / 1000)
    async with at_work(house) as worker:
        house.engine.cleans.clear()
        house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        big = house.put(make_job("big", command=ENDS, limits=whole))
        await until(worker.waiting)
        house.engine.of["a"].finish(Exit(code=0))
        await settled(big)
        assert big.how == "release"
        again = house.put(make_job("big", command=ENDS, limits=whole))
        await settled(again)
        assert (again.how, set(house.events.kinds("big"))) == ("pass on", {EventKind.DEFERRED})
        await settled(house.put(make_job("b", command=ENDS)))
        house.engine.cleans.set()


async def test_a_container_that_is_removed_in_the_end_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure, "_RESISTS_AFTER", 0.01)
    house = House()
    async with at_work(house) as worker:
        house.engine.cleans.clear()
        await settled(house.put(make_job("a", command=ENDS)))
        await until(lambda: worker.quarantined)
        house.engine.cleans.set()
        await until(lambda: house.capacity.claimed == NOTHING)
        assert worker.quarantined == []


async def test_a_job_that_is_still_looked_at_when_the_drain_begins_is_given_back() -> None:
    house = House()
    house.stacks.answers.clear()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=RUNS))
        await until(lambda: delivery in house.intake.given)
        draining = asyncio.create_task(worker.drain())
        await until(lambda: house.diary.count("close intake"))
        house.stacks.answers.set()
        await draining
        assert delivery.how == "release"


async def test_a_cancel_is_heard_until_the_end_of_the_drain() -> None:
    house = House()
    async with at_work(house, replace(RULES, drain_timeout=timedelta(hours=1))) as worker:
        job = make_job("a", command=RUNS)
        delivery = house.put(job)
        await until(lambda: house.runs("a"))
        draining = asyncio.create_task(worker.drain())
        await until(lambda: house.diary.count("close intake"))
        worker.cancel(job.key, "")
        await draining
        assert delivery.how == "settle"
    assert house.events.outcome("a") is Outcome.CANCELLED


async def test_a_worker_that_is_cancelled_runs_no_further_but_cleans_up() -> None:
    house = House(max_jobs=1)
    worker = house.worker()
    running = asyncio.create_task(worker.run())
    house.put(make_job("a", command=RUNS))
    await until(lambda: house.runs("a"))
    house.offer(make_job("b", command=RUNS))
    await until(worker.waiting)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(30):
            await running
    assert not house.engine.live
    assert house.diary.count("release b") == 0, "whoever is cancelled goes down hard; the broker has it again anyway"


async def test_a_job_whose_secret_is_missing_is_rejected_and_the_operator_is_to_blame() -> None:
    house = House()
    house.stacks.stacks["busybox"] = replace(STACK, secrets=(SecretRef(name="token"),))
    async with at_work(house):
        delivery = house.put(make_job("a", command=ENDS))
        await settled(delivery)
    verdict = house.result("a").verdict
    assert (verdict.outcome, verdict.blame) == (Outcome.REJECTED, Blame.OPERATOR)
    assert "secret token: tenant acme has none" in verdict.reason
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.REJECTED, EventKind.FINISHED]
    assert house.engine.launched == []

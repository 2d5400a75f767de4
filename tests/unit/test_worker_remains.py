"""What a worker does with a job that has its result and may still run."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.fake_engine import FakeContainer, Script
from tests.fakes import make_job, until
from tests.unit.test_worker import DEAF, ENDS, HANGS, LIMITS, RULES, RUNS, House, at_work, settled

from runner import executor, tenure
from runner.capacity import Claim
from runner.errors import EngineError
from runner.fairness import Fairness, Share
from runner.job import Exit, LimitsRequest, Outcome, RetryPolicy


async def test_a_job_that_could_not_be_killed_is_removed_though_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def in_vain(_container: FakeContainer) -> None:
        """The engine says yes, and nothing happens."""

    monkeypatch.setattr(FakeContainer, "kill", in_vain)
    monkeypatch.setitem(executor.Run.__init__.__kwdefaults__, "kill_budget", timedelta(milliseconds=10))  # type: ignore[arg-type]
    house = House()
    async with at_work(house):
        again = RetryPolicy(max=1, delay=timedelta())
        limits = LimitsRequest(timeout=timedelta(milliseconds=1))
        delivery = house.put(make_job("a", command=DEAF, limits=limits, retry=again))
        await until(lambda: house.runs("a"))
        assert delivery.lease is not None
        delivery.lease.known.clear()
        await until(lambda: house.diary.count("discard a"), "its container is gone while we are cut off")
        assert delivery.ended == []
        delivery.lease.known.set()
        await settled(delivery)
        assert delivery.how == "retry"
    assert house.events.of("a")[-1].outcome is Outcome.TIMED_OUT
    assert house.diary.count("discard a") == 1


async def test_a_job_that_may_have_been_told_to_begin_is_removed_before_it_is_told_of() -> None:
    house = House()
    async with at_work(house) as worker:
        job = make_job("a", command=HANGS)
        delivery = house.put(job)
        await until(lambda: house.diary.count("launch a"))
        assert delivery.lease is not None
        delivery.lease.known.clear()
        worker.cancel(job.key, "enough")
        await until(lambda: house.diary.count("discard a"), "its container is gone while we are cut off")
        assert delivery.ended == []
        delivery.lease.known.set()
        await settled(delivery)
    assert house.events.outcome("a") is Outcome.CANCELLED


async def test_what_the_engine_failed_at_is_gone_before_it_runs_again() -> None:
    house = House(scripts={RUNS: Script(error=EngineError("the init did not start the job within 60 s"))})
    async with at_work(house):
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
    assert house.diary.order("discard a", "retry a") == ["discard a", "retry a"]
    assert house.engine.patient == [False]


async def test_a_removal_that_gets_nowhere_holds_up_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure, "_REMOVED_WITHIN", 0.01)
    monkeypatch.setattr(tenure, "_RESISTS_AFTER", 0.01)
    house = House(scripts={RUNS: Script(error=EngineError("the init did not start the job within 60 s"))})
    house.engine.cleans.clear()
    async with at_work(house) as worker:
        delivery = house.put(make_job("a", command=RUNS))
        await settled(delivery)
        assert delivery.how == "retry"
        await until(lambda: worker.quarantined)
        house.engine.cleans.set()
        await until(lambda: worker.quarantined == [])
    assert house.diary.count("discard a") == 1


def capped(most: int) -> Fairness:
    """The tenant of all jobs may run so many here."""
    return Fairness({"acme": Share(max_running=most)})


ANY_SIZE = replace(RULES, policy=replace(RULES.policy, cpus=3))


def roomy(house: House) -> House:
    """The same with a CPU more: three jobs fit."""
    house.capacity.budget = replace(house.capacity.budget, total=house.capacity.budget.total + Claim.of(LIMITS))
    return house


@pytest.mark.parametrize(
    ("max_jobs", "most", "patient"),
    [(2, 2, True), (1, 2, False), (2, 1, False)],
    ids=["room", "full", "tenant full"],
)
async def test_what_is_left_of_a_job_may_wait_while_nobody_wants_what_it_claims(
    max_jobs: int,
    most: int,
    patient: bool,  # noqa: FBT001
) -> None:
    house = House(max_jobs=max_jobs, fairness=capped(most))
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
        await until(lambda: house.diary.count("discard a"))
    assert house.engine.patient == [patient]


async def test_what_is_left_of_a_job_does_not_wait_where_a_bigger_one_does() -> None:
    house = House()
    async with at_work(house) as worker:
        ends = house.put(make_job("a", command=RUNS))
        await until(lambda: house.runs("a"))
        house.put(make_job("b", command=ENDS, limits=LimitsRequest(cpus=2)))
        await until(worker.waiting)
        house.engine.of["a"].finish(Exit(code=0, complete=True))
        await settled(ends)
        await until(lambda: house.engine.patient)
    assert house.engine.patient[0] is False


@pytest.mark.parametrize(
    ("max_jobs", "most", "limits"),
    [(2, 9, LimitsRequest()), (9, 9, LimitsRequest(cpus=3)), (9, 2, LimitsRequest())],
    ids=["full", "no room for a big one", "tenant full"],
)
async def test_what_waits_already_is_removed_when_another_job_wants_what_it_claims(
    max_jobs: int, most: int, limits: LimitsRequest
) -> None:
    house = roomy(House(max_jobs=max_jobs, fairness=capped(most)))
    house.engine.hurried.clear()
    async with at_work(house, ANY_SIZE):
        await settled(house.put(make_job("a", command=ENDS)))
        await until(lambda: house.engine.patient)
        assert house.engine.patient == [True]
        assert not house.diary.count("discard a")
        house.put(make_job("b", command=ENDS, limits=limits))
        await until(lambda: house.diary.count("discard a"))


async def test_what_waits_goes_on_waiting_while_there_is_room_for_more() -> None:
    house = roomy(House(fairness=capped(3)))
    house.engine.hurried.clear()
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
        await until(lambda: house.engine.patient)
        runs = house.put(make_job("b", command=RUNS))
        await until(lambda: house.runs("b"))
        assert not house.engine.hurried.is_set()
        house.engine.hurry()
        house.engine.of["b"].finish(Exit(code=0, complete=True))
        await settled(runs)

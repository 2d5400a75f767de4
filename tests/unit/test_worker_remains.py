"""What a worker does with a job that has its result and may still run."""

from datetime import timedelta

import pytest
from tests.fake_engine import FakeContainer, Script
from tests.fakes import make_job, until
from tests.unit.test_worker import DEAF, ENDS, HANGS, RUNS, House, at_work, settled

from runner import executor, tenure
from runner.errors import EngineError
from runner.job import LimitsRequest, Outcome, RetryPolicy


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


@pytest.mark.parametrize(("slots", "at_once"), [(1, True), (2, False)], ids=["full", "room"])
async def test_only_a_full_worker_has_what_is_left_of_a_job_removed_at_once(slots: int, at_once: bool) -> None:  # noqa: FBT001
    house = House(max_jobs=slots)
    async with at_work(house):
        await settled(house.put(make_job("a", command=ENDS)))
        await until(lambda: house.diary.count("discard a"))
    assert house.engine.at_once == [at_once]

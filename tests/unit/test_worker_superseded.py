"""What a worker does with a job that another one has, or may have."""

from tests.fakes import FakeDelivery, FakeLease, make_job, until
from tests.unit.test_worker import DEAF, ENDS, RUNS, House, at_work, settled

from runner.job import Blame, EventKind, Job, Outcome, StopReason


async def put_and_start(house: House, job: Job) -> tuple[FakeDelivery, FakeLease]:
    delivery = house.put(job)
    await until(lambda: EventKind.STARTED in house.events.kinds(job.key.id), "started")
    assert delivery.lease is not None
    return delivery, delivery.lease


async def test_a_job_that_was_taken_over_is_stopped_and_no_more_is_told() -> None:
    house = House()
    async with at_work(house):
        delivery, lease = await put_and_start(house, make_job("a", command=RUNS))
        lease.taken.set()
        await until(lambda: house.diary.count("discard a"), "its container is gone")
    assert house.events.kinds("a") == [EventKind.CLAIMED, EventKind.STARTED, EventKind.STOPPING]
    assert house.events.of("a")[-1].stop is StopReason.SUPERSEDED
    assert (delivery.settled, delivery.ended) == (["claim"], [])
    assert house.engine.patient[0] is False, "it had to go at once"
    assert await house.journal.is_over("c1")


async def test_the_end_of_a_job_is_told_only_when_it_is_known_whose_it_is() -> None:
    house = House()
    async with at_work(house):
        mine, lease = await put_and_start(house, make_job("mine", command=RUNS))
        lost, other = await put_and_start(house, make_job("lost", command=RUNS))
        lease.known.clear()
        other.known.clear()
        for container in list(house.engine.live.values()):
            await container.terminate()
        await until(lambda: house.diary.count("flush lost"), "its log is whole")
        assert EventKind.FINISHED not in house.events.kinds("mine") + house.events.kinds("lost")
        lease.known.set()
        await settled(mine)
        other.taken.set()
        other.known.set()
        await until(lambda: house.diary.count("discard lost"), "its container is gone")
    assert house.events.kinds("mine")[-1] is EventKind.FINISHED
    assert EventKind.FINISHED not in house.events.kinds("lost")
    assert lost.ended == []


async def test_a_fenced_job_is_dead_and_gone_before_its_lease_is() -> None:
    house = House()
    async with at_work(house):
        delivery, lease = await put_and_start(house, make_job("a", command=DEAF, fence=True))
        lease.known.clear()
        lease.danger.set()
        await until(lambda: house.diary.count("discard a"), "its container is gone while we are cut off")
        assert delivery.ended == []
        lease.known.set()
        await settled(delivery)
    # It was still ours when we were back.
    assert (delivery.how, delivery.blame) == ("retry", Blame.PLATFORM)
    last = house.events.of("a")[-1]
    assert (last.kind, last.outcome) == (EventKind.RETRYING, Outcome.LOST)
    assert "fenced" in str(last.reason)


async def test_a_job_without_a_fence_goes_on_in_danger() -> None:
    house = House()
    async with at_work(house):
        delivery, lease = await put_and_start(house, make_job("a", command=RUNS))
        lease.danger.set()
        ended = house.put(make_job("b", command=ENDS))
        await settled(ended)
        await until(lambda: house.diary.count("discard b"), "only one is left")
        (container,) = house.engine.live.values()
        assert container.signals == []
        await container.terminate()
        await settled(delivery)
    assert EventKind.STOPPING not in house.events.kinds("a")

"""What a client makes of the news of one job, in whatever order they come."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.fake_worker import batch, event, finished

from runner.client.feed import Feed
from runner.client.following import LAST_BATCH, Following
from runner.errors import BrokerError, RejectedError
from runner.job import JobKey

KEY = JobKey(tenant="default", id="id")


@dataclass
class Alarms:
    """Timers that go off when a test says so."""

    set: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __call__(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.set.append((delay, callback))
        return asyncio.TimerHandle(0, callback, (), asyncio.get_running_loop())


async def test_a_job_that_never_ran_is_over_with_its_result() -> None:
    following = Following(KEY, alarms := Alarms(), submitted=True)
    following.take_event(event("id", "rejected", 1))
    following.take_event(finished("id", 2, ran=False, outcome="rejected", blame="request"))
    assert following.over
    assert not alarms.set
    assert (await following.result()).outcome == "rejected"
    assert [told.kind async for told in following.events.items()] == ["rejected", "finished"]
    assert [told async for told in following.batches.items()] == []


async def test_the_end_of_a_log_that_never_comes_is_given_up() -> None:
    following = Following(KEY, alarms := Alarms(), submitted=True)
    following.take_batch(batch("id", 1, [("out", "a\n")]))
    following.take_event(finished("id"))
    states = [following.over]
    ((delay, give_up),) = alarms.set
    assert delay == LAST_BATCH
    give_up()
    assert [*states, following.over] == [False, True]
    assert len([told async for told in following.batches.items()]) == 1


async def test_the_end_of_another_claims_log_is_not_the_end() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_batch(batch("id", 1, [], claim="c1", end=True))
    following.take_event(finished("id", claim="c2"))
    states = [following.over]
    following.take_batch(batch("id", 1, [], claim="c2", end=True))
    assert [*states, following.over] == [False, True]


async def test_the_first_end_counts() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(finished("id", claim="c1"))
    following.take_event(finished("id", claim="c2", outcome="failed", exit_code=1, blame="job"))
    assert (await following.result()).succeeded


async def test_a_duplicate_of_ones_own_running_job_changes_nothing() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(event("id", "claimed", 1))
    following.take_event(event("id", "duplicate", 1, claim="c9"))
    following.take_event(finished("id", ran=False))
    assert (await following.result()).succeeded


async def test_a_duplicate_ends_the_submission_that_it_is_about() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(event("id", "duplicate", 1))
    with pytest.raises(RejectedError, match="another id"):
        await following.result()


async def test_who_only_follows_is_not_ended_by_somebody_elses_duplicate() -> None:
    following = Following(KEY, Alarms(), submitted=False)
    following.take_event(event("id", "duplicate", 1))
    assert not following.over


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b'{"event": "finished"}', b"null"])
async def test_news_that_make_no_sense_end_the_wait(raw: bytes) -> None:
    for take in (Following.take_event, Following.take_batch):
        following = Following(KEY, Alarms(), submitted=True)
        take(following, raw)
        with pytest.raises(BrokerError, match="makes no sense"):
            await following.result()
        with pytest.raises(BrokerError, match="makes no sense"):
            [told async for told in following.batches.items()]


async def test_a_result_of_another_version_is_told_as_such() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(finished("id", outcome="evaporated"))
    with pytest.raises(BrokerError, match="of another version"):
        await following.result()


async def test_an_event_that_we_do_not_know_is_passed_on() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(event("id", "promoted", 1))
    assert (await anext(aiter(following.events.items()))).kind == "promoted"


async def test_a_result_outlives_the_connection() -> None:
    following = Following(KEY, Alarms(), submitted=True)
    following.take_event(finished("id"))
    following.fail("the connection was lost")
    assert (await following.result()).succeeded
    with pytest.raises(BrokerError, match="lost"):
        [told async for told in following.batches.items()]


async def test_a_slow_reader_loses_the_oldest_and_no_memory() -> None:
    feed: Feed[int] = Feed(limit=10)
    for number in range(100):
        feed.put(number, 3)
    feed.end()
    assert [item async for item in feed.items()] == [97, 98, 99]


async def test_one_item_may_be_larger_than_the_limit() -> None:
    feed: Feed[str] = Feed(limit=10)
    feed.put("large", 1000)
    feed.end()
    assert [item async for item in feed.items()] == ["large"]

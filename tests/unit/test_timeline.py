"""The events of one claim keep their order and their numbers."""

import asyncio
from datetime import timedelta

import pytest
from tests.fakes import NOW, Clock, FakeEvents, make_invalid, make_job

from runner.errors import BrokerError
from runner.job import EventKind, Invalid, Job
from runner.ports import Event
from runner.timeline import Timeline


def timeline(events: FakeEvents, tasks: asyncio.TaskGroup, submission: Job | Invalid | None = None) -> Timeline:
    return Timeline(
        events=events,
        tasks=tasks,
        now=Clock(),
        submission=submission or make_job("a"),
        worker="w1",
        claim="c1",
        attempt=2,
    )


async def test_events_are_numbered_from_one_and_say_who_and_when() -> None:
    events = FakeEvents()
    async with asyncio.TaskGroup() as tasks:
        told = timeline(events, tasks)
        told.tell(EventKind.CLAIMED)
        told.tell(EventKind.RETRYING, reason="why", delay=timedelta(seconds=3))
    assert [(event.seq, event.kind) for event in events.published] == [(1, EventKind.CLAIMED), (2, EventKind.RETRYING)]
    last = events.published[-1]
    assert (last.worker, last.claim, last.attempt, last.time) == ("w1", "c1", 2, NOW)
    assert (last.reason, last.delay) == ("why", timedelta(seconds=3))


async def test_events_are_sent_without_waiting_and_in_order() -> None:
    events = FakeEvents()
    events.confirms.clear()
    async with asyncio.TaskGroup() as tasks:
        told = timeline(events, tasks)
        for _ in range(20):
            told.tell(EventKind.PROGRESS)
        await asyncio.sleep(0)
        assert [event.seq for event in events.published] == list(range(1, 21))
        events.confirms.set()


async def test_told_returns_when_all_is_confirmed_and_not_before() -> None:
    events = FakeEvents()
    events.confirms.clear()
    async with asyncio.TaskGroup() as tasks:
        told = timeline(events, tasks)
        await told.told()
        told.tell(EventKind.CLAIMED)
        waiting = tasks.create_task(told.told())
        await asyncio.sleep(0)
        told.tell(EventKind.STARTED)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        events.confirms.set()
        await waiting
        assert len(events.diary.entries) == 2


async def test_an_event_that_cannot_be_published_ends_the_claim() -> None:
    class Refusing(FakeEvents):
        async def publish(self, event: Event) -> None:
            raise BrokerError(f"refused {event.kind}")

    async def claim() -> None:
        async with asyncio.TaskGroup() as tasks:
            timeline(Refusing(), tasks).tell(EventKind.CLAIMED)
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await claim()
    assert caught.group_contains(BrokerError, match="refused claimed")


async def test_the_id_is_known_for_what_is_no_job_too() -> None:
    async with asyncio.TaskGroup() as tasks:
        assert timeline(FakeEvents(), tasks).job_id == "a"
        assert timeline(FakeEvents(), tasks, make_invalid()).job_id == "broken-1"

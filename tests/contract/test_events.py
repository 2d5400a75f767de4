"""What everybody does who tells of jobs, the real one and the fake: events and their replies, and logs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from secrets import token_hex
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage
from tests.fakes import NOW, FakeEvents, FakeLogSink, make_invalid, make_job, until
from tests.integration.amqp_house import Room, open_publisher, open_room
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp.events import EventPublisher
from runner.adapters.amqp.logs import LogPublisher
from runner.job import Blame, EventKind, JobResult, Line, Outcome, Reply, Stream, Times, Verdict
from runner.ports import Batch, Event, Events, LogSink

KEY = make_job("j1").key


@dataclass
class Told:
    """What is known outside of what was told. `silence` keeps the broker from confirming anything."""

    events: Events
    logs: LogSink
    heard: Callable[[int], Awaitable[list[dict[str, Any]]]]
    replies: Callable[[int], Awaitable[list[dict[str, Any]]]]
    batches: Callable[[int], Awaitable[list[dict[str, Any]]]]
    silence: Callable[[], None]
    speak: Callable[[], None]


@pytest.fixture(scope="module", params=["fake", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def endpoint(request: pytest.FixtureRequest) -> Endpoint | None:
    return None if request.param == "fake" else request.getfixturevalue("broker")


@pytest.fixture(scope="module")
async def room(endpoint: Endpoint | None) -> AsyncIterator[Room | None]:
    if endpoint is None:
        yield None
        return
    async with open_room(endpoint.url, f"t{token_hex(6)}") as opened:
        yield opened


@pytest.fixture
async def told(endpoint: Endpoint | None, room: Room | None) -> AsyncIterator[Told]:
    if endpoint is None or room is None:
        yield fake()
        return
    async with Proxy(endpoint.url) as wire, real(room, wire) as opened:
        yield opened


def fake() -> Told:
    events, logs = FakeEvents(), FakeLogSink()

    async def heard(count: int) -> list[dict[str, Any]]:
        await until(lambda: len(events.bodies) >= count)
        return list(events.bodies)

    async def replies(count: int) -> list[dict[str, Any]]:
        await until(lambda: len(events.replies) >= count)
        return list(events.replies)

    async def batches(count: int) -> list[dict[str, Any]]:
        await until(lambda: len(logs.bodies) >= count)
        return list(logs.bodies)

    def silence() -> None:
        logs.stuck = True
        events.confirms.clear()

    def speak() -> None:
        logs.stuck = False
        events.confirms.set()

    return Told(events=events, logs=logs, heard=heard, replies=replies, batches=batches, silence=silence, speak=speak)


@asynccontextmanager
async def real(room: Room, wire: Proxy) -> AsyncIterator[Told]:
    streams = [await room.collect(exchange, "#") for exchange in (room.names.events, room.names.reply, room.names.logs)]

    def listen(source: "asyncio.Queue[AbstractIncomingMessage]") -> Callable[[int], Awaitable[list[dict[str, Any]]]]:
        seen: list[dict[str, Any]] = []

        async def listen(count: int) -> list[dict[str, Any]]:
            async with asyncio.timeout(30):
                while len(seen) < count:
                    seen.append(json.loads((await source.get()).body))
            while not source.empty():
                seen.append(json.loads(source.get_nowait().body))
            return seen

        return listen

    heard, replies, batches = map(listen, streams)
    async with open_publisher(wire.url) as (publisher, _), asyncio.TaskGroup() as tasks:
        logs = LogPublisher(names=room.names, publisher=publisher, dropped=lambda _: None)
        running = tasks.create_task(logs.run())
        yield Told(
            events=EventPublisher(names=room.names, publisher=publisher),
            logs=logs,
            heard=heard,
            replies=replies,
            batches=batches,
            silence=lambda: wire.black_hole(to_service=False),
            speak=wire.heal,
        )
        wire.heal()
        running.cancel()


def event(kind: EventKind = EventKind.CLAIMED, **more: Any) -> Event:
    base = Event(kind=kind, submission=make_job("j1"), worker="w1", claim="c1", seq=1, attempt=1, time=NOW)
    return replace(base, **more)


def finished(**more: Any) -> Event:
    verdict = Verdict(outcome=Outcome.SUCCEEDED, reason="exited with code 0", blame=Blame.NONE, exit_code=0)
    return event(EventKind.FINISHED, result=JobResult(verdict=verdict, times=Times()), **more)


def batch(seq: int | None, text: str = "hello", *, claim: str = "c1", end: bool = False, **more: Any) -> Batch:
    lines = [Line(time=NOW, stream=Stream.OUT, text=text)]
    return Batch(key=KEY, claim=claim, seq=seq, out=0, err=0, lines=lines, end=end, **more)


async def test_an_event_is_told_once(told: Told) -> None:
    await told.events.publish(event(EventKind.RETRYING, delay=timedelta(seconds=3), outcome=Outcome.FAILED))
    [body] = await told.heard(1)
    assert (body["event"], body["id"], body["tenant"], body["delay"]) == ("retrying", "j1", "acme", 3.0)


async def test_events_arrive_in_the_order_in_which_they_were_told(told: Told) -> None:
    await asyncio.gather(*(told.events.publish(event(EventKind.PROGRESS, seq=seq)) for seq in range(1, 101)))
    assert [body["seq"] for body in await told.heard(100)] == list(range(1, 101))


async def test_an_event_about_what_is_no_job_is_told_too(told: Told) -> None:
    await told.events.publish(event(EventKind.REJECTED, submission=make_invalid("why"), reason="why"))
    [body] = await told.heard(1)
    assert (body["id"], body["reason"]) == ("broken-1", "why")


async def test_an_event_is_safe_only_when_it_is_confirmed(told: Told) -> None:
    told.silence()
    publishing = asyncio.create_task(told.events.publish(event()))
    await asyncio.sleep(0.1)
    assert not publishing.done()
    told.speak()
    await asyncio.wait_for(publishing, 30)
    assert await told.heard(1)


async def test_whoever_asked_for_a_reply_gets_the_last_event_and_no_other(told: Told) -> None:
    job = make_job("j1", reply=Reply(to="answers", correlation_id="q1"))
    await told.events.publish(event(EventKind.CLAIMED, submission=job))
    await told.events.publish(finished(submission=job, seq=2))
    assert await told.replies(1) == [(await told.heard(2))[1]]


async def test_a_job_that_asked_for_none_gets_no_reply(told: Told) -> None:
    await told.events.publish(finished())
    await told.events.publish(finished(submission=make_job("j2", reply=Reply(to="answers"))))
    assert [body["id"] for body in await told.replies(1)] == ["j2"]


# Logs


async def test_batches_arrive_in_order_and_are_confirmed(told: Told) -> None:
    for seq in range(1, 10):
        told.logs.offer(batch(seq, f"line {seq}", end=seq == 9))
    assert await told.logs.flush(KEY, "c1", 20)
    bodies = await told.batches(9)
    assert [body["seq"] for body in bodies] == list(range(1, 10))
    assert [body["lines"][0]["m"] for body in bodies] == [f"line {seq}" for seq in range(1, 10)]
    assert [body.get("end", False) for body in bodies] == [False] * 8 + [True]
    assert told.logs.confirmed("c1") == 9


async def test_a_claim_that_wrote_nothing_is_complete(told: Told) -> None:
    assert await told.logs.flush(KEY, "nothing", 0)


async def test_a_batch_for_the_live_key_has_no_number(told: Told) -> None:
    told.logs.offer(batch(None, "live"))
    [body] = await told.batches(1)
    assert "seq" not in body


async def test_a_log_that_is_not_confirmed_in_time_is_not_complete(told: Told) -> None:
    told.silence()
    told.logs.offer(batch(1))
    assert not await told.logs.flush(KEY, "c1", 0.1)
    assert told.logs.confirmed("c1") == 0


async def test_offering_never_waits_and_claims_do_not_mix(told: Told) -> None:
    told.logs.offer(batch(1, claim="c1"))
    told.logs.offer(batch(1, claim="c2"))
    assert await told.logs.flush(KEY, "c1", 20)
    assert await told.logs.flush(KEY, "c2", 20)
    assert sorted(body["claim"] for body in await told.batches(2)) == ["c1", "c2"]


async def test_a_claim_that_is_forgotten_says_nothing_more(told: Told) -> None:
    told.logs.offer(batch(1))
    assert await told.logs.flush(KEY, "c1", 20)
    told.logs.forget("c1")
    assert await told.logs.flush(KEY, "c1", 0)
    told.logs.forget("never heard of")


async def test_there_is_room_where_nothing_waits(told: Told) -> None:
    await asyncio.wait_for(told.logs.room("c1"), 30)
    told.logs.offer(batch(1))
    await told.logs.flush(KEY, "c1", 20)
    await asyncio.wait_for(told.logs.room("c1"), 30)

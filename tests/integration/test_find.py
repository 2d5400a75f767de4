"""Asking the workers about jobs, over a real broker: the answer's way, its parts, and what is asked wrongly."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from tests.e2e.daemon import eventually
from tests.services import Endpoint

from runner.adapters.amqp.ask import Asker, open_asker
from runner.adapters.amqp.find import PART_MAX, Finder
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.client.inquiry import find, kept_log, recent
from runner.errors import BrokerError
from runner.job import JobKey, Json

pytestmark = pytest.mark.broker

KEY = JobKey(tenant="acme", id="one")
WAIT = 30.0


class FakeKnowledge:
    """Knows what a test has it know."""

    def __init__(self) -> None:
        self.jobs: dict[JobKey, dict[str, Json]] = {}
        self.logs: dict[str, list[bytes]] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.given = 0

    async def about(self, key: JobKey) -> dict[str, Json] | None:
        self.asked.append(("about", key))
        return self.jobs.get(key)

    async def recent(self, tenant: str | None, state: str | None, most: int) -> list[Json]:
        self.asked.append(("recent", tenant, state, most))
        return [{"tenant": key.tenant, "id": key.id, **job} for key, job in self.jobs.items()]

    async def log(self, key: JobKey, claim: str | None) -> AsyncIterator[bytes]:
        self.asked.append(("log", key, claim))
        for name, batches in self.logs.items():
            if claim in (None, name):
                for batch in batches:
                    self.given += 1
                    yield batch


def known(state: str, *, claims: tuple[str, ...] = (), **record: Json) -> dict[str, Json]:
    logs: list[Json] = [{"claim": claim, "bytes": 1} for claim in claims]
    return {"id": KEY.id, "tenant": KEY.tenant, "state": state, "why": None, "record": record or None, "logs": logs}


def batch(claim: str, seq: int, text: str) -> bytes:
    line = {"t": "2030-01-01T00:00:00.000000Z", "s": "out", "m": text}
    return json.dumps(
        {"v": 1, "id": "one", "claim": claim, "seq": seq, "off": {"out": 0, "err": 0}, "lines": [line]}
    ).encode()


@pytest.fixture
async def connection(broker: Endpoint) -> AsyncIterator[AbstractConnection]:
    connection = await aio_pika.connect(broker.url)
    async with connection:
        yield connection


@pytest.fixture
async def names(connection: AbstractConnection) -> AsyncIterator[Names]:
    """A namespace with the two exchanges that questions and answers need."""
    names = Names(f"t{token_hex(6)}")
    channel = await connection.channel()
    for exchange in (names.control, names.reply):
        await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)
    yield names
    for exchange in (names.control, names.reply):
        await channel.exchange_delete(exchange)


@asynccontextmanager
async def answering(url: str, names: Names, worker: str) -> AsyncIterator[FakeKnowledge]:
    """A worker that does nothing but answer."""
    knowledge, publisher = FakeKnowledge(), Publisher()
    finder = Finder(names=names, worker=worker, knowledge=knowledge, publisher=publisher, log_publisher=publisher)
    connection = await aio_pika.connect(url)
    async with connection:
        users = [asyncio.create_task(use(connection)) for use in (publisher.use, finder.use)]
        await publisher.opened()
        probe = await connection.channel()
        await eventually(lambda: _listens(probe, names, worker), "the worker listens")
        try:
            yield knowledge
        finally:
            for user in users:
                user.cancel()
            await asyncio.wait(users)


async def _listens(channel: AbstractChannel, names: Names, worker: str) -> bool:
    asker = await channel.declare_queue(exclusive=True, auto_delete=True)
    answered = asyncio.Event()

    async def hear(_: AbstractIncomingMessage) -> None:
        answered.set()

    await asker.consume(hear, no_ack=True)
    control = await channel.get_exchange(names.control, ensure=False)
    await control.publish(aio_pika.Message(b"", reply_to=asker.name), f"worker.{worker}.jobs", mandatory=False)
    try:
        async with asyncio.timeout(0.5):
            await answered.wait()
    except TimeoutError:
        return False
    return True


@pytest.fixture
async def worker(broker: Endpoint, names: Names) -> AsyncIterator[FakeKnowledge]:
    async with answering(broker.url, names, "w1") as knowledge:
        knowledge.asked.clear()
        yield knowledge


@pytest.fixture
async def other(broker: Endpoint, names: Names) -> AsyncIterator[FakeKnowledge]:
    async with answering(broker.url, names, "w2") as knowledge:
        knowledge.asked.clear()
        yield knowledge


@pytest.fixture
async def asker(connection: AbstractConnection, names: Names) -> AsyncIterator[Asker]:
    async with open_asker(connection, names) as asker:
        yield asker


async def test_who_knows_a_job_says_so_and_nobody_else(
    asker: Asker, worker: FakeKnowledge, other: FakeKnowledge
) -> None:
    worker.jobs[KEY] = known("running", claims=("c1",), event="started")
    (found,) = await find(asker, KEY, WAIT, everyone=False)
    assert (found.worker, found.state, found.claims, found.record) == ("w1", "running", ("c1",), {"event": "started"})
    assert found.result is None
    assert other.asked in ([], [("about", KEY)])


async def test_nobody_answers_for_a_job_that_nobody_knows(asker: Asker, worker: FakeKnowledge) -> None:
    assert await find(asker, KEY, 0.3, everyone=False) == []
    await eventually(lambda: _heard(worker), "the question has arrived")
    assert worker.asked == [("about", KEY)]


async def test_the_tenant_is_the_keys_word(asker: Asker, worker: FakeKnowledge) -> None:
    worker.jobs[KEY] = known("running")
    asked = {"tenant": "acme", "id": "one", "log": False}
    assert await asker.collect("job.other.one.find", asked, wait=0.3) == []
    await eventually(lambda: _heard(worker), "the question has arrived")
    assert worker.asked == [("about", JobKey(tenant="other", id="one"))]


@pytest.mark.parametrize(
    "key", ["job.acme.find", "job.acme.a.b.find", "job.Acme.one.find", "job.acme.a b.find", "job..one.find"]
)
async def test_a_key_that_names_no_job_is_not_answered(asker: Asker, worker: FakeKnowledge, key: str) -> None:
    assert await asker.collect(key, wait=0.3) == []
    assert worker.asked == []


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks waits until both workers have answered, and no longer; unless it has enough before."""
    really = Asker.collect

    async def collect(asker: Asker, key: str, asked: Any = None, **more: Any) -> Any:
        enough, heard = more.get("enough", lambda _: False), set[str]()

        def over(answer: Any) -> bool:
            heard.add(answer["worker"])
            return enough(answer) or len(heard) == 2

        return await really(asker, key, asked, wait=WAIT, enough=over)

    monkeypatch.setattr(Asker, "collect", collect)


@pytest.mark.usefixtures("both")
async def test_who_has_the_job_knows_better_than_who_had_it(
    asker: Asker, worker: FakeKnowledge, other: FakeKnowledge
) -> None:
    for states in (("gone", "finished"), ("retrying", "queued"), ("finished", "running"), ("deferred", "retrying")):
        worker.jobs[KEY], other.jobs[KEY] = (known(state) for state in states)
        found = await find(asker, KEY, 0.5, everyone=True)
        assert [one.state for one in found] == [states[1], states[0]]


@pytest.mark.usefixtures("both")
async def test_of_two_that_know_alike_the_later_comes_first(
    asker: Asker, worker: FakeKnowledge, other: FakeKnowledge
) -> None:
    worker.jobs[KEY] = known("retrying", time="2030-01-01T00:00:00.000000Z")
    other.jobs[KEY] = known("retrying", time="2030-01-01T00:00:01.000000Z")
    assert [one.worker for one in await find(asker, KEY, 0.5, everyone=True)] == ["w2", "w1"]


@pytest.mark.parametrize("size", [10, PART_MAX - 500, PART_MAX, 5 * PART_MAX + 17])
async def test_a_log_comes_in_parts_and_whole(asker: Asker, worker: FakeKnowledge, size: int) -> None:
    worker.logs["c1"] = [batch("c1", 1, "x" * size), batch("c1", 2, "end")]
    parts = [part async for part in asker.parts("job.acme.one.find", {"log": True}, patience=WAIT)]
    assert b"".join(parts) == b"".join(line + b"\n" for line in worker.logs["c1"])
    assert all(len(part) == PART_MAX for part in parts[:-1])
    assert 0 < len(parts[-1]) <= PART_MAX


@pytest.mark.usefixtures("both")
async def test_the_log_of_all_attempts_is_put_together_from_all_workers(
    asker: Asker, worker: FakeKnowledge, other: FakeKnowledge
) -> None:
    worker.jobs[KEY], other.jobs[KEY] = known("retrying", claims=("c1", "c3")), known("retrying", claims=("c2",))
    worker.logs = {"c1": [batch("c1", 1, "first")], "c3": [batch("c3", 1, "third")]}
    other.logs = {"c2": [batch("c2", 1, "second"), batch("c2", 2, "more")]}
    found = await find(asker, KEY, 0.5, everyone=True)
    lines = [line.text async for one in kept_log(asker, KEY, found) for line in one.lines]
    assert lines == ["first", "second", "more", "third"]


async def test_a_worker_that_stops_answering_is_given_up(asker: Asker, worker: FakeKnowledge) -> None:
    with pytest.raises(BrokerError, match="no worker went on answering"):
        await anext(asker.parts("job.acme.one.find", {"log": True}, patience=0.3))
    await eventually(lambda: _heard(worker), "the question has arrived")
    assert worker.asked == [("log", KEY, None)]


async def ask(
    channel: AbstractChannel, names: Names, body: bytes = b"", key: str = "job.acme.one.find", **more: Any
) -> None:
    control = await channel.get_exchange(names.control, ensure=False)
    await control.publish(aio_pika.Message(body, **more), key, mandatory=False)


async def answer(queue: AbstractQueue) -> AbstractIncomingMessage:
    found: list[AbstractIncomingMessage] = []

    async def look() -> bool:
        message = await queue.get(no_ack=True, fail=False)
        if message is not None:
            found.append(message)
        return message is not None

    await eventually(look, "an answer")
    return found[0]


async def test_an_answer_to_a_queue_of_ones_own_naming_bears_the_tenant(
    connection: AbstractConnection, names: Names, worker: FakeKnowledge
) -> None:
    worker.jobs[KEY] = known("running")
    worker.logs["c1"] = [b"{}"]
    channel = await connection.channel()
    queue = await channel.declare_queue(f"{names.ns}-mine", exclusive=True)
    await queue.bind(names.reply, "acme.mine")
    await ask(channel, names, reply_to="mine", correlation_id="q1")
    message = await answer(queue)
    assert (message.routing_key, message.correlation_id) == ("acme.mine", "q1")
    assert json.loads(message.body)["state"] == "running"
    await ask(channel, names, b'{"log": true}', reply_to="mine", correlation_id="q2")
    message = await answer(queue)
    assert (message.correlation_id, message.headers["x-part"], message.headers["x-last"]) == ("q2", 0, True)
    assert message.body == b"{}\n"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b'{"log": "yes"}', b'{"log": 1, "claim": 7}', b"[" * 10_000])
async def test_whatever_the_body_says_that_makes_no_sense_is_no_wish(
    connection: AbstractConnection, names: Names, worker: FakeKnowledge, body: bytes
) -> None:
    worker.jobs[KEY] = known("running")
    channel = await connection.channel()
    queue = await channel.declare_queue(exclusive=True)
    await ask(channel, names, body, reply_to=queue.name)
    assert json.loads((await answer(queue)).body)["worker"] == "w1"


async def test_questions_that_cannot_be_answered_do_not_pile_up(
    connection: AbstractConnection, names: Names, worker: FakeKnowledge, asker: Asker
) -> None:
    worker.jobs[KEY] = known("running")
    channel = await connection.channel()
    for _ in range(50):
        await ask(channel, names)
        await ask(channel, names, reply_to="x" * 201)
        await ask(channel, names, reply_to="amq.gen-gone")
    (found,) = await find(asker, KEY, WAIT, everyone=False)
    assert found.state == "running"


async def test_a_log_is_not_sent_on_to_nobody(
    connection: AbstractConnection, names: Names, worker: FakeKnowledge, asker: Asker
) -> None:
    worker.jobs[KEY] = known("running")
    worker.logs["c1"] = [b"x" * PART_MAX] * 1000
    channel = await connection.channel()
    await ask(channel, names, b'{"log": true}', reply_to="amq.gen-gone")
    await find(asker, KEY, WAIT, everyone=False)
    await eventually(lambda: _same(worker), "the log has stopped")
    assert worker.given < 10


async def _same(worker: FakeKnowledge) -> bool:
    before = worker.given
    await asyncio.sleep(0.2)
    return 0 < worker.given == before


@pytest.mark.usefixtures("both")
async def test_the_jobs_of_all_workers_are_one_list(asker: Asker, worker: FakeKnowledge, other: FakeKnowledge) -> None:
    def told(state: str, second: int) -> dict[str, Json]:
        return {"state": state, "updated": f"2030-01-01T00:00:{second:02d}+00:00"}

    worker.jobs = {
        JobKey(tenant="acme", id="a"): told("retrying", 5),
        JobKey(tenant="acme", id="b"): told("finished", 1),
        JobKey(tenant="acme", id="waits"): {"state": "queued", "updated": None},
    }
    other.jobs = {
        JobKey(tenant="acme", id="a"): told("finished", 9),
        JobKey(tenant="other", id="b"): told("running", 3),
    }
    jobs = await recent(asker, tenant=None, state=None, limit=10, wait=0.5)
    assert [(job["tenant"], job["id"], job["state"], job["worker"]) for job in jobs] == [
        ("acme", "waits", "queued", "w1"),
        ("acme", "a", "finished", "w2"),
        ("other", "b", "running", "w2"),
        ("acme", "b", "finished", "w1"),
    ]
    await recent(asker, tenant="acme", state="failed", limit=7, wait=0.3)
    assert worker.asked[-1] == ("recent", "acme", "failed", 7)


async def test_without_an_exchange_it_says_what_is_missing(connection: AbstractConnection) -> None:
    async with open_asker(connection, Names(f"t{token_hex(6)}")) as asker:
        with pytest.raises(BrokerError, match="run: runner topology apply"):
            await asker.collect("all.ping", wait=1)


async def test_a_connection_that_is_lost_ends_the_wait(broker: Endpoint, names: Names, worker: FakeKnowledge) -> None:
    connection = await aio_pika.connect(broker.url)
    async with open_asker(connection, names) as asker, asyncio.TaskGroup() as tasks:

        async def asking() -> None:
            with pytest.raises(BrokerError, match="lost"):
                await asker.collect("job.acme.one.find", wait=2 * WAIT)

        waiting = tasks.create_task(asking())
        await eventually(lambda: _heard(worker), "the question has arrived")
        await connection.close()
        async with asyncio.timeout(WAIT):
            await waiting


async def _heard(worker: FakeKnowledge) -> bool:
    return bool(worker.asked)

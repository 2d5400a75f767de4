"""The Python client against a real broker, with a worker that only tells."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import aio_pika
import aiormq
import pytest
from tests.fake_worker import FakeWorker, batch, event, fake_worker, finished, whole_topology
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp.names import Names
from runner.client import BrokerError, Client, Line, Outcome, PublishUncertain, RejectedError, Stream, SubmittedJob
from runner.client.following import Following
from runner.client.packing import pack
from runner.client.subscription import Subscription

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
async def namespace(broker: Endpoint) -> AsyncIterator[str]:
    """One for all tests of this file: it takes a second to make."""
    async with whole_topology(broker.url, f"t{token_hex(6)}") as namespace:
        yield namespace


@pytest.fixture
async def worker(broker: Endpoint, namespace: str) -> AsyncIterator[FakeWorker]:
    async with fake_worker(broker.url, namespace) as worker:
        yield worker


@pytest.fixture
async def client(broker: Endpoint, namespace: str, worker: FakeWorker) -> AsyncIterator[Client]:  # noqa: ARG001
    async with Client(broker.url, namespace) as client, asyncio.timeout(60):
        yield client


async def written(job: SubmittedJob, *, live: bool = False) -> list[tuple[Stream, str]]:
    return [(line.stream, text_of(line)) async for line in job.logs(live=live)]


def text_of(line: Line) -> str:
    return line.text if line.partial else line.text + "\n"


async def test_a_job_is_published_as_the_contract_says(client: Client, worker: FakeWorker) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    job = await client.submit(stack="busybox", command=["ls"], tenant="acme", env={"A": "é"})
    message = await worker.take()
    assert json.loads(message.body) == {"stack": "busybox", "command": ["ls"], "env": {"A": "é"}}
    assert message.routing_key == "default.normal.acme"
    assert message.message_id == job.id
    assert job.id[14] == "7"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.timestamp is not None
    assert message.timestamp >= before.replace(microsecond=0)


async def test_a_folder_of_code_goes_along(client: Client, worker: FakeWorker, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hi')")
    await client.submit(stack="busybox", code=tmp_path)
    assert json.loads((await worker.take()).body) == {"stack": "busybox", "code": pack(tmp_path).field}
    with pytest.raises(RejectedError, match=r"code: .*missing cannot be read"):
        await client.enqueue({"stack": "busybox", "code": tmp_path / "missing"})


async def test_log_events_and_result_of_a_job_come_back(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox", name="hello")
    await worker.take()
    await worker.tell(event(job.id, "claimed", 1))
    await worker.tell(event(job.id, "started", 2))
    await worker.log(batch(job.id, 1, [("out", "one\n"), ("err", "oops\n"), ("out", "tw")]))
    await worker.log(batch(job.id, 2, [("out", "o\n"), ("sys", "… 1 lines, 2 bytes omitted …\n")], off=(6, 5)))
    await worker.log(batch(job.id, 3, [("out", "no newline")], off=(8, 5), end=True))
    await worker.tell(
        finished(job.id, outcome="failed", exit_code=3, blame="job", reason="exited with 3", output={"a": [1]})
    )
    assert await written(job) == [
        (Stream.OUT, "one\n"),
        (Stream.ERR, "oops\n"),
        (Stream.OUT, "tw"),
        (Stream.OUT, "o\n"),
        (Stream.SYS, "… 1 lines, 2 bytes omitted …\n"),
        (Stream.OUT, "no newline"),
    ]
    assert [told.kind async for told in job.events()] == ["claimed", "started", "finished"]
    result = await job.result()
    assert (result.outcome, result.exit_code, result.output) == (Outcome.FAILED, 3, {"a": [1]})
    assert not result.succeeded
    assert result.logs_complete
    assert result.body["worker"] == "fake"


async def cleared_away(client: Client) -> None:
    assert client._clearing is not None
    async with asyncio.timeout(30):
        await client._clearing


async def is_bound(url: str, namespace: str, job_id: str) -> bool:
    """Whether anybody hears what is told about the job."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(Names(namespace).events, ensure=False)
        told = aio_pika.Message(event(job_id, "claimed", 1))
        try:
            await exchange.publish(told, f"default.{job_id}.claimed", mandatory=True)
        except aio_pika.exceptions.PublishError:
            return False
        return True


async def test_what_a_job_that_is_over_leaves_in_the_broker_is_cleared_away(
    broker: Endpoint, namespace: str, client: Client, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    job = await client.submit(stack="busybox")
    await cleared_away(client)
    await worker.take()
    await worker.log(batch(job.id, 1, [("out", "hi\n")], end=True))
    await worker.tell(finished(job.id))
    assert await written(job) == [(Stream.OUT, "hi\n")]
    assert (await job.result()).succeeded
    with monkeypatch.context() as patch:
        patch.setattr(aiormq.Channel, "queue_unbind", fail)
        await client.follow("default", "second")
        await cleared_away(client)
    assert await is_bound(broker.url, namespace, job.id)
    await client.follow("default", "third")
    await cleared_away(client)
    assert not await is_bound(broker.url, namespace, job.id)


async def test_a_submitter_does_not_wait_for_the_clearing_away(
    broker: Endpoint, namespace: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def never(_: Subscription) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(Subscription, "forget_ended", never)
    async with asyncio.timeout(30):
        async with Client(broker.url, namespace) as client:
            job = await client.submit(stack="busybox")
            assert (await worker.take()).message_id == job.id
            await begun.wait()
            for _ in range(2):
                assert (await client.submit(stack="busybox")).id == (await worker.take()).message_id
        assert cancelled.is_set()


async def test_a_job_that_is_followed_again_while_it_is_cleared_away_is_heard_of(
    broker: Endpoint, namespace: str, client: Client, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, waits, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    really_unbind, really_add = aiormq.Channel.queue_unbind, Subscription.add

    async def unbind(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await really_unbind(*args, **kwargs)

    async def add(subscription: Subscription, following: Following) -> None:
        if following.key.id == job.id:
            waits.set()  # what follows is there before anybody hears of this
        await really_add(subscription, following)

    job = await client.submit(stack="busybox")
    await cleared_away(client)
    await worker.tell(event(job.id, "duplicate", 1))
    with pytest.raises(RejectedError):
        await job.result()
    monkeypatch.setattr(aiormq.Channel, "queue_unbind", unbind)
    await client.follow("default", "another")
    await begun.wait()
    monkeypatch.setattr(Subscription, "add", add)
    again = asyncio.create_task(client.follow("default", job.id))
    async with asyncio.timeout(30):
        await waits.wait()
        await client.follow("default", "a-third")
        await client.cancel("default", "a-third")
    assert not again.done()
    go_on.set()
    assert (await again).id == job.id
    await cleared_away(client)
    assert await is_bound(broker.url, namespace, job.id)


async def test_who_was_cancelled_follows_nothing(
    broker: Endpoint, namespace: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    really_bind: Any = aiormq.Channel.queue_bind

    async def bind(*args: Any, nowait: bool = False, **kwargs: Any) -> Any:
        if not nowait:  # the last one
            begun.set()
            await asyncio.Event().wait()
        return await really_bind(*args, nowait=nowait, **kwargs)

    await client.follow("default", "first")
    with monkeypatch.context() as patch:
        patch.setattr(aiormq.Channel, "queue_bind", bind)
        cancelled = asyncio.create_task(client.follow("default", "cancelled"))
        await begun.wait()
        cancelled.cancel()
        await asyncio.wait({cancelled})
    await client.follow("default", "second")
    await cleared_away(client)
    assert not await is_bound(broker.url, namespace, "cancelled")
    assert await is_bound(broker.url, namespace, "first")


async def test_a_job_that_was_not_taken_is_not_followed(
    broker: Endpoint, namespace: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def time_out(*_: object, **__: object) -> None:
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(aio_pika.Exchange, "publish", time_out)
        with pytest.raises(PublishUncertain):
            await client.submit(stack="busybox", id="not-taken")
    assert await is_bound(broker.url, namespace, "not-taken")
    await client.follow("default", "another")
    await cleared_away(client)
    assert not await is_bound(broker.url, namespace, "not-taken")


async def test_repeats_are_told_once(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox")
    for body in (event(job.id, "claimed", 1), event(job.id, "started", 2)):
        await worker.tell(body)
        await worker.tell(body)
    first, last = batch(job.id, 1, [("out", "a\n")]), batch(job.id, 2, [("out", "b\n")], off=(2, 0), end=True)
    for body in (first, first, last, last):
        await worker.log(body)
    await worker.tell(finished(job.id))
    await worker.tell(finished(job.id))
    assert await written(job) == [(Stream.OUT, "a\n"), (Stream.OUT, "b\n")]
    assert [told.kind async for told in job.events()] == ["claimed", "started", "finished"]


async def test_the_end_of_a_log_may_come_after_the_result(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox")
    await worker.tell(finished(job.id))
    assert (await job.result()).succeeded
    await worker.log(batch(job.id, 1, [("out", "late\n")], end=True))
    assert await written(job) == [(Stream.OUT, "late\n")]


async def test_a_job_that_was_lost_is_followed_to_the_end_of_its_next_claim(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox")
    await worker.log(batch(job.id, 1, [("out", "first try\n")]))
    await worker.tell(event(job.id, "lost", 1, claim="c2"))
    await worker.log(batch(job.id, 1, [("out", "second try\n")], claim="c2", end=True))
    await worker.tell(finished(job.id, claim="c2", attempt=2))
    assert await written(job) == [(Stream.OUT, "first try\n"), (Stream.OUT, "second try\n")]
    assert (await job.result()).body["attempt"] == 2


async def test_what_is_shown_live_is_for_those_who_ask(client: Client, worker: FakeWorker) -> None:
    jobs = [await client.submit(stack="busybox") for _ in range(2)]
    for job in jobs:
        await worker.log(batch(job.id, 1, [("out", "head\n")]))
        await worker.log(batch(job.id, None, [("out", "live\n")], off=(5, 0)))
        await worker.log(batch(job.id, 2, [("out", "tail\n")], off=(10, 0), end=True))
        await worker.tell(finished(job.id))
    assert [text for _, text in await written(jobs[0])] == ["head\n", "tail\n"]
    assert [text for _, text in await written(jobs[1], live=True)] == ["head\n", "live\n", "tail\n"]


async def test_many_jobs_share_two_queues_and_each_hears_of_itself_alone(client: Client, worker: FakeWorker) -> None:
    async def answer() -> None:
        for _ in range(100):
            message = await worker.take()
            text = json.loads(message.body)["command"][1]
            await worker.log(batch(str(message.message_id), 1, [("out", f"{text}\n")], end=True))
            await worker.tell(finished(str(message.message_id), output=text))

    async def one(number: int) -> tuple[list[str], object]:
        job = await client.submit(stack="busybox", command=["echo", str(number)])
        return [line.text async for line in job.logs()], (await job.result()).output

    _, *found = await asyncio.gather(answer(), *(one(number) for number in range(100)))
    assert found == [([str(number)], str(number)) for number in range(100)]


async def test_a_long_log_comes_in_order(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox")
    for number in range(1000):
        last = number == 999
        await worker.log(batch(job.id, number + 1, [("out", f"{number:06}\n")], off=(7 * number, 0), end=last))
    await worker.tell(finished(job.id))
    assert [int(line.text) async for line in job.logs()] == list(range(1000))


async def test_a_job_that_is_on_its_way_can_be_followed(
    client: Client, worker: FakeWorker, broker: Endpoint, namespace: str
) -> None:
    submission = await client.enqueue({"stack": "busybox"}, tenant="acme")
    async with Client(broker.url, namespace) as other:
        job = await other.follow("acme", submission.id)
        await worker.log(batch(submission.id, 7, [("out", "still here\n")], off=(600, 0), end=True), tenant="acme")
        await worker.tell(finished(submission.id, tenant="acme"))
        assert await written(job) == [(Stream.OUT, "still here\n")]
        assert (await job.result()).succeeded


async def test_a_cancellation_says_which_job_and_why(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox", tenant="acme")
    await job.cancel("no longer wanted")
    message = await worker.cancelled()
    assert message.routing_key == f"job.acme.{job.id}.cancel"
    assert json.loads(message.body) == {"reason": "no longer wanted"}


async def test_a_duplicate_is_refused_since_nobody_may_ever_tell_its_end(client: Client, worker: FakeWorker) -> None:
    job = await client.submit(stack="busybox", id="same")
    await worker.tell(event("same", "duplicate", 1))
    with pytest.raises(RejectedError, match="id: a job default/same is there already"):
        await job.result()
    assert await written(job) == []


@pytest.mark.parametrize(
    ("fields", "route", "fault"),
    [
        ({"command": ["ls"]}, {}, "stack: is required"),
        ({"stack": "busybox", "limits": {"memory": "lots"}}, {}, "limits.memory: .* is not a size"),
        ({"stack": "busybox", "comand": ["ls"]}, {}, "comand: is not a field"),
        ({"stack": "busybox"}, {"tenant": "Acme"}, "tenant .* is not a word"),
        ({"stack": "busybox"}, {"tenant": "a.b"}, "priority .* is none"),
        ({"stack": "busybox"}, {"pool": "a.b"}, "routing key .* is not <pool>"),
        ({"stack": "busybox"}, {"priority": "urgent"}, "priority .* is none"),
        ({"stack": "busybox", "payload": "x" * 600_000}, {}, "more than 524288"),
        ({"stack": "busybox", "payload": float("nan")}, {}, "JSON"),
        ({"stack": "busybox", "env": {"A": "\udc80"}}, {}, "env.*lone surrogate"),
        ({"stack": "busybox", "id": "a.b"}, {}, "id: .* is not an id"),
    ],
)
async def test_mistakes_are_told_before_anything_is_published(
    client: Client, worker: FakeWorker, fields: dict[str, object], route: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RejectedError, match=fault):
        await client.submit_message(fields, **route)
    good = await client.enqueue({"stack": "busybox"})
    assert (await worker.take()).message_id == good.id


async def test_an_id_with_a_dot_cannot_reach_another_job(client: Client) -> None:
    with pytest.raises(RejectedError, match="is not 1 to 64"):
        await client.cancel("acme", "a.b", "")
    with pytest.raises(RejectedError, match="is not a word"):
        await client.follow("acme.x", "a")


async def test_a_missing_topology_says_what_to_do(broker: Endpoint) -> None:
    async with Client(broker.url, "nowhere") as client:
        with pytest.raises(BrokerError, match=r"no exchange nowhere; .*runner topology apply"):
            await client.enqueue({"stack": "busybox"})
        with pytest.raises(BrokerError, match="runner topology apply"):
            await client.submit(stack="busybox")


async def test_a_job_that_no_queue_takes_is_told(broker: Endpoint) -> None:
    namespace = f"t{token_hex(6)}"
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(namespace, "topic", durable=False)
        async with Client(broker.url, namespace) as client:
            with pytest.raises(BrokerError, match=r"no queue takes default\.normal\.default"):
                await client.enqueue({"stack": "busybox"})
            queue = await channel.declare_queue(
                exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
            )
            await queue.bind(exchange, "#")
            with pytest.raises(BrokerError, match="refused"):
                await client.enqueue({"stack": "busybox"})
        await exchange.delete()


async def test_no_broker_is_told_without_the_password() -> None:
    with pytest.raises(BrokerError, match=r"no broker at 127\.0\.0\.1:1: ") as caught:
        async with Client("amqp://me:secret@127.0.0.1:1/"):
            pass
    assert "secret" not in str(caught.value)


async def test_the_first_broker_that_answers_is_used(broker: Endpoint, namespace: str) -> None:
    async with Client(["amqp://127.0.0.1:1/", broker.url], namespace) as client:
        assert (await client.enqueue({"stack": "busybox"})).pool == "default"


async def test_a_lost_connection_ends_every_wait(broker: Endpoint, namespace: str, worker: FakeWorker) -> None:
    async with Proxy(broker.url) as proxy, Client(proxy.url, namespace) as client, asyncio.timeout(30):
        job = await client.submit(stack="busybox")
        await worker.log(batch(job.id, 1, [("out", "so far\n")]))
        lines = job.logs()
        assert (await anext(lines)).text == "so far"
        waits = [asyncio.ensure_future(wait) for wait in (job.result(), anext(lines), anext(job.events()))]
        await proxy.cut()
        faults = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(fault) for fault in faults] == [BrokerError] * 3
        assert "connection to the broker was lost" in str(faults[0])
        with pytest.raises(BrokerError):
            await client.submit(stack="busybox")
        with pytest.raises(BrokerError):
            await client.cancel("default", job.id)


async def test_a_broker_that_stops_answering_makes_a_publish_uncertain(
    broker: Endpoint, namespace: str, worker: FakeWorker
) -> None:
    async with Proxy(broker.url) as proxy, Client(proxy.url, namespace) as client, asyncio.timeout(30):
        await client.enqueue({"stack": "busybox"})
        await worker.take()
        proxy.black_hole()
        with pytest.raises(PublishUncertain, match="did not confirm"):
            await client.enqueue({"stack": "busybox"})


async def test_closing_the_client_ends_every_wait(broker: Endpoint, namespace: str, worker: FakeWorker) -> None:
    async with Client(broker.url, namespace) as client:
        job = await client.submit(stack="busybox")
        await worker.take()
    with pytest.raises(BrokerError, match="closed"):
        await job.result()

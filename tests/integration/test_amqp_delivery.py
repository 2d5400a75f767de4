"""What messages say and what they only claim to say; how jobs wait, and where those go that are none."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from math import ceil
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from tests.integration.amqp_house import KEY, Room, Side, eventually, open_room, open_side
from tests.services import Endpoint

from runner.adapters.amqp.delivery import JobDelivery, Passport, send_later
from runner.adapters.amqp.names import DeadHeader, Header
from runner.job import Blame, DeadCode, Job, Priority, Route
from runner.ports import QueueKey

pytestmark = pytest.mark.broker

ROUTE = Route(pool="default", priority=Priority.NORMAL, tenant="acme")
NORMAL = QueueKey(pool="default", priority=Priority.NORMAL)


@pytest.fixture(scope="module")
async def place(broker: Endpoint) -> AsyncIterator[Room]:
    async with open_room(broker.url, f"t{token_hex(6)}", tenants=["named"]) as opened:
        yield opened


@pytest.fixture
async def room(place: Room) -> AsyncIterator[Room]:
    yield place
    await place.purge()


@pytest.fixture
async def side(room: Room, broker: Endpoint) -> AsyncIterator[Side]:
    async with open_side(room.names, room.queues, broker.url) as opened:
        opened.intake.want(6)
        yield opened


def passport(job_id: str = "a", route: Route = ROUTE) -> Passport:
    body = b'{"id": "%s", "stack": "busybox"}' % job_id.encode()
    return Passport(body=body, route=route, published=datetime.now(UTC))


async def ended_as(room: Room, code: DeadCode) -> str:
    """Why the next dead letter is there."""
    letter = await room.get(room.names.dead)
    assert letter.headers[DeadHeader.CODE] == code.value
    return str(letter.headers[DeadHeader.REASON])


# Who sent it


@pytest.mark.parametrize("header", ["CC", "BCC"])
@pytest.mark.parametrize(("copy", "jobs"), [("default.low.victim", ["acme"]), ("default.normal.named", [])])
async def test_a_copy_that_was_smuggled_into_another_queue_runs_as_nobody(
    room: Room, side: Side, header: str, copy: str, jobs: list[str]
) -> None:
    # Where a named tenant's queue takes the copy, the shared queues get nothing: the sender robs only itself.
    await room.submit(key="default.high.acme", headers={header: [copy]})
    tenants = []
    for _ in range(len(jobs) + 1):
        delivery = await side.take()
        if isinstance(delivery.submission, Job):
            tenants.append(delivery.submission.key.tenant)
            await delivery.drop()
            continue
        assert delivery.submission.tenant is None
        await delivery.bury(delivery.submission.code, delivery.submission.reason)
        assert "does not belong to queue" in await ended_as(room, DeadCode.REJECTED)
    assert tenants == jobs
    with pytest.raises(TimeoutError):
        await side.take(timeout=0.2)


async def test_what_says_that_it_was_dead_lettered_runs_as_nobody(room: Room, side: Side) -> None:
    await room.submit(headers={"x-death": [{"queue": "q"}]})
    delivery, invalid = await side.take_invalid()
    assert invalid.tenant is None
    await delivery.bury(invalid.code, invalid.reason)


async def test_what_did_not_come_through_our_exchange_runs_as_nobody(room: Room, side: Side) -> None:
    for exchange in ("", room.names.shared):
        key = room.names.jobs(NORMAL) if exchange == "" else KEY
        await room.submit(key=key, exchange=exchange)
        delivery, invalid = await side.take_invalid()
        assert invalid.tenant is None
        await delivery.bury(invalid.code, invalid.reason)
        side.intake.want(6)


async def test_headers_that_look_like_ours_count_for_nothing_on_a_submission(room: Room, side: Side) -> None:
    headers: dict[str, Any] = {
        Header.ATTEMPT: 7,
        Header.LOST: 9,
        Header.GIVEN_BACK: 5,
        Header.DEFERRALS: 3,
        Header.ROUTE: "default.high.victim",
        Header.PUBLISHED: 0,
        Header.NOT_BEFORE: 4_000_000_000_000,
        Header.SUBMITTED_AS: "forged",
        Header.CLAIM: "c",
        Header.WORKER: "w",
    }
    await room.submit({"stack": "busybox"}, headers=headers, message_id="mine")
    delivery, job = await side.take_job()
    assert (delivery.number, delivery.lost, delivery.deferrals, delivery.fresh) == (1, 0, 0, True)
    assert (delivery.not_before, delivery.vanished) == (None, None)
    assert (job.key.tenant, job.key.id, job.route.priority) == ("acme", "mine", Priority.NORMAL)
    assert datetime.now(UTC) - job.published < timedelta(seconds=60)
    await delivery.drop()


async def test_only_our_own_headers_travel_on(room: Room, side: Side) -> None:
    trace = "00-" + 32 * "a" + "-" + 16 * "b" + "-01"
    headers = {"CC": ["nowhere.high.acme"], "x-mine": 1, "traceparent": trace}
    await room.submit(headers=headers, reply_to="answers", correlation_id="c1", priority=9, expiration=60)
    delivery, _ = await side.take_job()
    await delivery.defer(timedelta(0))
    again = await side.take()
    assert isinstance(again, JobDelivery)
    message = again.message
    assert set(message.headers) <= {header.value for header in Header} | {"traceparent"}
    assert message.headers["traceparent"] == trace
    assert (message.reply_to, message.correlation_id) == ("answers", "c1")
    assert (message.expiration, message.priority) == (None, 0)
    await again.drop()


async def test_a_submitters_user_id_does_not_stop_what_we_publish(room: Room, side: Side) -> None:
    await room.submit({"id": "u", "stack": "busybox"}, user_id="guest")
    delivery, _ = await side.take_job()
    await (await delivery.claim("c1")).retry(timedelta(0), Blame.JOB)
    again, job = await side.take_job()
    assert (again.number, job.key.id) == (2, "u")
    await again.drop()


@pytest.mark.parametrize(
    ("key", "tenant", "reason"),
    [
        ("nowhere.high.acme", "acme", "no worker serves pool 'nowhere'"),
        ("default.urgent.acme", "acme", 'priority "urgent" is none; choose from high, normal, low'),
        ("acme", "acme", "is not <pool>.<priority>.<tenant>"),
        ("Default.high.acme", "acme", 'pool "Default" is not a word'),
        ("nowhere.high.Acme", None, "does not end in a tenant"),
    ],
)
async def test_a_job_that_no_pool_serves_is_refused_by_whoever_takes_it(
    room: Room, broker: Endpoint, key: str, tenant: str | None, reason: str
) -> None:
    async with open_side(room.names, room.queues, broker.url, unrouted=True) as side:
        await room.submit({"id": "lost", "stack": "busybox", "name": "n"}, key=key)
        delivery, invalid = await side.take_invalid()
        assert invalid.tenant == tenant
        assert reason in invalid.reason
        if tenant is not None:
            assert (invalid.code, invalid.id, invalid.name) == (DeadCode.UNROUTABLE, "lost", "n")
        await delivery.bury(invalid.code, invalid.reason)
        letter = await room.get(room.names.dead)
        assert letter.headers[DeadHeader.FROM] == key


# How often it came


async def test_a_message_that_brings_down_whoever_takes_it_is_buried_before_the_broker_does(
    room: Room, broker: Endpoint
) -> None:
    await room.submit({"id": "poison", "stack": "busybox"})
    queue = await room.channel.get_queue(room.names.jobs(NORMAL), ensure=False)
    for _ in range(15):
        found: list[Any] = []

        async def look(found: list[Any] = found) -> bool:
            message = await queue.get(fail=False)
            found.extend([message] if message is not None else [])
            return bool(found)

        await eventually(look, "it came again")
        await found[0].nack(requeue=True)
    async with open_side(room.names, room.queues, broker.url) as side:
        side.intake.want(1)
        delivery, invalid = await side.take_invalid()
        assert (invalid.code, invalid.id, invalid.tenant) == (DeadCode.DELIVERY_LIMIT, "poison", "acme")
        assert "delivered 15 times" in invalid.reason
        await delivery.bury(invalid.code, invalid.reason)
    assert "delivered 15 times" in await ended_as(room, DeadCode.DELIVERY_LIMIT)


# Waiting


def waited(delivery: JobDelivery) -> int:
    """The seconds of all levels of delay that the job passed, each once."""
    passed = [str(death["queue"]) for death in delivery.message.headers.get("x-death", [])]  # type: ignore[union-attr, index, call-overload]
    assert len(set(passed)) == len(passed)
    return sum(2 ** int(queue.rpartition(".")[2]) for queue in passed)


async def test_delayed_jobs_arrive_in_order_not_early_and_once(side: Side) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    delays = {"6": 6.0, "3": 3.0, "half": 0.5, "0": 0.0}  # so far apart that the machine may stand still between two
    for name, delay in delays.items():
        await send_later(side.desk, passport(name), timedelta(seconds=delay))
    arrived = []
    for _ in delays:
        delivery, job = await side.take_job()
        assert isinstance(delivery, JobDelivery)
        arrived.append(job.key.id)
        assert loop.time() - start >= delays[job.key.id]
        assert waited(delivery) == ceil(delays[job.key.id])
        assert not delivery.fresh
        assert delivery.not_before is not None
        await delivery.drop()
        side.intake.want(6)
    assert [job_id for job_id in arrived if job_id != "half"] == ["0", "3", "6"]
    with pytest.raises(TimeoutError):
        await side.take(timeout=0.5)


async def test_a_named_tenants_delayed_job_arrives_once_in_its_own_queue(room: Room, broker: Endpoint) -> None:
    route = Route(pool="default", priority=Priority.LOW, tenant="named")
    async with open_side(room.names, room.queues, broker.url) as side:
        for seconds in (0, 1):
            await send_later(side.desk, passport(f"s{seconds}", route), timedelta(seconds=seconds))
    own = room.names.jobs(QueueKey(pool="default", priority=Priority.LOW, tenant="named"))
    await room.holds(own, 2)
    assert await room.depth(room.names.jobs(QueueKey(pool="default", priority=Priority.LOW))) == 0


async def test_delayed_jobs_that_nobody_takes_stand_in_nobodys_way(room: Room, side: Side) -> None:
    """A source of at-least-once dead letters stands still for ever when 32 of them find no way."""
    nowhere = Route(pool="nowhere", priority=Priority.HIGH, tenant="acme")
    async with asyncio.TaskGroup() as tasks:
        for number in range(41):
            tasks.create_task(send_later(side.desk, passport(f"n{number}", nowhere), timedelta(seconds=1)))
    await send_later(side.desk, passport("good"), timedelta(seconds=1))
    delivery, job = await side.take_job()
    assert job.key.id == "good"
    await delivery.drop()
    await room.holds(room.names.dead, 41)


async def test_a_job_that_is_delayed_twice_is_not_taken_for_a_loop(room: Room, side: Side) -> None:
    """Older brokers drop a message without a word that was in the same queue before, by what it says of its past."""
    await room.submit({"id": "again", "stack": "busybox"})
    for deferrals in range(3):
        side.intake.want(6)
        delivery, job = await side.take_job()
        assert (job.key.id, delivery.deferrals) == ("again", deferrals)
        await delivery.defer(timedelta(seconds=1))
    side.intake.want(6)
    delivery, _ = await side.take_job()
    await delivery.drop()


async def test_what_was_expected_to_expire_in_a_queue_does_not_take_our_jobs_along(room: Room, side: Side) -> None:
    await room.submit({"id": "brief", "stack": "busybox"}, expiration=30)
    delivery, _ = await side.take_job()
    lease = await delivery.claim("c1")
    await lease.retry(timedelta(seconds=1), Blame.JOB)
    side.intake.want(6)
    again, job = await side.take_job()
    assert (job.key.id, again.number) == ("brief", 2)
    await again.drop()


async def test_a_job_keeps_the_time_of_its_publication(room: Room, side: Side) -> None:
    published = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    await room.submit({"id": "old", "stack": "busybox"}, timestamp=published)
    for _ in range(3):
        side.intake.want(6)
        delivery, job = await side.take_job()
        assert job.published == published
        await delivery.defer(timedelta(0))
    await (await side.take()).drop()


async def test_a_dead_letter_is_the_message_itself(room: Room, side: Side) -> None:
    body = b"\x00\xff not JSON"
    await room.submit(body, content_type="text/plain")
    delivery, invalid = await side.take_invalid()
    await delivery.bury(invalid.code, "x" * 9000)
    letter = await room.get(room.names.dead)
    assert (letter.body, letter.content_type) == (body, "text/plain")
    assert (letter.headers[DeadHeader.CODE], letter.headers[DeadHeader.FROM]) == ("undecodable", KEY)
    assert len(str(letter.headers[DeadHeader.REASON])) == 4000
    assert letter.delivery_mode == aio_pika.DeliveryMode.PERSISTENT

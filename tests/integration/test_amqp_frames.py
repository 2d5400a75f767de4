"""Messages that the client library cannot decode are delivered and refused, and nothing breaks."""

import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from secrets import token_hex

import pytest
from tests.integration.amqp_house import KEY, Room, Side, open_room, open_side
from tests.raw_amqp import RawPublisher, short, table
from tests.services import Endpoint

from runner.job import DeadCode, Invalid, Job

pytestmark = pytest.mark.broker

BODY = b'{"id": "odd", "stack": "busybox"}'
MICROSECONDS = struct.pack(">Q", 1_767_225_600_000_000)
LAST = struct.pack(">Q", 2**64 - 1)


@pytest.fixture(scope="module")
async def place(broker: Endpoint) -> AsyncIterator[Room]:
    async with open_room(broker.url, f"t{token_hex(6)}") as opened:
        yield opened


@pytest.fixture
async def raw(broker: Endpoint) -> AsyncIterator[RawPublisher]:
    async with RawPublisher(broker.url) as publisher:
        yield publisher


@pytest.fixture
async def room(place: Room) -> AsyncIterator[Room]:
    yield place
    await place.purge()


@pytest.fixture
async def side(room: Room, broker: Endpoint) -> AsyncIterator[Side]:
    async with open_side(room.names, room.queues, broker.url) as opened:
        opened.intake.want(3)
        yield opened
        assert opened.counts.connections == 2, "a connection was lost"


@pytest.mark.parametrize(
    "properties",
    [
        {"timestamp": MICROSECONDS},
        {"timestamp": LAST},
        {"timestamp": struct.pack(">Q", 2**63)},
        {"message_id": short(b"\xff\xfe")},
        {"correlation_id": short(b"\xc3")},
        {"content_type": short(b"\xff")},
        {"type": short(b"\xff"), "app_id": short(b"\xfe")},
        {"headers": table(short(b"\xff\xfe") + b"S" + struct.pack(">I", 1) + b"x")},
        {"headers": table(short(b"a") + b"S" + struct.pack(">I", 2) + b"\xff\xfe")},
        {"headers": table(short(b"a") + b"T" + MICROSECONDS)},
        {"headers": table(short(b"a") + b"T" + LAST)},
        {"headers": table(short(b"a") + b"F" + table(short(b"\xff") + b"T" + LAST))},
        {"headers": table(short(b"a") + b"x" + struct.pack(">I", 2) + b"\xff\xfe")},
        {"headers": table(short(b"a") + b"A" + table(b"T" + LAST, b"V"))},
        {"headers": table(short(b"a") + b"D\x09" + struct.pack(">i", -1))},
        {"headers": table(short(b"") + b"t\x02")},
        {"headers": table(*(short(b"k%d" % number) + b"V" for number in range(500)))},
    ],
)
async def test_a_job_with_odd_properties_comes(
    room: Room, side: Side, raw: RawPublisher, properties: dict[str, bytes]
) -> None:
    before = datetime.now(UTC)
    await raw.publish(room.names.submit, KEY.encode(), BODY, **properties)
    delivery = await side.take()
    job = delivery.submission
    assert isinstance(job, Job)
    assert job.key.id == "odd"
    assert before <= job.published <= datetime.now(UTC)
    await delivery.defer(timedelta(0))
    again = await side.take()
    assert isinstance(again.submission, Job)
    await again.bury(DeadCode.REJECTED, "odd")
    letter = await room.get(room.names.dead)
    assert letter.body == BODY


@pytest.mark.parametrize(
    ("reply_to", "accepted"),
    [(b"\xff" * 200, True), (b"\xff" * 201, False), (b"\xc3\xa9" * 100, True)],
    ids=["no text", "no text and too long", "text"],
)
async def test_a_reply_to_that_is_no_text_is_measured_as_it_will_be_sent(
    room: Room, side: Side, raw: RawPublisher, reply_to: bytes, *, accepted: bool
) -> None:
    await raw.publish(room.names.submit, KEY.encode(), BODY, reply_to=short(reply_to))
    delivery = await side.take()
    assert isinstance(delivery.submission, Job if accepted else Invalid)
    await delivery.bury(DeadCode.REJECTED, "odd")


@pytest.mark.parametrize("key", [b"default.normal.\xff", b"default.normal." + b"x" * 240])
async def test_a_routing_key_that_is_no_text_belongs_to_nobody(
    room: Room, side: Side, raw: RawPublisher, key: bytes
) -> None:
    await raw.publish(room.names.submit, key, BODY)
    delivery, invalid = await side.take_invalid()
    assert invalid.tenant is None
    await delivery.bury(invalid.code, invalid.reason)
    letter = await room.get(room.names.dead)
    assert letter.body == BODY


async def test_an_id_that_is_no_text_is_replaced(room: Room, side: Side, raw: RawPublisher) -> None:
    await raw.publish(room.names.submit, KEY.encode(), b'{"stack": "busybox"}', message_id=short(b"\xff\xfe"))
    delivery, job = await side.take_job()
    assert len(job.key.id) == 32
    await delivery.drop()


async def test_odd_jobs_among_good_ones(room: Room, side: Side, raw: RawPublisher) -> None:
    for number in range(10):
        body = b'{"id": "j%d", "stack": "busybox"}' % number
        properties = {"timestamp": LAST, "message_id": short(b"\xff")} if number % 2 else {}
        await raw.publish(room.names.submit, KEY.encode(), body, **properties)
    for number in range(10):
        side.intake.want(3)
        delivery, job = await side.take_job()
        assert job.key.id == f"j{number}"
        await delivery.drop()

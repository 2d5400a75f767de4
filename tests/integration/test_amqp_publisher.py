"""Confirmed, refused, or nobody knows: what a publish comes to, whatever happens on the way."""

import asyncio
from collections.abc import AsyncIterator
from secrets import token_hex

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from tests.integration.amqp_house import eventually, open_publisher
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp.publisher import Publisher, Unroutable
from runner.codec import new_id
from runner.errors import BrokerError, PublishUncertain

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
async def connection(broker: Endpoint) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(broker.url) as opened:
        yield opened


@pytest.fixture
async def channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    async with await connection.channel() as opened:
        yield opened


@pytest.fixture
async def queue(channel: AbstractChannel) -> AsyncIterator[str]:
    """A queue with room for one message; it refuses the second."""
    name = f"t{token_hex(6)}"
    await channel.declare_queue(name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, durable=True)
    yield name
    await channel.queue_delete(name)


@pytest.fixture
async def roomy(channel: AbstractChannel) -> AsyncIterator[str]:
    """A queue for as many as come."""
    name = f"t{token_hex(6)}"
    await channel.declare_queue(name, durable=True)
    yield name
    await channel.queue_delete(name)


@pytest.fixture
async def wire(broker: Endpoint) -> AsyncIterator[Proxy]:
    async with Proxy(broker.url) as proxy:
        yield proxy


@pytest.fixture
async def publisher(wire: Proxy) -> AsyncIterator[Publisher]:
    async with open_publisher(wire.url) as (opened, _):
        yield opened


def message(body: bytes = b"x") -> aio_pika.Message:
    return aio_pika.Message(body, message_id=new_id(), delivery_mode=2)


async def depth(channel: AbstractChannel, name: str) -> int:
    declared = await channel.declare_queue(name, passive=True)
    return declared.declaration_result.message_count or 0


async def test_a_confirmed_message_is_there(publisher: Publisher, channel: AbstractChannel, queue: str) -> None:
    await publisher.publish("", queue, message(), mandatory=True)
    assert await depth(channel, queue) == 1


async def test_a_message_that_no_queue_takes(publisher: Publisher) -> None:
    with pytest.raises(Unroutable, match="nowhere"):
        await publisher.publish("amq.topic", "nowhere", message(), mandatory=True)
    await publisher.publish("amq.topic", "nowhere", message(), mandatory=False)


async def test_a_message_that_the_queue_refuses(publisher: Publisher, queue: str) -> None:
    await publisher.publish("", queue, message(), mandatory=True)
    with pytest.raises(BrokerError) as caught:
        await publisher.publish("", queue, message(), mandatory=True)
    assert not isinstance(caught.value, PublishUncertain | Unroutable)


async def test_an_exchange_that_does_not_exist(publisher: Publisher, roomy: str) -> None:
    with pytest.raises(BrokerError):
        await publisher.publish(f"no-{roomy}", "x", message(), mandatory=True)
    await asyncio.wait_for(publisher.publish_surely("", roomy, message(), mandatory=True), 30)


async def test_each_of_many_at_once_gets_its_own_answer(
    publisher: Publisher, channel: AbstractChannel, roomy: str
) -> None:
    async def publish(number: int) -> bool:
        try:
            await publisher.publish("", roomy if number % 3 else "nowhere", message(), mandatory=True)
        except Unroutable:
            return False
        return True

    answers = await asyncio.gather(*map(publish, range(200)))
    assert answers == [number % 3 != 0 for number in range(200)]
    assert await depth(channel, roomy) == sum(answers)


async def test_a_connection_that_breaks_leaves_the_matter_open(publisher: Publisher, wire: Proxy, roomy: str) -> None:
    wire.black_hole(to_service=False)
    publishing = asyncio.create_task(publisher.publish("", roomy, message(), mandatory=True))
    await asyncio.sleep(0.1)
    assert not publishing.done()
    await wire.cut()
    with pytest.raises(PublishUncertain):
        await asyncio.wait_for(publishing, 30)


async def test_an_answer_that_does_not_come_leaves_the_matter_open(
    publisher: Publisher, wire: Proxy, roomy: str
) -> None:
    wire.black_hole(to_service=False)
    with pytest.raises(PublishUncertain):
        await publisher.publish("", roomy, message(), mandatory=True, timeout=0.1)


async def test_without_a_connection_it_is_told_at_once(publisher: Publisher, wire: Proxy, roomy: str) -> None:
    await wire.refuse()
    await eventually(lambda: not publisher._open.is_set(), "the publisher is closed")
    with pytest.raises(PublishUncertain):
        # An answer that does not come would be waited for for 10 s.
        await asyncio.wait_for(publisher.publish("", roomy, message(), mandatory=True), 5)


async def test_a_publisher_that_was_never_connected_is_not_sure_either(roomy: str) -> None:
    with pytest.raises(PublishUncertain):
        await Publisher().publish("", roomy, message(), mandatory=True)


async def test_a_link_that_is_closed_leaves_the_matter_open(wire: Proxy, roomy: str) -> None:
    async with open_publisher(wire.url) as (publisher, _):
        wire.black_hole(to_service=False)
        publishing = asyncio.create_task(publisher.publish("", roomy, message(), mandatory=True))
        await asyncio.sleep(0.1)
    with pytest.raises(PublishUncertain):
        await asyncio.wait_for(publishing, 30)


async def test_our_own_cancellation_stays_one(publisher: Publisher, wire: Proxy, roomy: str) -> None:
    wire.black_hole(to_service=False)
    publishing = asyncio.create_task(publisher.publish("", roomy, message(), mandatory=True))
    await asyncio.sleep(0.05)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(publishing, 30)


async def test_what_has_to_arrive_arrives_after_a_cut(
    publisher: Publisher, wire: Proxy, channel: AbstractChannel, roomy: str
) -> None:
    wire.black_hole()
    surely = [
        asyncio.create_task(publisher.publish_surely("", roomy, message(b"%d" % number), mandatory=True))
        for number in range(20)
    ]
    await asyncio.sleep(0.1)
    await wire.refuse()
    wire.heal()
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in surely)
    await wire.accept()
    async with asyncio.timeout(30):
        await asyncio.gather(*surely)
    queue = await channel.get_queue(roomy, ensure=False)
    got = set()
    while (found := await queue.get(no_ack=True, fail=False)) is not None:
        got.add(int(found.body))
    assert got == set(range(20))


async def test_what_is_refused_is_published_again_until_it_is_taken(
    publisher: Publisher, channel: AbstractChannel, queue: str
) -> None:
    await publisher.publish("", queue, message(b"first"), mandatory=True)
    second = asyncio.create_task(publisher.publish_surely("", queue, message(b"second"), mandatory=True))
    await asyncio.sleep(0.3)
    assert not second.done()
    source = await channel.get_queue(queue, ensure=False)
    assert (await source.get(no_ack=True)).body == b"first"
    await asyncio.wait_for(second, 30)
    assert (await source.get(no_ack=True)).body == b"second"


async def test_what_nobody_takes_waits_for_somebody_who_does(publisher: Publisher, channel: AbstractChannel) -> None:
    name = f"t{token_hex(6)}"
    surely = asyncio.create_task(publisher.publish_surely("", name, message(), mandatory=True))
    await asyncio.sleep(0.3)
    assert not surely.done()
    await channel.declare_queue(name, durable=True)
    await asyncio.wait_for(surely, 30)
    await channel.queue_delete(name)

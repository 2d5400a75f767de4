"""A link comes back from everything, and says meanwhile what is wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from tests.integration.amqp_house import Counts, eventually, link, up
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp import link as link_module
from runner.adapters.amqp import namelock
from runner.adapters.amqp.link import Link, until_closed
from runner.adapters.amqp.namelock import NameLock
from runner.adapters.amqp.names import Names
from runner.errors import ConfigError

pytestmark = pytest.mark.broker

QUICK, CALM = timedelta(seconds=1), timedelta(seconds=10)
"""Heartbeats: so that silence is noticed soon, and so that none is noticed where there is none."""


class Ear:
    """A user of a link: listens to a queue, and counts its sessions."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.sessions = 0
        self.channel: AbstractChannel | None = None
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def use(self, connection: AbstractConnection) -> None:
        self.channel = channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(self.queue, durable=True)
        await queue.consume(self._hear)
        self.sessions += 1
        await until_closed(channel)

    async def _hear(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.heard.put_nowait(message.body)
        await message.ack()

    async def says(self, body: bytes) -> None:
        async with asyncio.timeout(20):
            while await self.heard.get() != body:
                continue


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PAUSE_LONGEST", 1.0)


@pytest.fixture(scope="module")
async def connection(broker: Endpoint) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(broker.url) as opened:
        yield opened


@pytest.fixture
async def channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    async with await connection.channel() as opened:
        yield opened


@pytest.fixture
async def ear(channel: AbstractChannel, namespace: str) -> AsyncIterator[Ear]:
    yield Ear(namespace)
    await channel.queue_delete(namespace)


@pytest.fixture
async def wire(broker: Endpoint) -> AsyncIterator[Proxy]:
    async with Proxy(broker.url) as proxy:
        yield proxy


@asynccontextmanager
async def linked(url: str | list[str], ear: Ear, heartbeat: timedelta = CALM) -> AsyncIterator[Link]:
    carrier = link(url, ear.use, counts=Counts(), heartbeat=heartbeat)
    async with up(carrier):
        await eventually(lambda: ear.sessions >= 1, "somebody listens")
        yield carrier


async def hears(ear: Ear, channel: AbstractChannel, body: bytes = b"hello") -> None:
    """What is said reaches the ear, now or when it is back."""
    await channel.default_exchange.publish(aio_pika.Message(body), ear.queue)
    await ear.says(body)


async def listens(ear: Ear, sessions: int) -> None:
    """It may hear something before it knows that its session has begun."""
    await eventually(lambda: ear.sessions >= sessions, "it listens")


async def test_a_cut_is_mended_again_and_again(ear: Ear, wire: Proxy, channel: AbstractChannel) -> None:
    async with linked(wire.url, ear) as carrier:
        for number in range(4):
            await wire.cut()
            await hears(ear, channel, b"%d" % number)
            await listens(ear, number + 2)
        assert carrier.up
        assert carrier.fault is None
        assert ear.sessions == 5


async def test_a_broker_that_is_away_is_waited_for(ear: Ear, wire: Proxy, channel: AbstractChannel) -> None:
    async with linked(wire.url, ear) as carrier:
        await wire.refuse()
        await eventually(lambda: carrier.fault and not carrier.up, "the loss is known")
        await asyncio.sleep(0.5)
        assert not carrier.up
        await wire.accept()
        await hears(ear, channel)
        assert carrier.fault is None


async def test_a_broker_that_says_nothing_is_noticed(
    ear: Ear, wire: Proxy, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_PROBE_TIMEOUT", 0.5)
    monkeypatch.setattr(link_module, "_CONNECT_TIMEOUT", 2.0)
    async with linked(wire.url, ear, QUICK) as carrier:
        wire.black_hole()
        await eventually(lambda: not carrier.up, "the silence is known")
        await asyncio.sleep(1)
        assert not carrier.up, "one that takes connections and says nothing is not there"
        wire.heal()
        await hears(ear, channel)


@pytest.mark.parametrize("to_service", [True, False])
async def test_one_way_is_not_enough(
    ear: Ear, wire: Proxy, monkeypatch: pytest.MonkeyPatch, *, to_service: bool
) -> None:
    monkeypatch.setattr(link_module, "_PROBE_TIMEOUT", 0.5)
    async with linked(wire.url, ear, QUICK) as carrier:
        wire.black_hole(to_service=to_service, to_client=not to_service)
        await eventually(lambda: not carrier.up, "the silence is known")
        wire.heal()
        await eventually(lambda: carrier.up, "it is mended")


async def test_a_wrong_password_is_told_and_tried_again(ear: Ear, broker: Endpoint) -> None:
    parts = urlsplit(broker.url)
    wrong = f"amqp://guest:wrong@{parts.hostname}:{parts.port}/"
    carrier = link(wrong, ear.use)
    running = asyncio.create_task(carrier.run())
    await eventually(lambda: carrier.fault, "the fault is known")
    assert "ACCESS_REFUSED" in str(carrier.fault)
    assert "wrong" not in str(carrier.fault)
    carrier.urls = [broker.url]
    await eventually(lambda: carrier.up, "with the right password it goes on")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_next_host_is_tried_when_one_does_not_answer(ear: Ear, broker: Endpoint, wire: Proxy) -> None:
    await wire.refuse()
    async with linked([wire.url, broker.url], ear) as carrier:
        assert carrier.up
        assert wire.connections == 0


async def test_the_next_host_is_tried_when_one_goes_away(
    ear: Ear, broker: Endpoint, wire: Proxy, channel: AbstractChannel
) -> None:
    async with linked([wire.url, broker.url], ear):
        assert wire.connections == 1
        await wire.refuse()
        await hears(ear, channel)
        await eventually(lambda: wire.connections == 0, "the other host is used")


async def test_a_fault_on_a_channel_is_mended(ear: Ear, wire: Proxy, channel: AbstractChannel) -> None:
    async with linked(wire.url, ear):
        assert ear.channel is not None
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await ear.channel.declare_queue(f"no-{ear.queue}", passive=True)
        await hears(ear, channel)
        await listens(ear, 2)
        assert ear.sessions == 2


async def test_a_queue_that_is_deleted_and_made_again_is_listened_to(
    ear: Ear, wire: Proxy, channel: AbstractChannel
) -> None:
    async with linked(wire.url, ear):
        await channel.queue_delete(ear.queue)
        await listens(ear, 2)
        await hears(ear, channel)


async def test_a_user_that_fails_ends_the_session_for_all_and_they_come_back_together(
    ear: Ear, broker: Endpoint, channel: AbstractChannel
) -> None:
    fails = asyncio.Event()

    async def user(_: AbstractConnection) -> None:
        await fails.wait()
        fails.clear()
        raise OSError("out of order")

    counts = Counts()
    carrier = link(broker.url, ear.use, user, counts=counts)
    async with up(carrier):
        await eventually(lambda: ear.sessions == 1, "somebody listens")
        fails.set()
        await eventually(lambda: ear.sessions == 2, "both are back")
        await hears(ear, channel)
        assert counts.connections == 2


async def test_a_link_that_is_ended_leaves_no_connection(ear: Ear, wire: Proxy) -> None:
    for _ in range(5):
        async with linked(wire.url, ear):
            assert wire.connections == 1
        await eventually(lambda: wire.connections == 0, "the connection is closed")


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 10, 20, 40, 80])
async def test_a_link_can_be_ended_at_any_moment(ear: Ear, wire: Proxy, steps: int) -> None:
    running = asyncio.create_task(link(wire.url, ear.use).run())
    for _ in range(steps):
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 30)
    await eventually(lambda: wire.connections == 0, "the connection is closed")


# Two daemons of one name


async def test_a_name_can_be_taken_by_one_daemon_only(
    broker: Endpoint, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namelock, "_PATIENCE", 0.3)
    monkeypatch.setattr(namelock, "_AGAIN", 0.1)
    lock = NameLock(names=Names(namespace), worker="w1")

    async def stay(_: AbstractConnection) -> None:
        await asyncio.Event().wait()

    async with up(link(broker.url, stay, enter=lock.take)):
        with pytest.raises(ConfigError, match=r"^worker\.name: another worker is called w1"):
            await asyncio.wait_for(link(broker.url, stay, enter=lock.take).run(), 60)
        monkeypatch.setattr(namelock, "_PATIENCE", 60.0)  # a connection may take a while to go
        other = NameLock(names=Names(namespace), worker="w2")
        async with up(link(broker.url, stay, enter=other.take)):
            pass
    async with up(link(broker.url, stay, enter=lock.take)):
        pass


async def test_a_name_is_waited_for(broker: Endpoint, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namelock, "_AGAIN", 0.1)
    lock = NameLock(names=Names(namespace), worker="w1")

    async def stay(_: AbstractConnection) -> None:
        await asyncio.Event().wait()

    second = link(broker.url, stay, enter=lock.take)
    async with up(link(broker.url, stay, enter=lock.take)):
        waiting = asyncio.create_task(second.run())
        await asyncio.sleep(0.5)
        assert not second.up
    await eventually(lambda: second.up, "the name is free")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_the_daemon_itself_comes_back_under_its_name(wire: Proxy, namespace: str) -> None:
    lock = NameLock(names=Names(namespace), worker="w1")

    async def stay(_: AbstractConnection) -> None:
        await asyncio.Event().wait()

    counts = Counts()
    async with up(link(wire.url, stay, enter=lock.take, counts=counts)):
        await wire.cut()
        await eventually(lambda: counts.connections == 2, "it is back")

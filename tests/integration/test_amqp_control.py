"""Commands reach the worker that they are for, and nothing that is sent there stops it from listening."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from tests.integration.amqp_house import Room, eventually, link, open_publisher, open_room, up
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp.control import Control, cancel_reason
from runner.job import JobKey, Json

pytestmark = pytest.mark.broker


class Ear:
    """A worker that hears."""

    def __init__(self) -> None:
        self.obeyed: list[str] = []
        self.cancelled: list[tuple[str, str]] = []

    def command(self, name: str) -> Callable[[], Any]:
        async def obey() -> Json:
            self.obeyed.append(name)
            return {"obeyed": name}

        return obey

    def cancel(self, key: JobKey, reason: str) -> None:
        self.cancelled.append((str(key), reason))


@pytest.fixture(scope="module")
async def place(broker: Endpoint) -> AsyncIterator[Room]:
    async with open_room(broker.url, f"t{token_hex(6)}") as opened:
        yield opened


@pytest.fixture
async def room(place: Room) -> AsyncIterator[Room]:
    yield place
    await place.purge()


@pytest.fixture
async def wire(broker: Endpoint) -> AsyncIterator[Proxy]:
    async with Proxy(broker.url) as proxy:
        yield proxy


@pytest.fixture
async def ear(room: Room, broker: Endpoint, wire: Proxy) -> AsyncIterator[Ear]:
    ear = Ear()
    async with open_publisher(broker.url) as (publisher, _):
        control = Control(
            names=room.names,
            worker="w1",
            publisher=publisher,
            commands={name: ear.command(name) for name in ("ping", "pause", "resume", "drain")},
            cancel=ear.cancel,
        )
        async with up(link(wire.url, control.use)):
            queue = room.names.worker_control("w1")

            async def listening() -> bool:
                async with room.connection.channel() as channel:
                    try:
                        found = await channel.declare_queue(queue, passive=True)
                    except aio_pika.exceptions.ChannelNotFoundEntity:
                        return False
                    return found.declaration_result.consumer_count == 1

            await eventually(listening, "the worker listens")
            yield ear


async def say(room: Room, key: str, body: bytes = b"{}", **more: Any) -> None:
    exchange = await room.channel.get_exchange(room.names.control, ensure=False)
    await exchange.publish(aio_pika.Message(body, **more), key, mandatory=False)


async def hears(room: Room, ear: Ear) -> None:
    """Whatever came before was no reason to stop listening."""
    before = len(ear.obeyed)
    await say(room, "all.ping")
    await eventually(lambda: len(ear.obeyed) > before, "it hears")
    assert ear.obeyed[before:] == ["ping"]


@pytest.mark.parametrize("command", ["ping", "pause", "resume", "drain"])
@pytest.mark.parametrize("whom", ["all", "worker.w1"])
async def test_a_command_is_obeyed(room: Room, ear: Ear, whom: str, command: str) -> None:
    await say(room, f"{whom}.{command}")
    await eventually(lambda: ear.obeyed == [command], "it was obeyed")


async def test_a_command_is_answered_where_the_asker_listens(room: Room, ear: Ear) -> None:
    assert ear.obeyed == []
    answers: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    channel = await room.connection.channel()
    direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await direct.consume(answers.put, no_ack=True)
    exchange = await channel.get_exchange(room.names.control, ensure=False)
    question = aio_pika.Message(b"", reply_to="amq.rabbitmq.reply-to", correlation_id="q1")
    await exchange.publish(question, "worker.w1.ping")
    named = await room.collect(room.names.reply, "all.my-answers")
    await say(room, "all.ping", reply_to="my-answers", correlation_id="q2")
    async with asyncio.timeout(30):
        first, second = await answers.get(), await named.get()
    assert (json.loads(first.body), first.correlation_id) == ({"obeyed": "ping"}, "q1")
    assert (json.loads(second.body), second.correlation_id) == ({"obeyed": "ping"}, "q2")
    await channel.close()


async def test_a_job_is_cancelled_with_its_reason(room: Room, ear: Ear) -> None:
    await say(room, "job.acme.j-1.cancel", '{"reason": "wrong file: é"}'.encode())
    await eventually(lambda: ear.cancelled, "it was heard")
    assert ear.cancelled == [("acme/j-1", "wrong file: é")]


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("all.explode", b"{}"),
        ("worker.w1.explode", b"{}"),
        ("worker.w1.", b"{}"),
        ("all.", b"{}"),
        ("job.acme.a b.cancel", b"{}"),
        ("job.ACME.j1.cancel", b"{}"),
        ("job..j1.cancel", b"{}"),
        ("job.acme." + 65 * "x" + ".cancel", b"{}"),
    ],
)
async def test_what_makes_no_sense_is_ignored(room: Room, ear: Ear, key: str, body: bytes) -> None:
    await say(room, key, body)
    await hears(room, ear)
    assert ear.cancelled == []


@pytest.mark.parametrize(
    "key", ["worker.w2.drain", "job.acme.j1.find", "job.acme.j1.x.cancel", "drain", "everybody.drain"]
)
async def test_what_is_for_others_is_not_obeyed(room: Room, ear: Ear, key: str) -> None:
    await say(room, key)
    await hears(room, ear)


async def test_a_copy_of_a_tenants_command_commands_nobody_else(room: Room, ear: Ear) -> None:
    await say(room, "job.acme.j1.cancel", headers={"CC": ["all.drain", "job.victim.j1.cancel"]})
    await say(room, "job.acme.j1.find", headers={"BCC": ["worker.w1.drain"]})
    await hears(room, ear)
    assert ear.cancelled == [("acme/j1", "")]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"\xff\xfe", b'{"reason": 7}', b"[" * 100_000, b'{"reason": "\\ud800"}']
)
async def test_a_cancel_counts_whatever_its_body_says(room: Room, ear: Ear, body: bytes) -> None:
    await say(room, "job.acme.j1.cancel", body)
    await hears(room, ear)
    [(key, reason)] = ear.cancelled
    assert key == "acme/j1"
    assert reason in ("", "?")


async def test_commands_are_heard_after_a_cut(room: Room, ear: Ear, wire: Proxy) -> None:
    await wire.refuse()
    await say(room, "job.acme.j1.cancel")
    await wire.accept()
    await eventually(lambda: ("acme/j1", "") in ear.cancelled, "what was said meanwhile is heard")
    await hears(room, ear)


async def test_many_senseless_commands_do_not_stop_it(room: Room, ear: Ear) -> None:
    for _ in range(150):
        await say(room, "job.acme.j1.cancel", b"[" * 5000)
    await hears(room, ear)


def test_a_reason_is_cut_to_a_kibibyte_of_whole_characters() -> None:
    reason = cancel_reason(json.dumps({"reason": "é" * 1000}, ensure_ascii=False).encode())
    assert reason == "é" * 512
    assert cancel_reason(b'{"reason": "' + b"x" * 1023 + "é".encode() + b'"}') == "x" * 1023

"""The topology in a real broker: made, found, and told apart from what is not it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import aio_pika
import aiormq
import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractConnection
from tests.integration.amqp_house import clear, open_room
from tests.services import Endpoint

from runner.adapters.amqp import topology
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.topology import Exchange, Queue, Topology, describe_topology, job_queues
from runner.errors import ConfigError

pytestmark = pytest.mark.broker

WORDS = describe_topology(Names("NS"), job_queues(["default"], ["named"]), "7D")
SAMPLE_QUEUES = [
    "NS.dead",
    "NS.q.default.high",
    "NS.q.default.low.named",
    "NS.unrouted",
    "NS.lost",
    "NS.delay.00",
    "NS.delay.19",
    "NS.cancelled",
    "NS.history",
]
SAMPLE_EXCHANGES = ["NS", "NS.shared", "NS.dead", "NS.delay.out", "NS.delay.shared", "NS.delay.07", "NS.events"]


@pytest.fixture
async def connection(broker: Endpoint) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(broker.url) as opened:
        yield opened


@dataclass(slots=True)
class Place:
    """Parts of the topology, one at a time; what was asked for is removed at the end."""

    namespace: str
    parts: list[Queue | Exchange] = field(default_factory=list)

    def queue(self, name: str) -> Queue:
        found = next(queue for queue in WORDS.queues if queue.name == name)
        arguments = {key: self._here(value) for key, value in found.arguments.items()}
        self.parts.append(Queue(name=self._here(name), arguments=arguments))
        return Queue(name=self._here(name), arguments=arguments)

    def exchange(self, name: str) -> Exchange:
        found = next(exchange for exchange in WORDS.exchanges if exchange.name == name)
        alternate = self._here(found.alternate) if found.alternate else None
        self.parts.append(found := replace(found, name=self._here(name), alternate=alternate))
        return found

    def _here(self, value: Any) -> Any:
        return self.namespace + value.removeprefix("NS") if str(value).startswith("NS") else value


@pytest.fixture
async def place(connection: AbstractConnection, namespace: str) -> AsyncIterator[Place]:
    made = Place(namespace)
    yield made
    channel = await connection.channel()
    for each in made.parts:
        await (channel.queue_delete(each.name) if isinstance(each, Queue) else channel.exchange_delete(each.name))


@pytest.fixture
async def wanted(connection: AbstractConnection, namespace: str) -> AsyncIterator[Topology]:
    names = Names(namespace)
    described = describe_topology(names, job_queues(["default"], ["named"])[:2], "7D")
    yield described
    await clear(connection, names, described, "w1")


def changed(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments with one of them different, or gone where a different one would not be valid."""
    other = {
        "x-queue-type": "classic",
        "x-delivery-limit": 7,
        "x-dead-letter-exchange": "amq.fanout",
        "x-overflow": "drop-head" if arguments.get("x-overflow") == "reject-publish" else "reject-publish",
        "x-message-ttl": 12_345,
        "x-max-length-bytes": 12_345_678,
        "x-max-age": "1h",
        "x-stream-max-segment-size-bytes": 20_000_000,
        "x-dead-letter-strategy": "at-most-once",
        "x-single-active-consumer": False,
    }[name]
    only_stream = name == "x-queue-type" and arguments[name] == "stream"
    kept = (
        {}
        if only_stream
        else {key: value for key, value in arguments.items() if other != "classic" or key[:3] != "x-d"}
    )
    return {**kept, name: other}


CHANGES = [
    (queue.name, argument)
    for queue in WORDS.queues
    if queue.name in SAMPLE_QUEUES
    for argument in queue.arguments
    if argument not in ("x-max-age", "x-stream-max-segment-size-bytes")
    and (queue.name, argument) != ("NS.cancelled", "x-max-length-bytes")
]


async def declare(connection: AbstractConnection, queue: Queue) -> None:
    channel = await connection.channel()
    await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    await channel.close()


async def test_applying_twice_is_like_once(connection: AbstractConnection, wanted: Topology) -> None:
    await topology.apply(connection, wanted)
    await topology.apply(connection, wanted)
    findings = await topology.check(connection, wanted)
    assert (findings.missing, findings.different) == ([], [])


async def test_checking_finds_all_that_is_missing_and_makes_nothing(
    connection: AbstractConnection, wanted: Topology
) -> None:
    for _ in range(2):
        findings = await topology.check(connection, wanted)
        assert len(findings.missing) == len(wanted.exchanges) + len(wanted.queues)
        assert findings.different == []
    await topology.apply(connection, wanted)
    channel = await connection.channel()
    await channel.queue_delete(wanted.queues[1].name)
    assert (await topology.check(connection, wanted)).missing == [
        f"queue {wanted.queues[1].name} is missing; run: runner topology apply"
    ]


@pytest.mark.parametrize(("name", "argument"), CHANGES)
async def test_a_queue_that_is_not_quite_it_is_a_fault_that_names_it(
    connection: AbstractConnection, place: Place, name: str, argument: str
) -> None:
    queue = place.queue(name)
    alone = Topology(exchanges=[], queues=[queue], bindings=[])
    await declare(connection, replace(queue, arguments=changed(queue.arguments, argument)))
    with pytest.raises(ConfigError) as caught:
        await topology.apply(connection, alone)
    [fault] = caught.value.faults
    assert fault.startswith(f"queue {queue.name} stands with other arguments than this version needs")
    assert argument in fault or "type" in fault
    assert (await topology.check(connection, alone)).different == [fault]


@pytest.mark.parametrize("name", SAMPLE_EXCHANGES)
@pytest.mark.parametrize("argument", ["type", "alternate-exchange"])
async def test_an_exchange_that_is_not_quite_it_is_a_fault_that_names_it(
    connection: AbstractConnection, place: Place, name: str, argument: str
) -> None:
    exchange = place.exchange(name)
    other: dict[str, Any] = {"alternate-exchange": "amq.fanout"} if argument != "type" else exchange.arguments
    kind = exchange.type if argument != "type" else ExchangeType.HEADERS
    channel = await connection.channel()
    await channel.declare_exchange(exchange.name, kind, durable=True, arguments=other)
    with pytest.raises(ConfigError) as caught:
        await topology.apply(connection, Topology(exchanges=[exchange], queues=[], bindings=[]))
    assert f"exchange {exchange.name} stands with other arguments" in caught.value.faults[0]
    assert argument in caught.value.faults[0]


async def test_all_faults_are_told_at_once_and_nothing_is_bound(connection: AbstractConnection, place: Place) -> None:
    alone = Topology(exchanges=[], queues=[place.queue("NS.lost"), place.queue("NS.q.default.low")], bindings=[])
    for queue in alone.queues:
        await declare(connection, replace(queue, arguments=changed(queue.arguments, "x-delivery-limit")))
    with pytest.raises(ConfigError) as caught:
        await topology.apply(connection, alone)
    assert [fault.split()[1] for fault in caught.value.faults] == [queue.name for queue in alone.queues]


@pytest.mark.parametrize(
    ("name", "argument"),
    [("NS.cancelled", "x-max-age"), ("NS.cancelled", "x-max-length-bytes"), ("NS.history", "x-max-age")],
)
async def test_how_long_a_stream_keeps_things_is_the_operators_choice(
    connection: AbstractConnection, place: Place, name: str, argument: str
) -> None:
    queue = place.queue(name)
    alone = Topology(exchanges=[], queues=[queue], bindings=[])
    await declare(connection, replace(queue, arguments=changed(queue.arguments, argument)))
    await topology.apply(connection, alone)
    assert (await topology.check(connection, alone)).different == []


async def test_a_job_queue_that_refuses_when_it_is_full_is_no_choice(
    connection: AbstractConnection, place: Place
) -> None:
    """A delay level whose target refuses messages stands still, and with it all delayed jobs."""
    queue = place.queue("NS.q.default.low")
    await declare(connection, replace(queue, arguments={**queue.arguments, "x-max-length-bytes": 10_000}))
    with pytest.raises(ConfigError, match="x-max-length-bytes"):
        await topology.apply(connection, Topology(exchanges=[], queues=[queue], bindings=[]))


def test_everything_that_is_kept_survives_the_loss_of_a_node() -> None:
    assert all(queue.arguments["x-queue-type"] in ("quorum", "stream") for queue in WORDS.queues)


def test_no_dead_letter_has_nowhere_to_go() -> None:
    exchanges = {each.name: each for each in WORDS.exchanges}
    sources = {each.source for each in WORDS.bindings}
    for queue in WORDS.queues:
        target = queue.arguments.get("x-dead-letter-exchange")
        if target is None:
            continue
        assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
        assert queue.arguments["x-overflow"] == "reject-publish", "else the broker falls back to at most once"
        while not _takes_everything(exchanges[target], sources):
            target = exchanges[target].alternate
            assert target, f"{queue.name} may stand still"


def _takes_everything(exchange: Exchange, sources: set[str]) -> bool:
    # A level of delay has both a binding for 0 and one for 1 at its place.
    levels = exchange.name.rpartition(".")[2].isdecimal()
    return exchange.name in sources and (exchange.type is ExchangeType.FANOUT or levels)


async def test_an_unroutable_submission_ends_with_the_unrouted(broker: Endpoint, namespace: str) -> None:
    async with open_room(broker.url, namespace) as room:
        for key in ("nowhere.high.acme", "default.urgent.acme", "acme", "a.b.c.d.e"):
            await room.submit(key=key)
        await room.holds(room.names.unrouted, 4)


def test_the_dead_letters_never_refuse_one() -> None:
    dead = next(queue for queue in WORDS.queues if queue.name == "NS.dead")
    assert dead.arguments["x-overflow"] == "drop-head"
    assert "x-dead-letter-exchange" not in dead.arguments


async def test_a_room_leaves_nothing_behind(broker: Endpoint, connection: AbstractConnection, namespace: str) -> None:
    async with open_room(broker.url, namespace) as room:
        queue = room.names.dead
    channel = await connection.channel()
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
        await channel.declare_queue(queue, passive=True)

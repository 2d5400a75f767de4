"""What has to stand in the broker: declared, verified, and told to the operator.

Every name and argument is a binding part of the project's interface (docs/amqp.md).
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import aiormq
from aio_pika import ExchangeType
from aio_pika.abc import AbstractConnection

from runner.adapters.amqp.link import RPC_TIMEOUT, describe
from runner.adapters.amqp.names import DELAY_LEVELS, Names
from runner.errors import ConfigError
from runner.job import Priority
from runner.ports import QueueKey

_DAY = 86_400_000
_STREAM_SEGMENT = 10_000_000
_DEAD_MAX_BYTES = 2**30
_CANCELLED_MAX_BYTES = 256 * 2**20
_RETENTION = ("x-max-age", "x-max-length-bytes", "x-stream-max-segment-size-bytes")
_NOT_FOUND = 404
_INEQUIVALENT = 406
DELIVERY_LIMIT = 20
"""How often the broker delivers one message before it buries it."""
_DEAD_DELIVERY_LIMIT = 1_000_000
"""Each look at the dead letters is one more delivery of all of them; without this, brokers drop them at the 20th."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An exchange; all are durable."""

    name: str
    type: ExchangeType = ExchangeType.TOPIC
    alternate: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """As `exchange.declare` takes them."""
        return {"alternate-exchange": self.alternate} if self.alternate else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue; all are durable."""

    name: str
    arguments: dict[str, Any]

    @property
    def without_retention(self) -> "Queue":
        """The same stream, however long it keeps things."""
        kept = {name: value for name, value in self.arguments.items() if name not in _RETENTION}
        return Queue(name=self.name, arguments=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A binding to a queue, or to another exchange."""

    source: str
    target: str
    key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Everything that workers and submitters share, in the order in which it can be declared."""

    exchanges: Sequence[Exchange]
    queues: Sequence[Queue]
    bindings: Sequence[Binding]


@dataclass(slots=True)
class Findings:
    """What `check` found: faults to mend, and remarks."""

    missing: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def reliable(dead_letters_to: str, limit: int = DELIVERY_LIMIT) -> dict[str, Any]:
    """The arguments of a queue that loses nothing: replicated, bounded deliveries, at-least-once dead letters."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": dead_letters_to,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def describe_topology(names: Names, queues: Sequence[QueueKey], history_max_age: str | None = None) -> Topology:
    """The topology for these job queues. `history_max_age` (such as "7D") asks for the stream of all events."""
    return Topology(
        exchanges=list(_exchanges(names)),
        queues=list(_queues(names, queues, history_max_age)),
        bindings=list(_bindings(names, queues, history=history_max_age is not None)),
    )


def job_queues(pools: Sequence[str], tenants: Sequence[str]) -> list[QueueKey]:
    """The queues of these pools, shared and of the tenants that have their own, most urgent first."""
    return [
        QueueKey(pool=pool, priority=priority, tenant=tenant)
        for pool in pools
        for priority in Priority
        for tenant in (None, *tenants)
    ]


def _exchanges(names: Names) -> Iterator[Exchange]:
    # What dead letters or an alternate point to has to stand before the one that points there.
    yield Exchange(name=names.dead, type=ExchangeType.FANOUT)
    yield Exchange(name=names.unrouted, type=ExchangeType.FANOUT)
    yield Exchange(name=names.lost, type=ExchangeType.FANOUT)
    yield Exchange(name=names.shared, alternate=names.unrouted)
    yield Exchange(name=names.submit, alternate=names.shared)
    yield Exchange(name=names.delay_shared, alternate=names.dead)
    yield Exchange(name=names.delay_out, alternate=names.delay_shared)
    for level in range(DELAY_LEVELS):
        yield Exchange(name=names.delay(level))
    for name in (names.events, names.logs, names.control, names.reply, names.lease, names.memory):
        yield Exchange(name=name)


def _queues(names: Names, queues: Sequence[QueueKey], history_max_age: str | None) -> Iterator[Queue]:
    # The dead letters must never refuse one: a full at-least-once source would stand still.
    dead = {
        "x-queue-type": "quorum",
        "x-delivery-limit": _DEAD_DELIVERY_LIMIT,
        "x-max-length-bytes": _DEAD_MAX_BYTES,
        "x-overflow": "drop-head",
    }
    yield Queue(name=names.dead, arguments=dead)
    for queue in queues:
        yield Queue(name=names.jobs(queue), arguments=reliable(names.dead))
    yield Queue(name=names.unrouted, arguments=reliable(names.dead))
    # One worker at a time takes from it, so that it can tell when two copies of one lease have expired.
    yield Queue(name=names.lost, arguments={**reliable(names.dead), "x-single-active-consumer": True})
    for level in range(DELAY_LEVELS):
        arguments = {**reliable(names.below(level)), "x-message-ttl": 2**level * 1000}
        del arguments["x-delivery-limit"]  # nobody takes from it
        yield Queue(name=names.delay(level), arguments=arguments)
    cancelled = _stream("14D") | {"x-max-length-bytes": _CANCELLED_MAX_BYTES}
    yield Queue(name=names.cancelled, arguments=cancelled)
    # No bound in bytes: what is dropped before its time could be started a second time.
    yield Queue(name=names.claims, arguments=_stream("8D"))
    if history_max_age is not None:
        yield Queue(name=names.history, arguments=_stream(history_max_age))


def _stream(max_age: str) -> dict[str, Any]:
    return {"x-queue-type": "stream", "x-max-age": max_age, "x-stream-max-segment-size-bytes": _STREAM_SEGMENT}


def _bindings(names: Names, queues: Sequence[QueueKey], *, history: bool) -> Iterator[Binding]:
    for name in (names.dead, names.unrouted, names.lost):
        yield Binding(source=name, target=name, key="")
    for queue in queues:
        yield from _job_bindings(names, queue)
    for level in range(DELAY_LEVELS):
        skipped = ("*",) * (DELAY_LEVELS - 1 - level)
        held, passed = ".".join((*skipped, "1", "#")), ".".join((*skipped, "0", "#"))
        yield Binding(source=names.delay(level), target=names.delay(level), key=held)
        yield Binding(source=names.delay(level), target=names.below(level), key=passed, to_exchange=True)
    yield Binding(source=names.control, target=names.cancelled, key="job.*.*.cancel")
    yield Binding(source=names.memory, target=names.cancelled, key=names.mark_key("cancelled", "*"))
    yield Binding(source=names.memory, target=names.claims, key=names.mark_key("claims", "*"))
    yield Binding(source=names.memory, target=names.claims, key=names.claim_key("*"))
    if history:
        yield Binding(source=names.events, target=names.history, key="#")


def _job_bindings(names: Names, queue: QueueKey) -> Iterator[Binding]:
    target, tenant = names.jobs(queue), queue.tenant or "*"
    direct, delayed = (names.submit, names.delay_out) if queue.tenant else (names.shared, names.delay_shared)
    yield Binding(source=direct, target=target, key=f"{queue.pool}.{queue.priority}.{tenant}")
    yield Binding(source=delayed, target=target, key=f"#.{queue.pool}.{queue.priority}.{tenant}")


async def apply(connection: AbstractConnection, topology: Topology) -> None:
    """Declare what is missing. Raises `ConfigError` with one fault for each part that stands but differs."""
    faults: list[str] = []
    for exchange in topology.exchanges:
        faults += await _declared(connection, exchange)
    for queue in topology.queues:
        faults += await _declared(connection, queue)
    if faults:
        raise ConfigError(*faults)
    async with asyncio.timeout(RPC_TIMEOUT * 3):
        channel = await connection.channel()
        underlay = await channel.get_underlay_channel()
        for binding in topology.bindings:
            if binding.to_exchange:
                await underlay.exchange_bind(
                    destination=binding.target, source=binding.source, routing_key=binding.key, timeout=RPC_TIMEOUT
                )
            else:
                await underlay.queue_bind(binding.target, binding.source, binding.key, timeout=RPC_TIMEOUT)
        await channel.close()


async def check(connection: AbstractConnection, topology: Topology) -> Findings:
    """What is missing or different, without making anything. Bindings cannot be read over AMQP; `apply` makes them."""
    findings = Findings()
    parts: list[Exchange | Queue] = [*topology.exchanges, *topology.queues]
    for part in parts:
        if await _passive(connection, part):
            findings.different += await _declared(connection, part, compare_only=True)
        else:
            findings.missing.append(f"{_kind(part)} {part.name} is missing; run: runner topology apply")
    return findings


async def _declared(connection: AbstractConnection, part: Exchange | Queue, *, compare_only: bool = False) -> list[str]:
    """Declare one part on a channel of its own, since a refusal closes it; the faults, if any.

    `compare_only`: the part stands, and a user who may not declare it cannot compare its arguments, which is no fault.
    """
    channel = await connection.channel()
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            if isinstance(part, Exchange):
                await channel.declare_exchange(part.name, part.type, durable=True, arguments=part.arguments)
            else:
                await channel.declare_queue(part.name, durable=True, arguments=part.arguments)
            await channel.close()
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        if _is_retention(part, str(error)):
            other = part.without_retention
            return [] if other == part else await _declared(connection, other, compare_only=compare_only)
        what = f"{_kind(part)} {part.name} stands with other arguments than this version needs"
        return [f"{what} ({describe(error)}); remove it when it is empty, then run: runner topology apply"]
    except aiormq.exceptions.ChannelAccessRefused as error:
        if compare_only:
            return []
        what = f"{_kind(part)} {part.name} may not be declared by this user"
        return [f"{what} ({describe(error)}); have an operator run: runner topology apply"]
    return []


def _is_retention(part: Exchange | Queue, refusal: str) -> TypeGuard[Queue]:
    """Whether the refusal names how long a stream keeps things, which is the operator's choice.

    The broker names one difference only, so there may be others.
    """
    stream = isinstance(part, Queue) and part.arguments["x-queue-type"] == "stream"
    return stream and any(f"'{name}'" in refusal for name in _RETENTION)


async def _passive(connection: AbstractConnection, part: Exchange | Queue) -> bool:
    channel = await connection.channel()
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            if isinstance(part, Exchange):
                await channel.declare_exchange(part.name, part.type, passive=True)
            else:
                await channel.declare_queue(part.name, passive=True)
            await channel.close()
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        # A broker that has just started says so of queues that it has, but not up yet.
        if "inaccessible" in str(error):
            raise
        return False
    return True


def _kind(part: Exchange | Queue) -> str:
    return "exchange" if isinstance(part, Exchange) else "queue"

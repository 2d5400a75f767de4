"""The worker's side of the broker: three connections, and what uses each of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aio_pika
from aio_pika.abc import AbstractConnection

from runner.adapters.amqp import topology
from runner.adapters.amqp.cancelled import Cancelled
from runner.adapters.amqp.claims import Claims
from runner.adapters.amqp.control import Command, Control
from runner.adapters.amqp.delivery import Desk, plain_ack
from runner.adapters.amqp.depths import Depths
from runner.adapters.amqp.events import EventPublisher
from runner.adapters.amqp.find import Finder, Knowledge
from runner.adapters.amqp.frames import tolerate_odd_frames
from runner.adapters.amqp.intake import JobIntake
from runner.adapters.amqp.leases import Leases
from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, Link, describe
from runner.adapters.amqp.logs import LogPublisher
from runner.adapters.amqp.lost import Lost
from runner.adapters.amqp.memory import Memory
from runner.adapters.amqp.namelock import NameLock
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.adapters.amqp.unrouted import Unrouted
from runner.adapters.metrics import Metrics
from runner.errors import ConfigError
from runner.job import JobKey
from runner.ports import QueueKey
from runner.settings import Settings

log = logging.getLogger(__name__)

_AGAIN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """What the worker uses of the broker, and the links that carry it."""

    intake: JobIntake
    events: EventPublisher
    log_sink: LogPublisher
    cancelled: Cancelled
    claims: Claims
    links: tuple[Link, ...]
    heard: asyncio.Event

    def problems(self) -> list[str]:
        """Why no jobs can be taken from the broker now."""
        problems = [
            f"no {link.role} connection to the broker" + (f": {link.fault}" if link.fault else "")
            for link in self.links
            if not link.up
        ]
        if not problems and not self.cancelled.up_to_date:
            problems.append("reading which jobs were cancelled")
        return problems


async def ready_topology(settings: Settings) -> None:
    """Wait for the broker; declare what is missing, or verify it. Raises `ConfigError` for what differs."""
    tolerate_odd_frames()
    names = Names(settings.amqp.namespace)
    wanted = expected_topology(settings)
    tries = 0
    while True:
        url = settings.amqp.url[tries % len(settings.amqp.url)]
        try:
            async with asyncio.timeout(RPC_TIMEOUT * 6):
                async with await aio_pika.connect(url, timeout=5) as connection:
                    await _ready(connection, wanted, declare=settings.amqp.declare)
        except BROKER_FAULTS as error:
            log.warning("waiting for the broker", extra={"namespace": names.ns, "fault": describe(error)})
        else:
            return
        tries += 1
        await asyncio.sleep(_AGAIN)


async def _ready(connection: AbstractConnection, wanted: topology.Topology, *, declare: bool) -> None:
    if declare:
        await topology.apply(connection, wanted)
        return
    findings = await topology.check(connection, wanted)
    if findings.missing or findings.different:
        raise ConfigError(*findings.missing, *findings.different)


def expected_topology(settings: Settings) -> topology.Topology:
    """What the broker has to have for these settings."""
    tenants = [name for name, tenant in settings.tenants.items() if tenant.queue]
    queues = topology.job_queues(settings.worker.pools, tenants)
    age = settings.amqp.history_max_age
    max_age = f"{max(1, round(age.total_seconds()))}s" if age is not None else None
    return topology.describe_topology(Names(settings.amqp.namespace), queues, max_age)


def visible_queues(settings: Settings) -> list[str]:
    """The queues in which jobs or their remains may wait: of our pools, and those that all workers share."""
    return [queue.name for queue in expected_topology(settings).queues if queue.arguments["x-queue-type"] != "stream"]


@asynccontextmanager
async def open_broker(
    settings: Settings,
    metrics: Metrics,
    memory: Memory,
    *,
    commands: Mapping[str, Command],
    cancel: Callable[[JobKey, str], None],
    superseded: Callable[[str], Awaitable[None]],
    rank: Callable[[QueueKey], float | None],
    knowledge: Knowledge,
) -> AsyncIterator[Broker]:
    """The broker, connected as long as the context lasts; it need not be there yet."""
    names, worker = Names(settings.amqp.namespace), settings.worker.name
    publisher, log_publisher = Publisher(), Publisher()
    pulse = Pulse(settings.amqp.heartbeat)
    leases = Leases(
        names=names,
        worker=worker,
        lifetime=settings.worker.lease,
        publisher=publisher,
        observer=metrics,
        pulse=pulse,
        superseded=superseded,
    )
    desk = Desk(names=names, publisher=publisher, leases=leases)
    tenants = [name for name, tenant in settings.tenants.items() if tenant.queue]
    intake = JobIntake(
        names=names, queues=topology.job_queues(settings.worker.pools, tenants), wrap=desk.open, rank=rank
    )
    control = Control(names=names, worker=worker, publisher=publisher, commands=commands, cancel=cancel)
    cancelled = Cancelled(names=names, worker=worker, publisher=publisher, memory=memory, cancel=cancel)
    claims = Claims(names=names, worker=worker, publisher=publisher, memory=memory, now=_now)
    lost = Lost(desk=desk, worker=worker, heartbeat=settings.amqp.heartbeat, offer=intake.offer)
    finder = Finder(names=names, worker=worker, knowledge=knowledge, publisher=publisher, log_publisher=log_publisher)
    depths = Depths(queues=visible_queues(settings), tell=metrics.queue_depth)
    logs = LogPublisher(names=names, publisher=log_publisher, dropped=metrics.output_omitted)

    async def take_jobs(connection: AbstractConnection) -> None:
        await cancelled.follower.caught_up()  # else a job could start that was cancelled long ago
        await intake.use(connection)

    consume = Link(
        urls=settings.amqp.url,
        name=worker,
        role="consume",
        observer=metrics,
        enter=NameLock(names=names, worker=worker).take,
        pulse=pulse,
        users=(
            leases.use,
            lost.use,
            control.use,
            Unrouted(desk=desk, offer=intake.offer).use,
            cancelled.use,
            claims.use,
            take_jobs,
            finder.use,
            depths.use,
        ),
    )
    links = (
        consume,
        _link(settings, metrics, "publish", publisher),
        _link(settings, metrics, "logs", log_publisher),
    )
    events = EventPublisher(names=names, publisher=publisher)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(link.run()) for link in links]
        running += [
            tasks.create_task(chore) for chore in (leases.renew(), logs.run(), _take_back(leases, desk, intake))
        ]
        try:
            yield Broker(
                intake=intake,
                events=events,
                log_sink=logs,
                cancelled=cancelled,
                claims=claims,
                links=links,
                heard=leases.heard,
            )
            await leases.drained()
        finally:
            for task in running:
                task.cancel()


def _now() -> datetime:
    return datetime.now(UTC)


async def _take_back(leases: Leases, desk: Desk, intake: JobIntake) -> None:
    """Give the worker the jobs of its earlier life."""
    while True:
        message = await leases.orphans.get()
        intake.offer(desk.open_lease(message, plain_ack(message)))


def _link(settings: Settings, metrics: Metrics, role: str, publisher: Publisher) -> Link:
    return Link(
        urls=settings.amqp.url,
        name=settings.worker.name,
        role=role,
        pulse=Pulse(settings.amqp.heartbeat),
        observer=metrics,
        users=(publisher.use,),
        publishes=True,
    )

"""What waits where, and why: the broker's counts, and what the workers say of themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.adapters.amqp import topology
from runner.adapters.amqp.ask import open_asker
from runner.adapters.amqp.connect import connect_once
from runner.adapters.amqp.depths import Depth, count
from runner.adapters.amqp.link import BROKER_FAULTS, describe
from runner.adapters.amqp.names import DELAY_LEVELS, Names
from runner.errors import BrokerError
from runner.ports import QueueKey
from runner.settings import Settings
from runner.units import format_size

Status = Mapping[str, Any]
"""A worker's answer to `ping`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """A queue: how many messages are ready, how many consumers listen (None: there is no such queue), and why so."""

    queue: str
    ready: int | None
    consumers: int | None
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A job that a worker has taken and cannot start yet."""

    worker: str
    tenant: str
    id: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Everything that waits."""

    queues: Sequence[QueueFacts]
    held_back: Sequence[HeldBack]


async def ask_workers(settings: Settings, *, wait: float) -> list[Status]:
    """The status of each worker that answers within `wait` seconds, by name. Raises `BrokerError`."""
    names = Names(settings.amqp.namespace)
    async with connect_once(settings.amqp.url, "runner:workers") as connection, open_asker(connection, names) as asker:
        answers = await asker.collect("all.ping", wait=wait)
    return sorted(answers, key=lambda status: str(status.get("worker")))


async def look_at_queues(settings: Settings, *, wait: float) -> Waiting:
    """What waits in the broker and on the workers. Raises `BrokerError`."""
    names = Names(settings.amqp.namespace)
    workers = await ask_workers(settings, wait=wait)
    pools = {*settings.worker.pools, *(pool for worker in workers for pool in worker.get("pools", ()))}
    tenants = sorted(name for name, tenant in settings.tenants.items() if tenant.queue)
    jobs = {names.jobs(queue): queue for queue in topology.job_queues(sorted(pools), tenants)}
    others = [names.delay(level) for level in range(DELAY_LEVELS)]
    others += [names.unrouted, names.lost, names.dead]
    async with connect_once(settings.amqp.url, "runner:queues") as connection:
        try:
            depths = await count(connection, [*jobs, *others])
        except BROKER_FAULTS as error:
            raise BrokerError(f"the queues cannot be counted: {describe(error)}") from error
    facts = [
        QueueFacts(
            queue=depth.queue,
            ready=depth.ready,
            consumers=depth.consumers,
            why=_why(names, depth, jobs.get(depth.queue), workers),
        )
        for depth in depths
    ]
    return Waiting(queues=facts, held_back=held_back(workers))


def held_back(workers: Sequence[Status]) -> list[HeldBack]:
    """What the workers have taken and cannot start yet."""
    found = []
    for worker in workers:
        for key, why in worker.get("waiting", {}).items():
            tenant, _, job_id = key.partition("/")
            found.append(HeldBack(worker=str(worker.get("worker")), tenant=tenant, id=job_id, why=why))
    return found


def _why(names: Names, depth: Depth, queue: QueueKey | None, workers: Sequence[Status]) -> str | None:
    if depth.ready is None:
        return "there is no such queue; run: runner topology apply"
    if depth.ready == 0:
        return None
    if queue is not None:
        return why_jobs_wait(queue, depth, workers)
    return {
        names.unrouted: "no worker serves the pools of these jobs; a worker rejects them when it takes them",
        names.lost: "their workers went away; another one asks after them, then runs them again",
        names.dead: "see: runner dead list",
    }.get(depth.queue, "delayed, passed on, or about to be tried again")


def why_jobs_wait(queue: QueueKey, depth: Depth, workers: Sequence[Status]) -> str:
    """A sentence on why jobs wait in a job queue."""
    serving = [worker for worker in workers if queue.pool in worker.get("pools", ())]
    if not serving:
        return f"no worker that answers serves pool {queue.pool}"
    taking = [worker for worker in serving if worker.get("state") == "taking"]
    if not taking:
        return f"no worker of pool {queue.pool} takes jobs: {'; '.join(map(_state, serving))}"
    if queue.tenant and all(queue.tenant in worker.get("capped", ()) for worker in taking):
        return f"tenant {queue.tenant} runs as many jobs as its max_running allows"
    if depth.consumers == 0:
        return f"the workers of pool {queue.pool} have no room: the largest is {_largest_room(taking)}"
    return "on their way"


def _state(worker: Status) -> str:
    problems = ", ".join(worker.get("problems", ()))
    return f"{worker.get('worker')} is {worker.get('state')}" + (f" ({problems})" if problems else "")


def _largest_room(workers: Sequence[Status]) -> str:
    def room(worker: Status) -> tuple[bool, int, float]:
        free = worker.get("free", {})
        return bool(free.get("slots")), int(free.get("memory", 0)), float(free.get("cpus", 0))

    worker = max(workers, key=room)
    _, memory, cpus = room(worker)
    slots = worker.get("free", {}).get("slots", 0)
    return f"{cpus:g} CPUs, {format_size(max(0, memory))} and {slots} slots on {worker.get('worker')}"

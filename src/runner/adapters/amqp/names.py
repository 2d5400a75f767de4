"""What our exchanges, queues and headers are called, for one namespace."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runner.job import Route
from runner.ports import QueueKey

DELAY_LEVELS = 20
"""Levels of 1 s, 2 s, 4 s …: together 2^20 - 1 seconds, 12 days."""

_EXACT_REPLY = re.compile(r"amq\.rabbitmq\.reply-to\..+|amq\.gen-.+")


class Header(StrEnum):
    """Headers that count only on what comes through the internal exchanges. Times are whole milliseconds (Unix)."""

    ATTEMPT = "x-attempt"
    LOST = "x-lost"
    GIVEN_BACK = "x-given-back"
    DEFERRALS = "x-deferrals"
    PUBLISHED = "x-published"
    NOT_BEFORE = "x-not-before"
    SUBMITTED_AS = "x-submitted-as"
    ROUTE = "x-route"
    CLAIM = "x-claim"
    WORKER = "x-worker"
    LEASE_SEQ = "x-lease-seq"
    OFFERED = "x-offered"
    RUN = "x-run"


class DeadHeader(StrEnum):
    """Headers of the dead letters."""

    REASON = "x-reason"
    CODE = "x-code"
    FROM = "x-from"
    ID = "x-id"


@dataclass(frozen=True, slots=True)
class Names:
    """Names in the namespace `ns`."""

    ns: str

    @property
    def submit(self) -> str:
        """The exchange that jobs are published to."""
        return self.ns

    @property
    def shared(self) -> str:
        """The exchange of the queues that all tenants share."""
        return f"{self.ns}.shared"

    @property
    def unrouted(self) -> str:
        """Exchange and queue of jobs that no pool serves."""
        return f"{self.ns}.unrouted"

    @property
    def events(self) -> str:
        """The exchange of events."""
        return f"{self.ns}.events"

    @property
    def logs(self) -> str:
        """The exchange of logs."""
        return f"{self.ns}.logs"

    @property
    def control(self) -> str:
        """The exchange of commands to workers and about jobs."""
        return f"{self.ns}.control"

    @property
    def reply(self) -> str:
        """The exchange of replies to queues of one's own naming."""
        return f"{self.ns}.reply"

    @property
    def dead(self) -> str:
        """Exchange and queue of the dead letters."""
        return f"{self.ns}.dead"

    @property
    def lease(self) -> str:
        """The exchange of leases; the routing key is the worker's name."""
        return f"{self.ns}.lease"

    @property
    def lost(self) -> str:
        """Exchange and queue of leases that expired."""
        return f"{self.ns}.lost"

    @property
    def cancelled(self) -> str:
        """The stream that remembers what was cancelled."""
        return f"{self.ns}.cancelled"

    @property
    def claims(self) -> str:
        """The stream that remembers which jobs are to be the only ones of their ids."""
        return f"{self.ns}.claims"

    @property
    def memory(self) -> str:
        """The exchange through which workers, and nobody else, write into these streams."""
        return f"{self.ns}.memory"

    @property
    def history(self) -> str:
        """The optional stream of all events."""
        return f"{self.ns}.history"

    @property
    def delay_out(self) -> str:
        """Where a delayed job leaves the levels, for the queues of named tenants."""
        return f"{self.ns}.delay.out"

    @property
    def delay_shared(self) -> str:
        """Where a delayed job goes that no named tenant's queue takes."""
        return f"{self.ns}.delay.shared"

    def delay(self, level: int) -> str:
        """Exchange and queue of one level of delay."""
        return f"{self.ns}.delay.{level:02d}"

    def below(self, level: int) -> str:
        """The exchange that follows a level of delay."""
        return self.delay(level - 1) if level else self.delay_out

    def jobs(self, queue: QueueKey) -> str:
        """A job queue."""
        tail = f".{queue.tenant}" if queue.tenant else ""
        return f"{self.ns}.q.{queue.pool}.{queue.priority}{tail}"

    def worker_lease(self, worker: str) -> str:
        """The queue of a worker's leases."""
        return f"{self.ns}.w.{worker}.lease"

    def worker_superseded(self, worker: str) -> str:
        """The queue of word to a worker that others have taken its jobs over."""
        return f"{self.ns}.w.{worker}.superseded"

    def worker_lock(self, worker: str) -> str:
        """The exclusive queue that only one daemon of a name can hold."""
        return f"{self.ns}.w.{worker}.lock"

    def worker_control(self, worker: str) -> str:
        """The queue of commands to a worker."""
        return f"{self.ns}.w.{worker}.control"

    def worker_find(self, worker: str) -> str:
        """The exclusive queue of questions to a worker about jobs."""
        return f"{self.ns}.w.{worker}.find"

    def is_internal(self, exchange: str) -> bool:
        """Whether only workers and operators may publish to the exchange."""
        return exchange in (self.lease, self.lost) or exchange.startswith(f"{self.ns}.delay.")

    def cancel_key(self, tenant: str, job_id: str) -> str:
        """The routing key that cancels a job."""
        return f"job.{tenant}.{job_id}.cancel"

    def find_key(self, tenant: str, job_id: str) -> str:
        """The routing key that asks all workers about a job."""
        return f"job.{tenant}.{job_id}.find"

    def claim_key(self, worker: str) -> str:
        """The routing key of a worker's claims to unique jobs."""
        return f"claim.{worker}"

    def superseded_key(self, worker: str) -> str:
        """The routing key, on the exchange of leases, of word to a worker that its job was taken over."""
        return f"{worker}.superseded"

    def mark_key(self, stream: str, worker: str) -> str:
        """The routing key of a worker's mark in a stream; `stream` is without the namespace."""
        return f"mark.{stream}.{worker}"


def delay_path(seconds: int, route: Route) -> tuple[int, str] | None:
    """The highest level that a delay needs and its routing key there; None without a delay.

    The key starts with the delay's 20 bits, high first, so that each level knows whether to hold the message.
    """
    seconds = min(seconds, 2**DELAY_LEVELS - 1)
    if seconds <= 0:
        return None
    bits: Sequence[str] = f"{seconds:0{DELAY_LEVELS}b}"
    return seconds.bit_length() - 1, ".".join((*bits, str(route)))


def is_server_named(queue: str) -> bool:
    """Whether a reply to this queue has to go through the default exchange."""
    return _EXACT_REPLY.fullmatch(queue) is not None


def is_smuggled(headers: Mapping[str, object]) -> bool:
    """Whether a message on an exchange that submitters may write to was dead-lettered there.

    The broker checks the topic permissions of whoever publishes, but not of whose queue names a dead-letter exchange
    and a routing key: with that, a tenant could write any key. Nothing of ours is dead-lettered into those exchanges.
    """
    return "x-death" in headers

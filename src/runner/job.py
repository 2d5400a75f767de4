"""The words of the domain, and the verdict on how a job ended. No I/O, no clock."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType

from runner.destination import Destination

Bytes = NewType("Bytes", int)
"""A size in bytes."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

OUTPUT_MAX = Bytes(64 * 1024)
"""The most that `JOB_OUTPUT_FILE` may hold."""
PROGRESS_MAX = Bytes(4 * 1024)
"""The most that `JOB_PROGRESS_FILE` may hold."""
SECRETS_MAX = 32
"""The most secrets that one job may get."""
SECRET_BYTES_MAX = Bytes(64 * 1024)
"""The most that one secret may hold."""
SECRETS_BYTES_MAX = Bytes(256 * 1024)
"""The most that all secrets of one job may hold."""


class Priority(StrEnum):
    """How urgent a job is. The order is that of the queues, most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Network(StrEnum):
    """What a job can reach."""

    NONE = "none"
    EGRESS = "egress"


class StopReason(StrEnum):
    """Why we end a job that would have gone on. The first reason given wins."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    DISK_LIMIT = "disk_limit"
    OUTPUT_LIMIT = "output_limit"
    SUPERSEDED = "superseded"


class Outcome(StrEnum):
    """How a job ended; exactly one for each job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OOM_KILLED = "oom_killed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    DISK_LIMIT = "disk_limit"
    OUTPUT_LIMIT = "output_limit"
    LOST = "lost"


class Blame(StrEnum):
    """Who has to change something for the job to succeed."""

    NONE = "none"
    JOB = "job"
    REQUEST = "request"
    OPERATOR = "operator"
    PLATFORM = "platform"


class Stream(StrEnum):
    """Where a line of the log comes from; `SYS` is our own word in it."""

    OUT = "out"
    ERR = "err"
    SYS = "sys"


class EventKind(StrEnum):
    """What can be told about a job while it passes through."""

    CLAIMED = "claimed"
    STARTED = "started"
    PROGRESS = "progress"
    STOPPING = "stopping"
    DEFERRED = "deferred"
    RETRYING = "retrying"
    LOST = "lost"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    FINISHED = "finished"


class DeadCode(StrEnum):
    """Why a message went to the dead letters (`x-code`)."""

    UNDECODABLE = "undecodable"
    REJECTED = "rejected"
    UNROUTABLE = "unroutable"
    DELIVERY_LIMIT = "delivery_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a job was sent: the three words of the delivered routing key."""

    pool: str
    priority: Priority
    tenant: str

    def __str__(self) -> str:
        return f"{self.pool}.{self.priority}.{self.tenant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKey:
    """A job's identity."""

    tenant: str
    id: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may use. `disk` is RAM and comes on top of `memory`."""

    cpus: float = 0.5
    memory: Bytes = Bytes(256 * 2**20)
    disk: Bytes = Bytes(64 * 2**20)
    pids: int = 256
    scratch: Bytes = Bytes(0)
    timeout: timedelta = timedelta(minutes=10)
    grace: timedelta = timedelta(seconds=10)
    log_bytes: Bytes = Bytes(4 * 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsRequest:
    """The limits that somebody named; None leaves the choice to the next one in line."""

    cpus: float | None = None
    memory: Bytes | None = None
    disk: Bytes | None = None
    pids: int | None = None
    scratch: Bytes | None = None
    timeout: timedelta | None = None
    grace: timedelta | None = None
    log_bytes: Bytes | None = None

    def over(self, base: Limits) -> Limits:
        """`base`, with whatever is named here in its place."""
        named = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(base, **named)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a job that ended badly is started again."""

    max: int = 0
    delay: timedelta = timedelta(seconds=10)
    factor: float = 2.0
    max_delay: timedelta = timedelta(minutes=10)
    outcomes: frozenset[Outcome] = frozenset({Outcome.FAILED, Outcome.OOM_KILLED, Outcome.TIMED_OUT})
    exits: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Where the submitter wants the last event as well."""

    to: str
    correlation_id: str | None = None


_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def is_revision(word: str) -> bool:
    """Whether a revision of a stack may be called that; `current` and `previous` are whatever they point to."""
    return bool(_REVISION.fullmatch(word)) and word not in ("current", "previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRef:
    """A stack as a job names it."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineCode:
    """A code package that came in its job's message: a tar.gz or a zip."""

    archive: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedCode:
    """A code package that is fetched: its address, and the SHA-256 of the archive there, in lower-case hex."""

    url: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its submitter described it, decoded and checked for form."""

    key: JobKey
    route: Route
    stack: StackRef
    published: datetime
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    payload: bytes | None = None
    stdin: bytes | None = None
    code: InlineCode | LinkedCode | None = None
    limits: LimitsRequest = LimitsRequest()
    network: Network | None = None
    retry: RetryPolicy = RetryPolicy()
    delay: timedelta | None = None
    start_within: timedelta | None = None
    unique: timedelta | None = None
    fence: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    reply: Reply | None = None
    traceparent: str | None = None

    @property
    def start_by(self) -> datetime | None:
        """When it has to have been started for the first time; None where that may take any time."""
        if self.start_within is None:
            return None
        return self.published + (self.delay or timedelta()) + self.start_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A message that is no job. `tenant` is None when nobody can be told; `pool` and `priority` are as they came."""

    code: DeadCode
    reason: str
    id: str
    tenant: str | None
    pool: str | None
    priority: str | None
    published: datetime
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    stack: str | None = None
    reply: Reply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """A secret as a stack or a tenant's settings name it. `shared`: one value serves whoever has none of their own."""

    name: str
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A runtime that this worker has: one revision of one stack, resolved to an image."""

    name: str
    revision: str
    image: str
    command: tuple[str, ...] = ()
    uid: int = 65534
    gid: int = 65534
    network: Network = Network.NONE
    allow: tuple[Destination, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    limits: LimitsRequest = LimitsRequest()
    read_only: bool = True
    cap_add: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    runtime: str = "runc"
    log_flood_kills: bool = False
    all_sockets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that this worker can run, with every choice made."""

    job: Job
    stack: Stack
    command: tuple[str, ...]
    limits: Limits
    network: Network = Network.NONE
    secrets: tuple[SecretRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a plan adds to its job: enough to go on with the job in another life of the daemon."""

    stack: Stack
    command: tuple[str, ...]
    limits: Limits
    network: Network = Network.NONE
    secrets: tuple[SecretRef, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> "Choices":
        """The choices that were made in a plan."""
        return cls(
            stack=plan.stack,
            command=plan.command,
            limits=plan.limits,
            network=plan.network,
            secrets=plan.secrets,
        )

    def plan(self, job: Job) -> Plan:
        """The plan again."""
        return Plan(
            job=job,
            stack=self.stack,
            command=self.command,
            limits=self.limits,
            network=self.network,
            secrets=self.secrets,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of one job: what a container is made from. `secrets` are the values by name, for the init alone."""

    plan: Plan
    worker: str
    claim: str
    number: int
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def container_name(self) -> str:
        """The container's name, known before it exists, so that it can always be found."""
        return container_name(self.worker, self.claim)


def container_name(worker: str, claim: str) -> str:
    """The name of the container that belongs to a claim."""
    return f"runner-{worker}-{claim}"


def warm_name(worker: str, number: int | str) -> str:
    """The name of a container that waits for a job; a job's name follows as soon as it has one."""
    return f"warm-{worker}-{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a job used; None where nothing can tell."""

    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """What is known of a container's end.

    `code` and `signal` exclude each other. `exec_errno` is set when the job's command could not be executed. `lost`
    says in a sentence what the platform did to the job, when it did. `remains` says that we ended it and have not seen
    its end. `complete` is true when both log streams were proven to have arrived whole. `disk_full` tells of a place
    that was full, and `full_limit` is the limit to raise.
    """

    code: int | None = None
    signal: int | None = None
    exec_errno: int | None = None
    lost: str | None = None
    remains: str | None = None
    oom_kills: int = 0
    disk_full: str | None = None
    full_limit: str = "limits.disk"
    usage: Usage = Usage()
    output: bytes | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a job ended, as far as its end alone can tell."""

    outcome: Outcome
    reason: str
    blame: Blame
    exit_code: int | None = None
    signal: int | None = None
    oom_seen: bool = False
    output: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the log, or a part of one (`partial`: no newline follows this text)."""

    time: datetime
    stream: Stream
    text: str
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStats:
    """How much a job wrote, and how much of it was left out."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    omitted_bytes: int = 0
    omitted_lines: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When each phase of a job began."""

    published: datetime | None = None
    claimed: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Everything there is to say about a job that ended."""

    verdict: Verdict
    times: Times
    usage: Usage = Usage()
    logs: LogStats = LogStats()
    tail: tuple[Line, ...] = ()

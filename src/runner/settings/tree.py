"""The tree itself: a class a section, a field a setting. For people: docs/settings.md."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from runner.destination import never_open
from runner.job import Bytes, Limits, LimitsRequest
from runner.settings.fields import (
    BrokerUrls,
    CodeSource,
    Count,
    CountOrNone,
    Cpus,
    CpusOrNone,
    Duration,
    EngineUrl,
    Folder,
    Ipv4Address,
    Ipv4Range,
    Memory,
    MemoryOrNone,
    MemoryPart,
    Number,
    Port,
    Portion,
    Registry,
    SecretName,
    Section,
    Size,
    Span,
    SpanOrOff,
    Text,
    UidsOrNone,
    Whole,
    Word,
)
from runner.settings.show import to_toml
from runner.units import parse_duration, parse_size


class Restart(StrEnum):
    """What SIGTERM does to the jobs that run."""

    DRAIN = "drain"
    ADOPT = "adopt"


class LogLevel(StrEnum):
    """The least important record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a record looks; `AUTO` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class Worker(Section):
    """This daemon, and what it does with jobs at its edges."""

    name: Word
    pools: Annotated[tuple[Word, ...], Field(min_length=1)] = ("default",)
    state_dir: Folder = Path("/var/lib/runner")
    lease: Span = parse_duration("120s")
    max_lost: Whole = 3
    max_deferred: Duration = parse_duration("1h")
    drain_timeout: Duration = parse_duration("65m")
    restart: Restart = Restart.DRAIN


class Capacity(Section):
    """What all jobs together may use of this machine."""

    cpus: Cpus
    cpu_overcommit: Number = 1.0
    memory: Memory
    max_jobs: Count = 64
    disk_free: Size = parse_size("1g")


class Amqp(Section):
    """The broker."""

    url: BrokerUrls = ("amqp://guest:guest@127.0.0.1:5672/",)
    namespace: Word = "jobs"
    declare: bool = True
    history_max_age: SpanOrOff = None
    heartbeat: Span = parse_duration("10s")


class Engine(Section):
    """The container engine."""

    url: EngineUrl = "unix:///var/run/docker.sock"
    start_parallelism: Count
    runtimes: Annotated[tuple[Text, ...], Field(min_length=1)] = ("runc",)
    uids: UidsOrNone = None

    @property
    def uid_numbers(self) -> range | None:
        """The user numbers of which each job gets one of its own, if there are such."""
        return self.uids.numbers if self.uids else None


class DefaultLimits(Section):
    """What a job gets that asks for nothing; the figures are those of `runner.job.Limits`."""

    cpus: Cpus = Limits().cpus
    memory: Memory = Limits().memory
    disk: Size = Limits().disk
    pids: Count = Limits().pids
    scratch: Size = Limits().scratch
    timeout: Span = Limits().timeout
    grace: Duration = Limits().grace
    log_bytes: Size = Limits().log_bytes


class MaxLimits(Section):
    """The most that a job may ask for."""

    cpus: CpusOrNone = None
    memory: MemoryOrNone = None
    disk: Size = parse_size("1g")
    pids: Count = 4096
    scratch: Size = Bytes(0)
    timeout: Span = parse_duration("60m")
    grace: Duration = parse_duration("60s")
    log_bytes: Size = parse_size("64m")


class LimitsSection(Section):
    """What jobs get, and the most that they can get, as the rest of the program knows it."""

    default_section: DefaultLimits = Field(default=DefaultLimits(), alias="default")
    max_section: MaxLimits = Field(default=MaxLimits(), alias="max")

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        most = self.max
        over = [
            f"default {name} is above max {name}"
            for name, value in self.default_section
            if (limit := getattr(most, name)) is not None and value > limit
        ]
        if over:
            raise ValueError(f"{', '.join(over)}; lower the one or raise the other")
        return self

    @property
    def default(self) -> Limits:
        """What a job gets that asks for nothing."""
        return Limits(**dict(self.default_section))

    @property
    def max(self) -> LimitsRequest:
        """The most that a job may ask for; None is no maximum."""
        return LimitsRequest(**dict(self.max_section))


class StackFolder(Section):
    """Where the stacks are, how much of their images `prune` leaves, and where images are pulled from ahead of time."""

    dir: Folder = Path("/etc/runner/stacks")
    max_bytes: Size = parse_size("20g")
    registry: Registry | None = None
    registry_auth: Folder | None = None


class Code(Section):
    """Code packages."""

    allow: tuple[CodeSource, ...] = ()
    max_bytes: Size = parse_size("256m")
    cache_bytes: Size = parse_size("2g")


class Secrets(Section):
    """Where the values of secrets are."""

    dir: Folder = Path("/etc/runner/secrets")


class Networks(Section):
    """The networks of jobs that reach out."""

    bridge: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,14}$")] = "runner0"
    subnet: Ipv4Range | None = None
    private: tuple[Ipv4Range, ...] = ()
    nameservers: Annotated[tuple[Ipv4Address, ...], Field(min_length=1)] | None = None
    connections: Annotated[Count, Field(ge=16)] = 4096

    @model_validator(mode="after")
    def _opens_nothing_of_ours(self) -> Self:
        for place in self.private:
            if shut := never_open(place):
                raise ValueError(
                    f"private: {place} cannot be opened, {shut} is shut for every job; name smaller ranges"
                )
            if self.subnet is not None and place.overlaps(self.subnet):
                raise ValueError(f"private: {place} overlaps the jobs' own subnet {self.subnet}; name other ranges")
        return self


class Warm(Section):
    """Containers that wait for a job."""

    enabled: bool = True
    memory: MemoryPart = Portion(percent=25)


class History(Section):
    """What is kept of jobs that ended."""

    max_age: Span = parse_duration("7d")
    max_bytes: Size = parse_size("1g")


class Tenant(Section):
    """What one tenant gets."""

    queue: bool = False
    weight: Count = 1
    max_running: CountOrNone = None
    stacks: tuple[Text, ...] | None = None
    secrets: tuple[SecretName, ...] = ()


class Http(Section):
    """Metrics, health and the status page."""

    host: Text = "127.0.0.1"
    port: Port = 9464
    page: bool = True


class Log(Section):
    """The daemon's own log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


class Settings(Section):
    """Everything an operator can decide. Made by `load_settings`; frozen."""

    worker: Worker
    capacity: Capacity
    amqp: Amqp = Amqp()
    engine: Engine
    limits: LimitsSection = LimitsSection()
    stacks: StackFolder = StackFolder()
    code: Code = Code()
    secrets: Secrets = Secrets()
    network: Networks = Networks()
    warm: Warm = Warm()
    history: History = History()
    tenants: Mapping[Word, Tenant] = Field(default_factory=dict)
    http: Http = Http()
    log: Log = Log()

    @property
    def warm_memory(self) -> Bytes:
        """The most that idle warm containers may hold."""
        return self.warm.memory.of(self.capacity.memory)

    def effective(self) -> str:
        """The whole tree as TOML, with passwords masked."""
        return to_toml(self.model_dump(by_alias=True))

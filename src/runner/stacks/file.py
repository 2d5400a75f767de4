"""`stack.toml`: what an operator says of a stack beside its Dockerfile. For people: docs/stacks.md."""

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from runner.destination import Destination, parse_destination
from runner.errors import ConfigError
from runner.job import LimitsRequest, Network
from runner.settings.faults import describe
from runner.settings.fields import Count, Cpus, Duration, Memory, SecretName, Section, Size, Span, Whole
from runner.units import quoted

FILE = "stack.toml"

_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*", re.ASCII)
_NAME_MAX = 40
_NUMBERS = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_ID_MAX = 2**31 - 1
_PINNED = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*@sha256:[0-9a-f]{64}", re.ASCII)


def is_stack_name(name: str) -> bool:
    """Whether a stack may be called that."""
    return len(name) <= _NAME_MAX and bool(_NAME.fullmatch(name))


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _user(value: object) -> object:
    """Numbers may be written as such; bool is one for Python only."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_NEVER = frozenset(
    {
        *("ALL", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_RESOURCE", "BPF"),
        *("DAC_READ_SEARCH", "PERFMON"),
    }
)
"""Capabilities that undo the sandbox (capabilities(7)): with SYS_PTRACE a job could read the memory of the init, with
SYS_RESOURCE lift its limits for files, their length and queues."""


def _known_user(value: str) -> str:
    numbers = _NUMBERS.fullmatch(value)
    if numbers and all(int(number) <= _ID_MAX for number in numbers.groups() if number):
        return value
    if _USER.fullmatch(value):
        return value
    raise ValueError(f'{quoted(value)} is not a user; write a name of the image, "1000" or "1000:1000"')


def _capability(value: str) -> str:
    if value.removeprefix("CAP_") in _NEVER:
        raise ValueError(
            f"{value} cannot be given: a job could forge how it ended, lift its limits, or leave its container"
        )
    return value


def _env(value: Mapping[str, str]) -> Mapping[str, str]:
    for name in value:
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{quoted(name)} is not the name of a variable; it must not be empty or contain =")
        if name.startswith("JOB_"):
            raise ValueError(f"{quoted(name)} is ours; choose a name that does not begin with JOB_")
    return value


def _destination(value: object) -> Destination:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not text; put it in quotes")  # noqa: TRY004 - pydantic wants ValueError
    try:
        return parse_destination(value)
    except ValueError as error:
        raise ValueError(f"{quoted(value)} {error}") from None


def _pinned(value: str) -> str:
    if not _PINNED.fullmatch(value):
        raise ValueError(
            f'{quoted(value)} is no pinned image; write "<repository>@sha256:<64 hex digits>", no tag, and the'
            " repository as it is called under stacks.registry"
        )
    return value


def _secret(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _distinct(value: "tuple[Secret, ...]") -> "tuple[Secret, ...]":
    names = [secret.name for secret in value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{quoted(twice[0])} stands here twice; leave one")
    return value


Text = Annotated[str, AfterValidator(_text)]
Word = Annotated[str, Field(min_length=1), AfterValidator(_text)]
Allowed = Annotated[Destination, BeforeValidator(_destination)]
"""A destination, written as text."""
Command = Annotated[tuple[Text, ...], Field(min_length=1)]


class LogFlood(StrEnum):
    """What becomes of a job that writes more than its `log_bytes`."""

    TRUNCATE = "truncate"
    KILL = "kill"


class Sockets(StrEnum):
    """Which sockets a job may open: Unix, TCP and UDP over IP, or all that the engine lets through."""

    ORDINARY = "ordinary"
    ALL = "all"


class StackLimits(Section):
    """The limits of a job that names none itself."""

    cpus: Cpus | None = None
    memory: Memory | None = None
    disk: Size | None = None
    pids: Count | None = None
    scratch: Size | None = None
    timeout: Span | None = None
    grace: Duration | None = None
    log_bytes: Size | None = None


class Secret(Section):
    """A secret that the stack's jobs get; `shared` where one value serves all tenants."""

    name: SecretName
    shared: bool = False


class StackFile(Section):
    """A stack as its operator describes it."""

    description: Text = ""
    image: Annotated[str, AfterValidator(_pinned)] | None = None
    command: Command | None = None
    user: Annotated[str, AfterValidator(_known_user), BeforeValidator(_user)] = "65534:65534"
    network: Network = Network.NONE
    env: Annotated[Mapping[str, Text], AfterValidator(_env)] = Field(default_factory=dict)
    limits_section: StackLimits = Field(default=StackLimits(), alias="limits")
    warm: Whole = 0
    smoke: Command | None = None
    read_only: bool = True
    cap_add: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z_]+$"), AfterValidator(_capability)], ...] = ()
    devices: tuple[Annotated[str, Field(pattern=r"^/dev(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$")], ...] = ()
    secrets: Annotated[tuple[Annotated[Secret, BeforeValidator(_secret)], ...], AfterValidator(_distinct)] = ()
    runtime: Word | None = None
    allow: tuple[Allowed, ...] = ()
    log_flood: LogFlood = LogFlood.TRUNCATE
    sockets: Sockets = Sockets.ORDINARY

    @property
    def limits(self) -> LimitsRequest:
        """The limits that the stack names."""
        return LimitsRequest(**dict(self.limits_section))

    @property
    def numeric_user(self) -> tuple[int, int] | None:
        """The uid and gid, or None for a user that only the image knows. A uid without a gid stands for both."""
        numbers = _NUMBERS.fullmatch(self.user)
        return (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else None


def read_stack_file(path: Path) -> StackFile:
    """The file at `path`. Raises `ConfigError`, each fault with the file's name, the key and the remedy."""
    try:
        return StackFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = describe(error, StackFile)
    except tomllib.TOMLDecodeError as error:
        faults = [f"{error}; this is not TOML"]
    except UnicodeDecodeError:
        faults = ["is not UTF-8 text"]
    except OSError as error:
        faults = [f"cannot be read: {error.strerror}"]
    raise ConfigError(*(f"{path}: {fault}" for fault in faults))

"""The kinds of values that settings and stack files have. Each says in its refusal what would be right."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from runner.job import Bytes
from runner.plan import CPUS_MIN, MEMORY_MIN
from runner.sources import parse_source
from runner.units import format_duration, parse_duration, parse_size, quoted, spell_size

_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_WORD_RULE = "write at most 40 of a-z, 0-9, _ and -, the first a letter or digit"
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_UIDS = re.compile(r"([0-9]{1,10})-([0-9]{1,10})", re.ASCII)
_UID_MAX = 2**31 - 1
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?", re.ASCII)
_MASK = "****"


class Section(BaseModel):
    """A part of a configuration file: immutable, and with no room for what we do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Portion:
    """An amount of memory: so many bytes, or a part of a whole that is known later."""

    size: Bytes | None = None
    percent: float | None = None

    def of(self, whole: Bytes) -> Bytes:
        """The amount, where `whole` is all there is."""
        return Bytes(int(whole * self.percent / 100)) if self.percent is not None else self.size or Bytes(0)

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent is not None else str(spell_size(self.size or 0))


def _number(value: object) -> object:
    """The environment has only text; what stands for a plain number there counts as one."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _duration(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else parse_duration(_number(value))


def _span(value: object) -> timedelta:
    span = _duration(value)
    if not span:
        raise ValueError("must be longer than 0")
    return span


def _size(value: object) -> Bytes:
    return parse_size(_number(value))


def _memory(value: object) -> Bytes:
    memory = _size(value)
    if memory < MEMORY_MIN:
        raise ValueError(f'{quoted(value)} is too little; the engine needs at least "{spell_size(MEMORY_MIN)}"')
    return memory


def _portion(value: object) -> Portion:
    if isinstance(value, Portion):
        return value
    if not (isinstance(value, str) and value.endswith("%")):
        return Portion(size=_size(value))
    percent = value.removesuffix("%")
    if not _NUMBER.fullmatch(percent) or float(percent) > 100:  # noqa: PLR2004 - a percentage
        raise ValueError(f'{quoted(value)} is not a part of the whole; write for example "25%" or "2g"')
    return Portion(percent=float(percent))


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not a word; {_WORD_RULE}")
    return value


def _secret_name(value: str) -> str:
    if not _SECRET_NAME.fullmatch(value):
        rule = "write at most 64 letters, digits, _, . and -, the first a letter, a digit or _"
        raise ValueError(f"{quoted(value)} is not the name of a secret; {rule}")
    return value


def _plain(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{quoted(value)} is not a number")  # noqa: TRY004 - pydantic wants ValueError
    return value


_REGISTRY = re.compile(
    r"([a-z0-9]+([.-][a-z0-9]+)*\.[a-z0-9]+|localhost|\[[0-9a-f:]+\])(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*",
    re.ASCII,
)


def _registry(value: str) -> str:
    if not _REGISTRY.fullmatch(value):
        raise ValueError(
            f'{quoted(value)} is not a registry; write "registry.example.com", perhaps with a port and a path'
            ' as in "registry.example.com:5000/team", and no user (stacks.registry_auth)'
        )
    return value


def _folder(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f'{quoted(str(value))} is not an absolute path; begin it with "/"')
    return value


@dataclass(frozen=True, slots=True)
class UidRange:
    """User numbers, from the first to the last."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def numbers(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)


def _uids(value: object) -> UidRange:
    match = value if isinstance(value, UidRange) else _UIDS.fullmatch(str(value))
    if isinstance(match, UidRange):
        return match
    if match and 0 < int(match[1]) < int(match[2]) <= _UID_MAX:
        return UidRange(int(match[1]), int(match[2]))
    raise ValueError(f'{quoted(value)} is not a range of user numbers without root; write for example "200000-265535"')


def _either(word: str, parse: Callable[[Any], object]) -> Callable[[Any], object]:
    """A validator that reads `word` as None, and leaves the rest to `parse`."""
    return lambda value: None if value is None or value == word else parse(value)


def _or(word: str, write: Callable[[Any], object]) -> PlainSerializer:
    """The way back from `_either`."""
    return PlainSerializer(lambda value: word if value is None else write(value))


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _broker(value: str) -> str:
    if not _is_broker(value):
        raise ValueError(
            "is not the address of a broker; write for example amqp://user:password@host:5672/vhost, "
            "with @, /, ? and # in a password as %40, %2F, %3F and %23"
        )
    return value


def _is_broker(url: str) -> bool:
    """Whether we can tell the password from the rest: a bare / or ? in it would be read as host and path, and shown."""
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return whole and parts.scheme in {"amqp", "amqps"} and "@" not in parts.path + parts.query and not parts.fragment


def mask_password(url: str) -> str:
    """The address without the password in it, for people and logs."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    return urlunsplit(parts._replace(netloc=name + (colon and f":{_MASK}") + at + host, query=parts.query and _MASK))


def _masked(urls: tuple[str, ...]) -> list[str]:
    return [mask_password(url) for url in urls]


def _engine_url(value: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if not (parts.path if parts.scheme == "unix" else parts.scheme in {"http", "tcp"} and parts.hostname):
        raise ValueError(f"{quoted(value)} is not the address of an engine; write unix:///path or tcp://host:port")
    return value


def _address(value: object) -> IPv4Address:
    if isinstance(value, IPv4Address):
        return value
    try:
        return IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{quoted(value)} is not an IPv4 address") from None


def _range(value: object) -> IPv4Network:
    try:
        return IPv4Network(value if isinstance(value, IPv4Network) else str(value))
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a range of IPv4 addresses; write for example 10.90.0.0/16") from None


def _source(value: str) -> str:
    try:
        source = parse_source(value)
    except ValueError as error:
        raise ValueError(f"{quoted(value)} is not a source of code: it {error}") from None
    if source.path.endswith("/") and "%" not in source.path and "?" not in value:
        return value
    raise ValueError(f"{quoted(value)} is not a source of code; write https://host/path/ or file:///folder/")


_Duration = PlainSerializer(format_duration)
_Size = PlainSerializer(spell_size)
_Text = PlainSerializer(str)

Duration = Annotated[timedelta, BeforeValidator(_duration), _Duration]
"""A duration, perhaps 0."""
Span = Annotated[timedelta, BeforeValidator(_span), _Duration]
"""A duration longer than 0."""
SpanOrOff = Annotated[timedelta | None, BeforeValidator(_either("off", _span)), _or("off", format_duration)]
"""A duration longer than 0, or the word "off", which is None."""
Size = Annotated[Bytes, BeforeValidator(_size), _Size]
"""A size, perhaps 0."""
Memory = Annotated[Bytes, BeforeValidator(_memory), _Size]
"""A size that the engine takes as a memory limit."""
MemoryOrNone = Annotated[Bytes | None, BeforeValidator(_either("none", _memory)), _or("none", spell_size)]
"""A memory limit, or the word "none", which is None."""
MemoryPart = Annotated[Portion, BeforeValidator(_portion), _Text]
"""A size, or a percentage of what there is."""
Whole = Annotated[int, BeforeValidator(_plain), Field(ge=0)]
"""How many, perhaps none."""
Count = Annotated[int, BeforeValidator(_plain), Field(ge=1)]
"""How many, at least one."""
CountOrNone = Annotated[Count | None, BeforeValidator(_either("none", _plain)), _or("none", int)]
"""How many, at least one, or the word "none", which is None."""
Number = Annotated[float, BeforeValidator(_plain), Field(gt=0)]
"""A number above 0."""
Cpus = Annotated[float, BeforeValidator(_plain), Field(ge=CPUS_MIN)]
"""A number of CPUs that the engine takes as a limit."""
CpusOrNone = Annotated[Cpus | None, BeforeValidator(_either("none", _plain)), _or("none", float)]
"""A number of CPUs, or the word "none", which is None."""
UidsOrNone = Annotated[UidRange | None, BeforeValidator(_either("none", _uids)), _or("none", str)]
"""A range of user numbers, or the word "none", which is None."""
Ipv4Range = Annotated[IPv4Network, BeforeValidator(_range), _Text]
"""A range of IPv4 addresses."""
Ipv4Address = Annotated[IPv4Address, BeforeValidator(_address), _Text]
"""An IPv4 address."""
Port = Annotated[int, BeforeValidator(_plain), Field(ge=0, le=65535)]
"""A TCP port; 0 takes any free one."""
Text = Annotated[str, Field(min_length=1)]
"""Some text, not empty."""
Word = Annotated[str, AfterValidator(_word)]
"""A word of the contract: a pool, a tenant, a worker's name."""
SecretName = Annotated[str, AfterValidator(_secret_name)]
"""The name of a secret, and of the file that holds it."""
Folder = Annotated[Path, AfterValidator(_folder), _Text]
"""An absolute path."""
BrokerUrl = Annotated[str, AfterValidator(_broker)]
"""An AMQP address."""
BrokerUrls = Annotated[
    tuple[BrokerUrl, ...], BeforeValidator(_one_or_more), Field(min_length=1, repr=False), PlainSerializer(_masked)
]
"""One AMQP address or several. They are masked wherever the tree is shown or dumped."""
EngineUrl = Annotated[str, AfterValidator(_engine_url)]
"""The address of the engine's API."""
Registry = Annotated[str, AfterValidator(_registry)]
"""The address of a registry, perhaps with the beginning of its repositories' names."""
CodeSource = Annotated[str, AfterValidator(_source)]
"""What a job's `code.url` may begin with."""

"""What each kind of field of a job's message may hold."""

import binascii
import re
from datetime import timedelta
from functools import partial
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictStr,
    WithJsonSchema,
)

from runner.job import Outcome, is_revision
from runner.sources import parse_source
from runner.units import format_duration, parse_duration, parse_size, quoted

SHA256 = re.compile(r"[0-9a-f]{64}")
_STACK = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
PIDS_MAX = 2**22
"""The most that a Linux kernel can have."""


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character; take it out")
    return sendable(value)


def sendable(value: str) -> str:
    """Text that UTF-8 has bytes for. Raises `ValueError`, as all of these do, which says what would be right."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no character; take it out") from None
    return value


def matching(pattern: re.Pattern[str], most: int, right: str, value: str) -> str:
    """Text of a form, of `most` characters; `right` is what it should be."""
    if len(value) > most or not pattern.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not {right}")
    return value


def _more_than_nothing(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("is nothing; name a longer time, or leave it out")
    return value


def at_most(most: timedelta, value: timedelta) -> timedelta:
    """A duration that is not too long."""
    if value > most:
        raise ValueError(f"{format_duration(value)} is too long; the most is {format_duration(most)}")
    return value


def stack_name(value: str) -> str:
    """A stack, or a pinned revision of one."""
    name, at, revision = value.partition("@")
    matching(_STACK, 40, "the name of a stack, such as python-3.11", name)
    if at and not is_revision(revision):
        if revision in ("current", "previous"):
            raise ValueError(f"@{revision} is no revision; leave it out to get the current one")
        raise ValueError(f"{quoted(revision)} is not a revision, such as r20260101")
    return value


def environment(value: dict[str, str]) -> dict[str, str]:
    """Variables that a job may bring."""
    for name in value:
        if not name or "=" in name:
            raise ValueError(f"{quoted(name)} cannot be the name of a variable")
        if name.startswith("JOB_"):
            raise ValueError(f"{quoted(name)} is reserved: names that start with JOB_ are set by the runner")
    return value


def retry_reason(value: str) -> str:
    """An outcome or an exit code after which a job starts again."""
    known = (*(outcome.value for outcome in Outcome), "exit:N with N from 0 to 255")
    if value.startswith("exit:"):
        if value[5:].isdecimal() and value[5:].isascii() and int(value[5:]) <= 255:  # noqa: PLR2004 - an exit code
            return value
    elif value in set(Outcome):
        return value
    raise ValueError(f"{quoted(value)} is no reason to retry; choose from {', '.join(known)}")


def archive(value: object) -> bytes:
    """The bytes of an archive in base64."""
    if not isinstance(value, str):
        raise ValueError("is not a string; write a tar.gz or a zip in base64")  # noqa: TRY004 - pydantic wants it
    try:
        raw = binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise ValueError("is not base64 (RFC 4648, section 4, padded, on one line)") from None
    if not raw:
        raise ValueError("is empty; write a tar.gz or a zip in base64, or leave out code")
    return raw


def address(value: str) -> str:
    """Where a package of code may lie."""
    parse_source(value)
    return value


Text = Annotated[StrictStr, AfterValidator(_text)]
Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "10m", "1h"]}),
]
Span = Annotated[Duration, AfterValidator(_more_than_nothing)]
Wait = Annotated[Duration, AfterValidator(partial(at_most, timedelta(days=12)))]
Size = Annotated[
    int, PlainValidator(parse_size), WithJsonSchema({"type": ["string", "integer"], "examples": ["64m", "1g"]})
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

"""Durations and sizes as people write them: "90s", "10m", "64m", "1g". No I/O."""

import json
import re
from datetime import timedelta

from runner.job import Bytes

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([a-z])", re.ASCII)

DURATION_MAX = timedelta(days=3650)
"""Longer than any job, lease or retention; what is above is a slip of the pen."""
SIZE_MAX = Bytes(2**60)
"""Larger than any machine."""


def parse_duration(value: object) -> timedelta:
    """A duration from "90s", "10m", "1h", "7d" or a number of seconds. Raises `ValueError` saying what is right."""
    seconds = _number(value, _SECONDS)
    if seconds is None:
        raise ValueError(f'{quoted(value)} is not a duration; write for example "90s", "10m" or a number of seconds')
    if not 0 <= seconds <= DURATION_MAX.total_seconds():
        raise ValueError(f"{quoted(value)} is not a duration between 0 and {format_duration(DURATION_MAX)}")
    return timedelta(seconds=seconds)


def parse_size(value: object) -> Bytes:
    """A size from "64m", "1g" (powers of 1024) or a number of bytes. Raises `ValueError` saying what is right."""
    size = _number(value, _BYTES)
    if size is None or size != size // 1:
        raise ValueError(f'{quoted(value)} is not a size; write for example "64m", "1g" or a whole number of bytes')
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"{quoted(value)} is not a size between 0 and {format_size(SIZE_MAX)}")
    return Bytes(int(size))


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads as the same duration."""
    seconds = value.total_seconds()
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def format_size(value: int) -> str:
    """A size for a sentence: `256 MiB`, `1.5 GiB`, `17 bytes`."""
    for unit, name in (("t", "TiB"), ("g", "GiB"), ("m", "MiB"), ("k", "KiB")):
        if value >= _BYTES[unit]:
            return f"{value / _BYTES[unit]:.1f}".removesuffix(".0") + f" {name}"
    return f"{value} bytes"


def spell_size(value: int) -> str | int:
    """The shortest form that `parse_size` reads as the same size: `"256m"`, or the number of bytes."""
    for unit in ("t", "g", "m", "k"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]}{unit}"
    return value


def quoted(value: object) -> str:
    """A value as a fault names it: on one line, in ASCII, and not too long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - a line's worth


def _number(value: object, units: dict[str, int]) -> float | None:
    """The number of the smallest unit that `value` says; None when it says nothing that we understand."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    match = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        return None
    number = match[1]
    return (float(number) if "." in number else int(number)) * units[match[2]]

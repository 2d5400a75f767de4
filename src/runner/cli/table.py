"""Facts for a person, in columns."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they have to be; the last one as long as it is."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def facts(named: Mapping[str, str | None]) -> list[str]:
    """A line for each fact that is known."""
    width = max((len(name) for name in named), default=0)
    return [f"  {name:{width}}  {told}" for name, told in named.items() if told]


def ago(time: datetime | None, now: datetime) -> str:
    """How long something is past, in one unit: `42s`, `3m`, `5h`, `2d`."""
    if time is None:
        return "-"
    seconds = max(0, round((now - time).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def clock(time: object) -> str | None:
    """A time of an event as people read it, in UTC; None for none."""
    parsed = parse_time(time)
    return f"{parsed.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if parsed else None


def parse_time(time: object) -> datetime | None:
    """A time of an event; None for none."""
    try:
        return datetime.fromisoformat(time) if isinstance(time, str) else None
    except ValueError:
        return None


def later(time: object, delay: object) -> datetime | None:
    """The time that is `delay` seconds after a time of an event."""
    parsed = parse_time(time)
    return parsed + timedelta(seconds=delay) if parsed and isinstance(delay, int | float) else None

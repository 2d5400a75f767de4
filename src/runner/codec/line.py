"""A line of a log, and how times are written."""

from datetime import UTC, datetime

from runner.job import (
    Json,
    Line,
)


def format_time(time: datetime | None) -> str | None:
    """RFC 3339, UTC, microseconds."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode_line(line: Line, time: str | None = None) -> dict[str, Json]:
    """A line as batches and tails hold it. `time` is its time as text, if that is known already."""
    body: dict[str, Json] = {"t": time or format_time(line.time), "s": line.stream.value, "m": line.text}
    if line.partial:
        body["p"] = True
    return body

"""Batches of log lines as they go out."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime

from runner.codec.event import VERSION
from runner.codec.line import encode_line, format_time
from runner.job import Json, Line
from runner.ports import Batch


def encode_batch(batch: Batch) -> bytes:
    """A batch of log lines; one for the live key has no `seq`."""
    body: dict[str, Json] = {"v": VERSION, "id": batch.key.id, "claim": batch.claim}
    if batch.seq is not None:
        body["seq"] = batch.seq
    body["off"] = {"out": batch.out, "err": batch.err}
    body["lines"] = list(_lines(batch.lines))
    if batch.end:
        body["end"] = True
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _lines(lines: Iterable[Line]) -> Iterator[Json]:
    """What was read at once has one time, and to write it takes as long as all the rest of a line."""
    known: datetime | None = None
    text: str | None = None
    for line in lines:
        if line.time is not known:
            known, text = line.time, format_time(line.time)
        yield encode_line(line, text)

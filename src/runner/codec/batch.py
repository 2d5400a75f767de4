"""Batches of log lines as they go out."""

import json

from runner.codec.event import VERSION
from runner.codec.line import encode_line
from runner.job import (
    Json,
)
from runner.ports import Batch


def encode_batch(batch: Batch) -> bytes:
    """A batch of log lines; one for the live key has no `seq`."""
    body: dict[str, Json] = {"v": VERSION, "id": batch.key.id, "claim": batch.claim}
    if batch.seq is not None:
        body["seq"] = batch.seq
    body["off"] = {"out": batch.out, "err": batch.err}
    body["lines"] = [encode_line(line) for line in batch.lines]
    if batch.end:
        body["end"] = True
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

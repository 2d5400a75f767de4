"""What the workers tell about a job, as a client reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runner.errors import BrokerError
from runner.job import Blame, EventKind, Line, Outcome, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `body` is the event as it was published, with all its fields.

    `kind` is an `EventKind`, or another word when the worker is newer than this client.
    """

    kind: str
    claim: str
    seq: int
    attempt: int
    worker: str
    time: datetime
    reason: str | None
    body: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether this is the job's last event."""
        return self.kind == EventKind.FINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a job ended. `body` is the event `finished` as it was published, with times, seconds, usage and more."""

    id: str
    tenant: str
    outcome: Outcome
    reason: str
    blame: Blame
    exit_code: int | None
    signal: int | None
    oom_seen: bool
    output: Any
    logs_complete: bool
    tail: tuple[Line, ...]
    body: Mapping[str, Any]

    @property
    def succeeded(self) -> bool:
        """Whether the job did what it was meant to do."""
        return self.outcome is Outcome.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBatch:
    """Some lines of a log. `out` and `err` count each stream's raw bytes before it.

    `seq` is None for what is shown live although it may be left out of the log that is kept. `body` is the JSON text.
    """

    claim: str
    seq: int | None
    out: int
    err: int
    end: bool
    body: str

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines, in order."""
        return _lines(json.loads(self.body)["lines"])


def decode_event(raw: bytes) -> Event:
    """The event in a message. Raises `BrokerError` when it is none."""
    try:
        body = json.loads(raw)
        return Event(
            kind=str(body["event"]),
            claim=str(body["claim"]),
            seq=int(body["seq"]),
            attempt=int(body["attempt"] or 0),
            worker=str(body["worker"]),
            time=datetime.fromisoformat(body["time"]),
            reason=body["reason"],
            body=body,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokerError(f"an event makes no sense ({error!r}); are the workers of another version?") from error


def decode_result(event: Event) -> Result:
    """What the event `finished` says. Raises `BrokerError` when it makes no sense."""
    body = event.body
    try:
        return Result(
            id=body["id"],
            tenant=body["tenant"],
            outcome=Outcome(body["outcome"]),
            reason=body["reason"] or "",
            blame=Blame(body["blame"]),
            exit_code=body["exit_code"],
            signal=body["signal"],
            oom_seen=bool(body["oom_seen"]),
            output=body["output"],
            logs_complete=bool(body["logs"]["complete"]),
            tail=_lines(body["tail"]),
            body=body,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BrokerError(f"a result makes no sense ({error!r}); are the workers of another version?") from error


def decode_batch(raw: bytes) -> LogBatch:
    """The batch in a message. Raises `BrokerError` when it is none."""
    try:
        text = raw.decode()
        body = json.loads(text)
        batch = LogBatch(
            claim=str(body["claim"]),
            seq=body.get("seq"),
            out=int(body["off"]["out"]),
            err=int(body["off"]["err"]),
            end=bool(body.get("end")),
            body=text,
        )
        _lines(body["lines"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokerError(f"a part of a log makes no sense ({error!r}); are the workers of another version?") from error
    return batch


def _lines(told: list[Mapping[str, Any]]) -> tuple[Line, ...]:
    return tuple(
        Line(
            time=datetime.fromisoformat(line["t"]),
            stream=Stream(line["s"]),
            text=line["m"],
            partial=bool(line.get("p")),
        )
        for line in told
    )

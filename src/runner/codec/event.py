"""Events as they go out."""

import json
from dataclasses import dataclass
from datetime import datetime

from pydantic import (
    TypeAdapter,
)

from runner.codec.line import encode_line, format_time
from runner.job import (
    EventKind,
    Job,
    Json,
    LogStats,
    Reply,
    Times,
    Usage,
)
from runner.ports import Event

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event as it goes out: its address, and its body. `message_id` stays the same however often it is sent."""

    key: str
    message_id: str
    kind: EventKind
    tenant: str
    time: datetime
    body: str
    reply: Reply | None = None
    traceparent: str | None = None

    @property
    def claim(self) -> str:
        """Whose event it is."""
        return self.message_id.split("/")[2]

    def to_json(self) -> str:
        """For keeping."""
        return _NOTICE.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Notice":
        """As it was kept."""
        return _NOTICE.validate_json(text)


_NOTICE = TypeAdapter(Notice)


def encode_event(event: Event) -> Notice:
    """An event as it goes out."""
    submission = event.submission
    tenant = submission.route.tenant if isinstance(submission, Job) else submission.tenant
    job_id = submission.key.id if isinstance(submission, Job) else submission.id
    return Notice(
        key=f"{tenant}.{job_id}.{event.kind}",
        message_id=f"{tenant}/{job_id}/{event.claim}/{event.seq}",
        kind=event.kind,
        tenant=str(tenant),
        time=event.time,
        body=_event_body(event),
        reply=submission.reply if event.kind is EventKind.FINISHED else None,
        traceparent=submission.traceparent if isinstance(submission, Job) else None,
    )


def _event_body(event: Event) -> str:
    """An event's body. Every field is always there, null where it is unknown or has no meaning."""
    submission = event.submission
    origin = submission.route if isinstance(submission, Job) else submission
    body = {
        "v": VERSION,
        "event": event.kind.value,
        "id": submission.key.id if isinstance(submission, Job) else submission.id,
        "tenant": origin.tenant,
        "name": submission.name,
        "pool": origin.pool,
        "priority": origin.priority,
        "stack": str(submission.stack) if submission.stack else None,
        "revision": event.stack.revision if event.stack else None,
        "worker": event.worker,
        "attempt": event.attempt,
        "claim": event.claim,
        "seq": event.seq,
        "time": format_time(event.time),
        "labels": dict(submission.labels),
        "container": event.container,
        "image": event.stack.image if event.stack else None,
        "warm": event.warm,
        "deadline": format_time(event.deadline),
        "progress": event.progress,
        "delay": event.delay.total_seconds() if event.delay is not None else None,
        "outcome": event.outcome.value if event.outcome else None,
        "reason": event.stop.value if event.stop else event.reason,
        **_result(event),
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _result(event: Event) -> dict[str, Json]:
    submission, result, claimed, started = event.submission, event.result, event.claimed, event.started
    verdict = result.verdict if result else None
    times = result.times if result else Times(published=submission.published, claimed=claimed, started=started)
    fields: dict[str, Json] = {
        "blame": verdict.blame.value if verdict else None,
        "exit_code": verdict.exit_code if verdict else None,
        "signal": verdict.signal if verdict else None,
        "oom_seen": verdict.oom_seen if verdict else None,
        "times": {
            "published": format_time(times.published),
            "claimed": format_time(times.claimed),
            "started": format_time(times.started),
            "ended": format_time(times.ended),
        },
        "seconds": _seconds(times),
        "usage": _usage(result.usage if result else Usage()),
        "logs": _log_stats(result.logs if result else None),
        "output": verdict.output if verdict else None,
        "tail": [encode_line(line) for line in result.tail] if result else [],
    }
    if verdict is not None:
        fields |= {"outcome": verdict.outcome.value, "reason": verdict.reason}
    return fields


def _seconds(times: Times) -> dict[str, Json]:
    def between(start: datetime | None, end: datetime | None) -> float | None:
        return max(0.0, round((end - start).total_seconds(), 6)) if start and end else None

    return {
        "queued": between(times.published, times.claimed),
        "prepare": between(times.claimed, times.started),
        "run": between(times.started, times.ended),
        "total": between(times.published, times.ended),
    }


def _usage(usage: Usage) -> dict[str, Json]:
    return {"cpu_seconds": usage.cpu_seconds, "memory_peak_bytes": usage.memory_peak_bytes}


def _log_stats(stats: LogStats | None) -> dict[str, Json]:
    return {
        "stdout_bytes": stats.stdout_bytes if stats else None,
        "stderr_bytes": stats.stderr_bytes if stats else None,
        "omitted_bytes": stats.omitted_bytes if stats else None,
        "omitted_lines": stats.omitted_lines if stats else None,
        "complete": stats.complete if stats else None,
    }

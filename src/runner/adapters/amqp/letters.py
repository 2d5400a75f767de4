"""What a dead letter says: whose job it was, why nobody ran it, and where it would have to go again. Pure.

A worker that buries a message says so in headers (`DeadHeader`) of a message of its own. What the broker buries keeps
its submitter's headers, which prove nothing, beside the broker's `x-death`; of those the broker's routing key counts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from aio_pika.abc import AbstractIncomingMessage

from runner.adapters.amqp.names import DeadHeader, Header, Names
from runner.codec import ID, parse_route
from runner.job import DeadCode, Json, Route

EXPIRED, MAXLEN = "expired", "maxlen"
"""Codes that the broker has for burials of its own, beside those of `DeadCode`."""

_DEATHS = {
    "delivery_limit": (
        DeadCode.DELIVERY_LIMIT.value,
        "was taken from {queue} again and again, and no worker that took it lived to settle it",
    ),
    "rejected": (DeadCode.REJECTED.value, "a consumer of {queue} rejected it; our workers never do that"),
    "expired": (EXPIRED, "its time to live ran out in {queue}"),
    "maxlen": (MAXLEN, "{queue} was full"),
}
"""What the broker's own reasons mean: a code, and a sentence about the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter. `id` is its own, `job_id` that of the job in it, if it can be told.

    `route` is where the job was sent, None when that was nowhere that a job can be sent to. `buried` is None where
    nobody wrote it down.
    """

    id: str
    job_id: str | None
    tenant: str | None
    route: Route | None
    came_by: str
    code: str
    reason: str
    buried: datetime | None
    body: bytes

    def fields(self) -> dict[str, Json]:
        """For people's tools; the body is text here, which it may not have been."""
        return {
            "id": self.id,
            "job": self.job_id,
            "tenant": self.tenant,
            "code": self.code,
            "reason": self.reason,
            "from": self.came_by,
            "buried": self.buried.isoformat() if self.buried is not None else None,
            "bytes": len(self.body),
        }


def read_letter(names: Names, message: AbstractIncomingMessage) -> Letter:
    """What a message of the dead letters' queue says."""
    headers = message.headers
    death = _last_death(headers)
    came_by = message.routing_key or ""
    if death is None and DeadHeader.CODE in headers:
        came_by = str(headers.get(DeadHeader.FROM) or "")
        code, reason = str(headers[DeadHeader.CODE]), str(headers.get(DeadHeader.REASON) or "")
    else:
        came_by = _internal_route(came_by, headers)
        code, reason = _explained(names, death, came_by)
    route = _route(came_by)
    time = death.get("time") if death is not None else message.timestamp
    return Letter(
        id=message.message_id or f"d{hashlib.sha256(message.body).hexdigest()[:16]}",
        job_id=_job_id(message, ours=death is None),
        tenant=route.tenant if route is not None else None,
        route=route,
        came_by=came_by,
        code=code,
        reason=reason,
        buried=_aware(time) if isinstance(time, datetime) else None,
        body=message.body,
    )


def _last_death(headers: Mapping[str, object]) -> Mapping[str, object] | None:
    """The latest entry of `x-death`, which the broker puts first."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, dict) else None


def _internal_route(came_by: str, headers: Mapping[str, object]) -> str:
    """The job's own routing key. Only leases travel under a single word, and only workers can make one."""
    return came_by if "." in came_by else str(headers.get(Header.ROUTE) or came_by)


def _explained(names: Names, death: Mapping[str, object] | None, came_by: str) -> tuple[str, str]:
    """Code and reason of what no worker buried."""
    last = ".".join(came_by.split(".")[-3:])
    nowhere = (DeadCode.UNROUTABLE.value, f"no queue takes {last!r} any more; its pool or its tenant's queue is gone")
    if death is None:
        return nowhere
    queue, why, count = str(death.get("queue")), str(death.get("reason")), death.get("count")
    if queue.startswith(f"{names.ns}.delay."):
        return nowhere  # its delay was over, and the broker says of each level that its time ran out
    code, sentence = _DEATHS.get(why, (why, "the broker gave it up in {queue}"))
    times = f" ({count} times by now)" if isinstance(count, int) and count > 1 else ""
    return code, f"the broker buried it: {sentence.format(queue=queue)}{times}"


def _route(came_by: str) -> Route | None:
    try:
        return parse_route(came_by)
    except ValueError:
        return None


def _job_id(message: AbstractIncomingMessage, *, ours: bool) -> str | None:
    """The job's id, by the rules for submissions."""
    told = (
        message.headers.get(DeadHeader.ID) if ours else None,
        _own_id(message.body),
        None if ours else message.headers.get(Header.SUBMITTED_AS),
        None if ours else message.message_id,
    )
    return next((job_id for job_id in told if isinstance(job_id, str) and ID.fullmatch(job_id)), None)


def _own_id(body: bytes) -> object:
    try:
        job = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return job.get("id") if isinstance(job, dict) else None


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

"""From a message to a job, or to why it is none."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import (
    ValidationError,
)

from runner.codec.faults import describe
from runner.codec.ids import ID, new_id
from runner.codec.message import JobMessage, RetryMessage
from runner.codec.strict_json import parse_object
from runner.job import (
    DeadCode,
    Invalid,
    Job,
    JobKey,
    LimitsRequest,
    Outcome,
    Reply,
    RetryPolicy,
    Route,
    StackRef,
)

REPLY_TO_MAX = 200
"""The most bytes that `reply_to` may have."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CLOCK_AHEAD = timedelta(seconds=60)
_CLOCK_BEHIND = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a message says beside its body. `published` is the internal header's or the property's, if any."""

    route: Route
    message_id: str | None = None
    published: datetime | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


def decode_job(body: bytes, envelope: Envelope, now: datetime) -> Job | Invalid:
    """The job that a message holds, or why it is none. `now` is when it arrived."""
    published = _published(envelope.published, now)
    reply = _reply(envelope)
    fallback = envelope.message_id if envelope.message_id and ID.fullmatch(envelope.message_id) else None
    blank = Invalid(
        code=DeadCode.REJECTED,
        reason="",
        id=fallback or new_id(),
        tenant=envelope.route.tenant,
        pool=envelope.route.pool,
        priority=envelope.route.priority,
        published=published,
        reply=reply,
    )
    if envelope.reply_to is not None and reply is None:
        return replace(blank, reason=f"reply_to has more than {REPLY_TO_MAX} bytes; use a shorter queue name")
    try:
        fields = parse_object(body)
    except ValueError as error:
        return replace(blank, code=DeadCode.UNDECODABLE, reason=str(error))
    try:
        message = JobMessage.model_validate(fields)
    except ValidationError as error:
        return _refused(blank, describe(error), fields)
    except ValueError as error:
        return _refused(blank, str(error), fields)
    return _job(message, message.id or blank.id, envelope, published, reply)


def _published(told: datetime | None, now: datetime) -> datetime:
    if told is None or told > now + _CLOCK_AHEAD or told < now - _CLOCK_BEHIND:
        return now
    return told


def _reply(envelope: Envelope) -> Reply | None:
    if envelope.reply_to is None or len(envelope.reply_to.encode(errors="replace")) > REPLY_TO_MAX:
        return None
    return Reply(to=envelope.reply_to, correlation_id=envelope.correlation_id)


def _refused(blank: Invalid, reason: str, fields: Mapping[str, Any]) -> Invalid:
    """What can be told of a message that is JSON but no job."""
    own = fields.get("id")
    return replace(
        blank,
        reason=reason,
        id=own if isinstance(own, str) and ID.fullmatch(own) else blank.id,
        labels=_told_labels(fields.get("labels")),
        name=_told_text(fields.get("name")),
        stack=_told_text(fields.get("stack")),
    )


def _told_text(value: object) -> str | None:
    return value.encode(errors="replace").decode()[:256] if isinstance(value, str) else None


def _told_labels(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > 16:  # noqa: PLR2004 - the most that a job may have
        return {}
    told = {_told_text(name): _told_text(text) for name, text in value.items()}
    return {name: text for name, text in told.items() if name is not None and text is not None}


def _job(message: JobMessage, job_id: str, envelope: Envelope, published: datetime, reply: Reply | None) -> Job:
    name, _, revision = message.stack.partition("@")
    trace = envelope.traceparent
    return Job(
        key=JobKey(tenant=envelope.route.tenant, id=job_id),
        route=envelope.route,
        stack=StackRef(name=name, revision=revision or None),
        published=published,
        command=tuple(message.command) if message.command is not None else None,
        env=message.env,
        payload=_payload(message),
        stdin=message.stdin.encode() if message.stdin is not None else None,
        code=message.code.value if message.code is not None else None,
        limits=LimitsRequest(**message.limits.model_dump()),
        network=message.network,
        retry=_retry(message.retry),
        delay=message.delay,
        start_within=message.start_within,
        unique=message.unique,
        fence=message.fence,
        labels=message.labels,
        name=message.name,
        reply=reply,
        traceparent=trace if trace and _TRACEPARENT.fullmatch(trace) else None,
    )


def _payload(message: JobMessage) -> bytes | None:
    if "payload" not in message.model_fields_set:
        return None
    if isinstance(message.payload, str):
        return message.payload.encode(errors="surrogatepass")
    return json.dumps(message.payload, ensure_ascii=False).encode(errors="surrogatepass")


def _retry(message: RetryMessage) -> RetryPolicy:
    exits = frozenset(int(reason[5:]) for reason in message.on if reason.startswith("exit:"))
    outcomes = frozenset(Outcome(reason) for reason in message.on if not reason.startswith("exit:"))
    return RetryPolicy(
        max=message.max,
        delay=message.delay,
        factor=message.factor,
        max_delay=message.max_delay,
        outcomes=outcomes,
        exits=exits,
    )

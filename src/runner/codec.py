"""Bytes on the wire to values of the domain, and back. The only place that knows the field names of the wire.

Wire format version 1. What comes in is decoded strictly: a message is a whole job or it is `Invalid`, with a reason
that names the field and says what would be right.
"""

import binascii
import json
import math
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from runner.job import (
    Choices,
    DeadCode,
    EventKind,
    InlineCode,
    Invalid,
    Job,
    JobKey,
    Json,
    LimitsRequest,
    Line,
    LinkedCode,
    LogStats,
    Network,
    Outcome,
    Priority,
    Reply,
    RetryPolicy,
    Route,
    StackRef,
    Times,
    Usage,
)
from runner.ports import Batch, Event
from runner.sources import parse_source
from runner.units import format_duration, parse_duration, parse_size

VERSION = 1
MESSAGE_MAX = 512 * 1024
"""The most bytes that a job's message may have."""
REPLY_TO_MAX = 200
"""The most bytes that `reply_to` may have."""
WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STACK = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PIDS_MAX = 2**22
"""The most that a Linux kernel can have."""
_CLOCK_AHEAD = timedelta(seconds=60)
_CLOCK_BEHIND = timedelta(days=30)
_FAULTS_TOLD = 5
_DIGITS_MAX = 1000
_QUOTED = 80


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character; take it out")
    return _sendable(value)


def _sendable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no character; take it out") from None
    return value


def _matching(pattern: re.Pattern[str], most: int, right: str, value: str) -> str:
    if len(value) > most or not pattern.fullmatch(value):
        raise ValueError(f"{_quote(value)} is not {right}")
    return value


def _more_than_nothing(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("is nothing; name a longer time, or leave it out")
    return value


def _at_most(most: timedelta, value: timedelta) -> timedelta:
    if value > most:
        raise ValueError(f"{format_duration(value)} is too long; the most is {format_duration(most)}")
    return value


def _stack(value: str) -> str:
    name, at, revision = value.partition("@")
    _matching(_STACK, 40, "the name of a stack, such as python-3.11", name)
    if at:
        _matching(_REVISION, 64, "a revision, such as r20260101", revision)
        if revision in ("current", "previous"):
            raise ValueError(f"@{revision} is no revision; leave it out to get the current one")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not name or "=" in name:
            raise ValueError(f"{_quote(name)} cannot be the name of a variable")
        if name.startswith("JOB_"):
            raise ValueError(f"{_quote(name)} is reserved: names that start with JOB_ are set by the runner")
    return value


def _reason(value: str) -> str:
    known = (*(outcome.value for outcome in Outcome), "exit:N with N from 0 to 255")
    if value.startswith("exit:"):
        if value[5:].isdecimal() and value[5:].isascii() and int(value[5:]) <= 255:  # noqa: PLR2004 - an exit code
            return value
    elif value in set(Outcome):
        return value
    raise ValueError(f"{_quote(value)} is no reason to retry; choose from {', '.join(known)}")


def _archive(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("is not a string; write a tar.gz or a zip in base64")  # noqa: TRY004 - pydantic wants it
    try:
        archive = binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise ValueError("is not base64 (RFC 4648, section 4, padded, on one line)") from None
    if not archive:
        raise ValueError("is empty; write a tar.gz or a zip in base64, or leave out code")
    return archive


def _address(value: str) -> str:
    parse_source(value)
    return value


def _quote(value: str) -> str:
    short = value if len(value) <= _QUOTED else value[:_QUOTED] + "…"
    return json.dumps(short)


Text = Annotated[StrictStr, AfterValidator(_text)]
Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "10m", "1h"]}),
]
Span = Annotated[Duration, AfterValidator(_more_than_nothing)]
Wait = Annotated[Duration, AfterValidator(partial(_at_most, timedelta(days=12)))]
Size = Annotated[
    int, PlainValidator(parse_size), WithJsonSchema({"type": ["string", "integer"], "examples": ["64m", "1g"]})
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitsMessage(_Wire):
    """What the job may use; whatever is left out is the stack's or the operator's default."""

    cpus: Annotated[Number, Field(ge=0.01, description="CPUs, for example 0.5")] | None = None
    memory: Annotated[Size, Field(description="for its processes, at least 6m")] | None = None
    disk: Annotated[Size, Field(description="/work, /tmp and shared memory together; it is RAM")] | None = None
    pids: Annotated[StrictInt, Field(ge=1, le=_PIDS_MAX)] | None = None
    scratch: Annotated[Size, Field(description="/scratch on real disk, where the operator allows it")] | None = None
    timeout: Annotated[Span, Field(description="from the start of its process")] | None = None
    grace: Annotated[Duration, Field(description="between SIGTERM and SIGKILL")] | None = None
    log_bytes: Annotated[Size, Field(description="the most log that is kept, both streams together")] | None = None


class RetryMessage(_Wire):
    """When the job is started again after it ended badly."""

    max: Annotated[StrictInt, Field(ge=0, le=100)] = 0
    delay: Annotated[Wait, Field(json_schema_extra={"default": "10s"})] = timedelta(seconds=10)
    factor: Annotated[Number, Field(ge=1, le=100)] = 2.0
    max_delay: Annotated[Wait, Field(json_schema_extra={"default": "10m"})] = timedelta(minutes=10)
    on: list[Annotated[StrictStr, AfterValidator(_reason)]] = ["failed", "oom_killed", "timed_out"]


class CodeMessage(_Wire):
    """A code package, a tar.gz or a zip: either `inline`, or `url` with `sha256`."""

    inline: (
        Annotated[
            bytes,
            PlainValidator(_archive),
            WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
            Field(description="the archive itself"),
        ]
        | None
    ) = None
    url: Annotated[StrictStr, AfterValidator(_address), Field(description="where it is fetched")] | None = None
    sha256: (
        Annotated[
            StrictStr,
            AfterValidator(partial(_matching, _SHA256, 64, "the SHA-256 of an archive: 64 of 0-9 and a-f")),
            Field(description="of the archive at url"),
        ]
        | None
    ) = Field(default=None, validate_default=True)

    @field_validator("url")
    @classmethod
    def _one_of_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("inline") is not None:
            raise ValueError("stands beside inline; leave one of them out")
        return value

    @field_validator("sha256")
    @classmethod
    def _beside_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("url") is not None:
            raise ValueError("is required with url: the SHA-256 of the archive, in lower-case hex")
        if value is not None and info.data.get("url", "") is None:
            raise ValueError("belongs to url; leave it out")
        return value

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.inline is None and self.url is None:
            raise ValueError("is empty; name inline, or url with sha256, or leave out code")
        return self

    @property
    def value(self) -> InlineCode | LinkedCode:
        """What the job brings along."""
        if self.inline is not None:
            return InlineCode(archive=self.inline)
        return LinkedCode(url=self.url or "", sha256=self.sha256 or "")


class JobMessage(_Wire):
    """A job, as its submitter writes it."""

    id: (
        Annotated[
            StrictStr, AfterValidator(partial(_matching, ID, 64, "an id: 1 to 64 letters, digits, dashes, underscores"))
        ]
        | None
    ) = None
    unique: Annotated[Span, AfterValidator(partial(_at_most, timedelta(days=7)))] | None = None
    stack: Annotated[StrictStr, AfterValidator(_stack)]
    command: Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None
    env: Annotated[dict[Text, Text], AfterValidator(_env)] = {}
    payload: Any = None
    code: CodeMessage | None = None
    stdin: Annotated[StrictStr, AfterValidator(_sendable)] | None = None
    limits: LimitsMessage = LimitsMessage()
    network: Network | None = None
    retry: RetryMessage = RetryMessage()
    delay: Wait | None = None
    start_within: Duration | None = None
    fence: StrictBool = False
    labels: Annotated[dict[Text, Text], Field(max_length=16)] = {}
    name: Text | None = None


_PARTS: Mapping[str, type[_Wire]] = {"limits": LimitsMessage, "retry": RetryMessage, "code": CodeMessage}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a message says beside its body. `published` is the internal header's or the property's, if any."""

    route: Route
    message_id: str | None = None
    published: datetime | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


def parse_route(routing_key: str) -> Route:
    """The last three words of a routing key as a route. Raises ValueError that says what is wrong."""
    words = routing_key.split(".")
    if len(words) < 3:  # noqa: PLR2004 - pool, priority, tenant
        raise ValueError(f"routing key {_quote(routing_key)} is not <pool>.<priority>.<tenant>")
    pool, priority, tenant = words[-3:]
    for what, word in (("tenant", tenant), ("pool", pool)):
        if not WORD.fullmatch(word):
            raise ValueError(f"{what} {_quote(word)} is not a word: a-z, 0-9, dashes, underscores, at most 40")
    if priority not in set(Priority):
        raise ValueError(f"priority {_quote(priority)} is none; choose from high, normal, low")
    return Route(pool=pool, priority=Priority(priority), tenant=tenant)


def tenant_of(routing_key: str) -> str | None:
    """The tenant that a routing key names, however wrong the rest of it is."""
    tenant = routing_key.rsplit(".", 1)[-1]
    return tenant if WORD.fullmatch(tenant) else None


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
        fields = _parse(body)
    except ValueError as error:
        return replace(blank, code=DeadCode.UNDECODABLE, reason=str(error))
    try:
        message = JobMessage.model_validate(fields)
    except ValidationError as error:
        return _refused(blank, _faults(error), fields)
    except ValueError as error:
        return _refused(blank, str(error), fields)
    return _job(message, message.id or blank.id, envelope, published, reply)


def _parse(body: bytes) -> dict[str, Any]:
    if len(body) > MESSAGE_MAX:
        raise ValueError(f"the message has {len(body)} bytes, more than {MESSAGE_MAX}; pass on large input elsewhere")
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"the message is not UTF-8 (byte {error.start}); publish JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the message is not JSON: {error}") from error
    except RecursionError:
        raise ValueError("the message is nested too deeply; publish a flat JSON object") from None
    if not isinstance(value, dict):
        raise ValueError('the message is not a JSON object; publish for example {"stack": "busybox"}')  # noqa: TRY004
    return value


def _no_constant(word: str) -> Json:
    raise ValueError(f"the message is not JSON: {word} is no JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, inner in pairs:
        if name in value:
            raise ValueError(f"field {_quote(name)} stands twice in one object; leave one")
        value[name] = inner
    return value


def _integer(word: str) -> int:
    if len(word) > _DIGITS_MAX:
        raise ValueError(f"the message holds a number of {len(word)} digits; the most is {_DIGITS_MAX}")
    return int(word)


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"the message is not usable JSON: {_quote(word)} is beyond all numbers; write it as a string")
    return number


def _faults(error: ValidationError) -> str:
    """One sentence from what pydantic found: the fields, what is wrong, what would be right."""
    faults = error.errors(include_url=False)
    told = [_fault(fault) for fault in faults[:_FAULTS_TOLD]]
    if len(faults) > _FAULTS_TOLD:
        told.append(f"and {len(faults) - _FAULTS_TOLD} more")
    return "; ".join(told)


def _fault(fault: Any) -> str:
    # Strings that pydantic quotes from the message may be any size or no valid text.
    field = ".".join(str(step)[:_QUOTED] for step in fault["loc"] if step != "[key]")
    field = field.encode(errors="replace").decode()
    if fault["type"] == "extra_forbidden":
        parent = _PARTS.get(field.partition(".")[0], JobMessage) if "." in field else JobMessage
        return f"{field}: is not a field; known here are {', '.join(parent.model_fields)}"
    if fault["type"] == "missing":
        return f"{field}: is required"
    words = _WORDS.get(fault["type"])
    told = words.format(**fault.get("ctx", {})) if words else str(fault["msg"]).removeprefix("Value error, ")
    return f"{field}: {told}".encode(errors="replace").decode()


_WORDS: Mapping[str, str] = {
    "string_type": "is not a string",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "list_type": 'is not a list; write for example ["echo", "hi"]',
    "dict_type": 'is not an object; write for example {{"NAME": "value"}}',
    "model_type": "is not an object; leave it out, or write its fields",
    "enum": "is none; choose from {expected}",
    "too_long": "has {actual_length} entries; the most is {max_length}",
    "too_short": "is empty; leave it out, or name at least {min_length}",
    "greater_than_equal": "is too little; the least is {ge}",
    "less_than_equal": "is too much; the most is {le}",
    "finite_number": "is not a finite number",
}
"""What a field should have been, by pydantic's name for the fault; what is not here is a sentence of ours already."""


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


def new_id() -> str:
    """A random id for a job that came without one."""
    return secrets.token_hex(16)


def new_ordered_id(now: datetime) -> str:
    """A UUID of version 7 (RFC 9562): later ones sort after earlier ones."""
    milliseconds = int(now.timestamp() * 1000) & (1 << 48) - 1
    value = milliseconds << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def format_time(time: datetime | None) -> str | None:
    """RFC 3339, UTC, microseconds."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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

    def to_json(self) -> str:
        """For keeping."""
        return _NOTICE.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Notice":
        """As it was kept."""
        return _NOTICE.validate_json(text)


_NOTICE = TypeAdapter(Notice)
_CHOICES = TypeAdapter(Choices)


def encode_choices(choices: Choices) -> str:
    """For the journal."""
    return _CHOICES.dump_json(choices).decode()


def decode_choices(text: str) -> Choices:
    """From the journal."""
    return _CHOICES.validate_json(text)


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
        "tail": [_line(line) for line in result.tail] if result else [],
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


def encode_batch(batch: Batch) -> bytes:
    """A batch of log lines; one for the live key has no `seq`."""
    body: dict[str, Json] = {"v": VERSION, "id": batch.key.id, "claim": batch.claim}
    if batch.seq is not None:
        body["seq"] = batch.seq
    body["off"] = {"out": batch.out, "err": batch.err}
    body["lines"] = [_line(line) for line in batch.lines]
    if batch.end:
        body["end"] = True
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _line(line: Line) -> dict[str, Json]:
    body: dict[str, Json] = {"t": format_time(line.time), "s": line.stream.value, "m": line.text}
    if line.partial:
        body["p"] = True
    return body


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job's message."""
    return JobMessage.model_json_schema()

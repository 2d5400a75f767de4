"""Whatever comes in a message becomes a job, or says what is wrong with it; whatever goes out is JSON."""

import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import NOW, ROUTE, make_invalid, make_job

from runner.codec import (
    MESSAGE_MAX,
    Envelope,
    Notice,
    decode_choices,
    decode_job,
    encode_batch,
    encode_choices,
    encode_event,
    format_time,
    job_schema,
    new_id,
    new_ordered_id,
    parse_route,
    tenant_of,
)
from runner.destination import Destination
from runner.job import (
    Blame,
    Bytes,
    Choices,
    DeadCode,
    EventKind,
    InlineCode,
    Invalid,
    Job,
    JobResult,
    Limits,
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
    SecretRef,
    Stack,
    StackRef,
    StopReason,
    Stream,
    Times,
    Usage,
    Verdict,
)
from runner.ports import Batch, Event

ENVELOPE = Envelope(route=ROUTE)

EVENT_FIELDS = {
    *("v", "event", "id", "tenant", "name", "pool", "priority", "stack", "revision", "worker", "attempt", "claim"),
    *("seq", "time", "labels", "container", "image", "warm", "deadline", "progress", "delay", "outcome", "reason"),
    *("blame", "exit_code", "signal", "oom_seen", "times", "seconds", "usage", "logs", "output", "tail"),
}


URL, SHA256 = "https://a.example/pkg/app.tgz", "0123456789abcdef" * 4


def decode(fields: object, **envelope: Any) -> Job | Invalid:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return decode_job(body, replace(ENVELOPE, **envelope), NOW)


def accepted(fields: object, **envelope: Any) -> Job:
    job = decode(fields, **envelope)
    assert isinstance(job, Job), job
    return job


def refused(fields: object, **envelope: Any) -> Invalid:
    invalid = decode(fields, **envelope)
    assert isinstance(invalid, Invalid), invalid
    assert invalid.reason
    return invalid


def told(submission: Job | Invalid, kind: EventKind = EventKind.REJECTED, **more: Any) -> dict[str, Any]:
    """The body of an event about it."""
    event = Event(kind=kind, submission=submission, worker="w1", claim="c1", seq=1, attempt=1, time=NOW, **more)
    body: dict[str, Any] = json.loads(encode_event(event).body.encode(), parse_constant=pytest.fail)
    return body


# Jobs that are jobs


def test_the_smallest_job() -> None:
    job = accepted({"stack": "busybox", "command": ["echo", "hi"]})
    assert (job.key.tenant, job.route, str(job.stack)) == ("acme", ROUTE, "busybox")
    assert job.command == ("echo", "hi")
    assert len(job.key.id) == 32
    assert job.published == NOW
    assert (job.payload, job.stdin, job.network, job.limits) == (None, None, None, LimitsRequest())
    assert job.retry == RetryPolicy()


def test_everything_that_a_job_may_say() -> None:
    job = accepted(
        {
            "id": "j-1",
            "stack": "python-3.11",
            "command": ["python", "-c", ""],
            "env": {"A": "1", "B": ""},
            "payload": {"n": [1, 2]},
            "stdin": "two\nlines",
            "limits": {"cpus": 1, "memory": "1g", "disk": 1048576, "pids": 9, "timeout": 90, "grace": "1.5s"},
            "network": "none",
            "retry": {"max": 0, "on": ["timed_out", "exit:75"], "delay": "1m", "factor": 1, "max_delay": "2h"},
            "start_within": "1h",
            "labels": {"team": "red"},
            "name": "nightly",
        },
        message_id="m-1",
        published=NOW - timedelta(minutes=1),
        reply_to="answers",
        correlation_id="c-9",
        traceparent="00-" + 32 * "a" + "-" + 16 * "b" + "-01",
    )
    assert job.key.id == "j-1"
    assert json.loads(job.payload or b"") == {"n": [1, 2]}
    assert job.stdin == b"two\nlines"
    assert job.limits == LimitsRequest(
        cpus=1,
        memory=Bytes(2**30),
        disk=Bytes(2**20),
        pids=9,
        timeout=timedelta(seconds=90),
        grace=timedelta(seconds=1.5),
    )
    assert (job.retry.outcomes, job.retry.exits) == (frozenset({Outcome.TIMED_OUT}), frozenset({75}))
    assert job.start_within == timedelta(hours=1)
    assert (job.labels, job.name) == ({"team": "red"}, "nightly")
    assert job.published == NOW - timedelta(minutes=1)
    assert job.reply == Reply(to="answers", correlation_id="c-9")
    assert job.traceparent is not None


def test_the_tenant_is_never_taken_from_the_body() -> None:
    assert refused({"stack": "a", "tenant": "victim"}).tenant == "acme"
    assert accepted({"stack": "a", "labels": {"tenant": "victim"}}).key.tenant == "acme"


@pytest.mark.parametrize(
    ("body_id", "message_id", "expected"),
    [("a", "b", "a"), (None, "b", "b"), (None, "not an id", None), (None, None, None), (None, "", None)],
)
def test_the_id_is_the_bodys_or_the_messages_or_random(
    body_id: str | None, message_id: str | None, expected: str | None
) -> None:
    fields = {"stack": "a"} | ({"id": body_id} if body_id else {})
    job_id = accepted(fields, message_id=message_id).key.id
    assert job_id == expected if expected else len(job_id) == 32


def test_a_bad_id_is_quoted_and_not_used() -> None:
    invalid = refused({"id": "no spaces!", "stack": "a"}, message_id="good")
    assert invalid.id == "good"
    assert '"no spaces!"' in invalid.reason


@pytest.mark.parametrize(("payload", "written"), [("as it is\n", b"as it is\n"), ("", b""), (None, b"null"), (0, b"0")])
def test_a_payload_that_is_a_string_is_written_as_it_is(payload: object, written: bytes) -> None:
    assert accepted({"stack": "a", "payload": payload}).payload == written


@pytest.mark.parametrize(
    ("told_time", "counts"),
    [
        (NOW + timedelta(seconds=60), True),
        (NOW + timedelta(seconds=61), False),
        (NOW - timedelta(days=30), True),
        (NOW - timedelta(days=31), False),
        (datetime.max.replace(tzinfo=UTC), False),
        (datetime.min.replace(tzinfo=UTC), False),
        (None, False),
    ],
)
def test_a_time_of_publication_counts_when_it_can_be_true(told_time: datetime | None, *, counts: bool) -> None:
    assert accepted({"stack": "a"}, published=told_time).published == (told_time if counts else NOW)


@pytest.mark.parametrize("trace", ["", "00-xyz", "x" * 5000, "00-" + 32 * "A" + "-" + 16 * "b" + "-01"])
def test_a_traceparent_that_is_none_is_left_out(trace: str) -> None:
    assert accepted({"stack": "a"}, traceparent=trace).traceparent is None


# What is no job


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"1",
        b"\xff\xfe",
        b'{"stack": NaN}',
        b'{"stack": "a", "stack": "b"}',
        b"[" * 100_000,
        b'{"stack": "a", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"stack": "a", "payload": ' + b"9" * 5000 + b"}",
        b'{"stack": "a"}' + b" " * MESSAGE_MAX,
    ],
)
def test_bytes_that_are_no_json_object_cannot_be_decoded(body: bytes) -> None:
    invalid = refused(body)
    assert invalid.code is DeadCode.UNDECODABLE
    assert len(invalid.reason) < 1000
    told(invalid)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, "stack: is required"),
        ({"stack": "a", "tenant": "b"}, "tenant: is not a field; known here are id, "),
        ({"stack": "a", "limits": {"ram": 1}}, "limits.ram: is not a field; known here are cpus, "),
        ({"stack": "a", "retry": {"times": 1}}, "retry.times: is not a field; known here are max, "),
        ({"stack": "A"}, 'stack: "A" is not the name of a stack'),
        ({"stack": "a@current"}, "stack: @current is no revision"),
        ({"stack": "a", "command": []}, "command: "),
        ({"stack": "a", "command": "echo hi"}, "command: "),
        ({"stack": "a", "command": ["a\0b"]}, "command.0: holds a NUL"),
        ({"stack": "a", "command": ["\ud800"]}, "command.0: "),
        ({"stack": "a", "env": {"JOB_ID": "x"}}, 'env: "JOB_ID" is reserved'),
        ({"stack": "a", "env": {"": "x"}}, "env: "),
        ({"stack": "a", "env": {"A=B": "x"}}, "env: "),
        ({"stack": "a", "env": {"A": 1}}, "env.A: "),
        ({"stack": "a", "env": {"A\0": "1"}}, "env"),
        ({"stack": "a", "env": {"A\0\n\u001b[2J": 1}}, r'env."A\u0000\n\u001b[2J": holds a NUL'),
        ({"stack": "a", "labels": {"\u2028x": 1}}, r'labels."\u2028x": is not a string'),
        ({"stack": "a", "stdin": 1}, "stdin: "),
        ({"stack": "a", "limits": {"memory": "lots"}}, 'limits.memory: "lots" is not a size'),
        ({"stack": "a", "limits": {"cpus": 0}}, "limits.cpus: "),
        ({"stack": "a", "limits": {"cpus": True}}, "limits.cpus: "),
        ({"stack": "a", "limits": {"pids": 1.5}}, "limits.pids: "),
        ({"stack": "a", "limits": {"pids": 10**400}}, "limits.pids: "),
        ({"stack": "a", "limits": {"timeout": "soon"}}, 'limits.timeout: "soon" is not a duration'),
        ({"stack": "a", "limits": {"timeout": -1}}, "limits.timeout: "),
        ({"stack": "a", "limits": {"timeout": 10**400}}, "limits.timeout: "),
        ({"stack": "a", "network": "all"}, "network: "),
        ({"stack": "a", "retry": {"max": -1}}, "retry.max: "),
        ({"stack": "a", "retry": {"on": ["sometimes"]}}, 'retry.on.0: "sometimes" is no reason to retry'),
        ({"stack": "a", "retry": {"on": ["exit:256"]}}, "retry.on.0: "),
        ({"stack": "a", "labels": {str(number): "" for number in range(17)}}, "labels: "),
        ({"stack": "a", "fence": "yes"}, "fence: "),
        ({"stack": "a", "name": 7}, "name: "),
        ({"stack": "a", "id": "x" * 65}, "id: "),
        ({"stack": "a", "code": {}}, "code: is empty; name inline, or url with sha256"),
        ({"stack": "a", "code": "x"}, "code: is not an object"),
        ({"stack": "a", "code": {"inline": None}}, "code: is empty"),
        ({"stack": "a", "code": {"inline": 1}}, "code.inline: is not a string"),
        ({"stack": "a", "code": {"inline": ""}}, "code.inline: is empty"),
        ({"stack": "a", "code": {"inline": "UEs"}}, "code.inline: is not base64"),
        ({"stack": "a", "code": {"inline": "UEsD\nBA=="}}, "code.inline: is not base64"),
        ({"stack": "a", "code": {"inline": "UE-_"}}, "code.inline: is not base64"),
        ({"stack": "a", "code": {"inline": "UEs=", "url": URL, "sha256": SHA256}}, "code.url: stands beside inline"),
        ({"stack": "a", "code": {"inline": "UEs=", "sha256": SHA256}}, "code.sha256: belongs to url"),
        ({"stack": "a", "code": {"sha256": SHA256}}, "code.sha256: belongs to url"),
        ({"stack": "a", "code": {"url": URL}}, "code.sha256: is required with url"),
        ({"stack": "a", "code": {"url": URL, "sha256": SHA256.upper()}}, "code.sha256: "),
        ({"stack": "a", "code": {"url": URL, "sha256": SHA256[1:]}}, "code.sha256: "),
        ({"stack": "a", "code": {"url": "ftp://a/b", "sha256": SHA256}}, "code.url: is neither https://"),
        ({"stack": "a", "code": {"url": URL + "/../x", "sha256": SHA256}}, "code.url: has no plain path"),
        ({"stack": "a", "code": {"path": "x"}}, "code.path: is not a field; known here are inline, url, sha256"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: dict[str, Any], names: str) -> None:
    invalid = refused(fields)
    assert invalid.code is DeadCode.REJECTED
    assert invalid.reason.startswith(names), invalid.reason
    assert len(invalid.reason) < 1000
    told(invalid)


def test_code_comes_in_the_message_or_from_an_address() -> None:
    assert accepted({"stack": "a", "code": {"inline": "UEsDBA=="}}).code == InlineCode(archive=b"PK\3\4")
    linked = accepted({"stack": "a", "code": {"url": URL, "sha256": SHA256}}).code
    assert linked == LinkedCode(url=URL, sha256=SHA256)
    assert accepted({"stack": "a", "code": None}).code is None


def test_several_faults_are_told_together_but_not_all_of_many() -> None:
    reason = refused({"command": [], "name": 1, "env": [], "labels": [], "stdin": 3, "fence": 3}).reason
    for name in ("stack", "command", "env", "and 2 more"):
        assert name in reason


@pytest.mark.parametrize("depth", range(900, 1001, 5))
def test_a_payload_of_any_depth_is_a_job_or_is_refused(depth: int) -> None:
    decode(b'{"stack": "a", "payload": ' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_a_number_beyond_all_floats_is_refused_not_passed_on_as_no_json(number: bytes) -> None:
    assert refused(b'{"stack": "a", "payload": [' + number + b"]}").reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"stack": "a", %s"z": 1, "z": 1}' % b"".join(b'"%x": 1, ' % number for number in range(40_000)),
        b'{"stack": "a", "command": [%s1]}' % (b"1," * 200_000),
        b'{"stack": "a", %s"z": 1}' % b"".join(b'"%x": 1, ' % number for number in range(40_000)),
        b'{"stack": "a", "env": {%s"z": 1}}' % b"".join(b'"%x": 1, ' % number for number in range(40_000)),
    ],
    ids=["twice", "wrong items", "unknown fields", "wrong values"],
)
def test_no_message_holds_up_the_others_for_long(body: bytes) -> None:
    assert len(body) < MESSAGE_MAX
    start = time.process_time()
    refused(body)
    assert time.process_time() - start < 1


def test_what_can_be_told_of_a_refused_job_is_told() -> None:
    invalid = refused({"id": "j1", "stack": "a", "name": "n", "labels": {"k": "v"}, "oops": 1}, reply_to="q")
    assert (invalid.id, invalid.stack, invalid.name, invalid.labels) == ("j1", "a", "n", {"k": "v"})
    assert invalid.reply == Reply(to="q")


def test_a_reply_to_that_is_too_long_is_refused_without_a_reply() -> None:
    invalid = refused({"stack": "a"}, reply_to="é" * 101)
    assert invalid.reply is None
    assert "reply_to" in invalid.reason
    assert isinstance(decode({"stack": "a"}, reply_to="é" * 100), Job)


# Anything at all

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
)
WORDS = st.sampled_from(
    ["", "1", "10m", "64m", "none", "egress", "exit:3", "failed", "a", "A@1", "JOB_X", "\ud800", "\0"]
)
GOOD = {
    "id": "a1",
    "stack": "busybox",
    "command": ["true"],
    "env": {"A": "1"},
    "payload": 1,
    "stdin": "x",
    "limits": {"cpus": 1, "memory": "64m", "timeout": "1m"},
    "network": "none",
    "retry": {"max": 0},
    "start_within": "1m",
    "labels": {"a": "b"},
    "name": "n",
}
TEXT = st.text(max_size=30) | WORDS
ENVELOPES = st.builds(
    Envelope,
    route=st.just(ROUTE),
    message_id=st.none() | TEXT,
    published=st.none() | st.datetimes(timezones=st.just(UTC)),
    reply_to=st.none() | TEXT,
    correlation_id=st.none() | TEXT,
    traceparent=st.none() | TEXT,
)
FEW = settings(max_examples=60, deadline=None)


def check(body: bytes, envelope: Envelope) -> Job | Invalid:
    submission = decode_job(body, envelope, NOW)
    if isinstance(submission, Invalid):
        assert submission.reason
        assert submission.tenant == "acme"
        verdict = Verdict(outcome=Outcome.REJECTED, reason=submission.reason, blame=Blame.REQUEST)
        result = JobResult(verdict=verdict, times=Times(published=submission.published, ended=NOW))
        told(submission, EventKind.FINISHED, result=result)
    told(submission, EventKind.CLAIMED)
    return submission


@FEW
@given(st.binary(max_size=200), ENVELOPES)
def test_any_bytes(body: bytes, envelope: Envelope) -> None:
    check(body, envelope)


@FEW
@given(ANY_JSON, ENVELOPES)
def test_any_json(value: object, envelope: Envelope) -> None:
    check(json.dumps(value).encode(), envelope)


@FEW
@given(st.sampled_from(sorted(GOOD)), ANY_JSON | WORDS)
def test_a_job_with_one_field_changed(name: str, value: object) -> None:
    submission = check(json.dumps({**GOOD, name: value}).encode(), ENVELOPE)
    if isinstance(submission, Invalid) and submission.code is DeadCode.REJECTED:
        assert name in submission.reason


@FEW
@given(
    st.sampled_from(["limits", "retry", "code"]),
    st.text(max_size=8) | st.sampled_from(["cpus", "max", "on", "inline", "url"]),
    ANY_JSON,
)
def test_a_job_with_an_inner_field_changed(outer: str, name: str, value: object) -> None:
    submission = check(json.dumps({**GOOD, outer: {name: value}}).encode(), ENVELOPE)
    if isinstance(submission, Invalid) and submission.code is DeadCode.REJECTED:
        assert submission.reason.startswith(outer)


@FEW
@given(st.text(max_size=60))
def test_any_routing_key(key: str) -> None:
    tenant = tenant_of(key)
    try:
        route = parse_route(key)
    except ValueError:
        return
    assert route.tenant == tenant
    assert key.endswith(str(route))


# Routes


def test_a_route_is_the_last_three_words() -> None:
    expected = Route(pool="gpu", priority=Priority.HIGH, tenant="acme")
    assert parse_route("gpu.high.acme") == parse_route("0.1.gpu.high.acme") == expected


@pytest.mark.parametrize(
    "key", ["", "a", "high.acme", "p.urgent.t", "p.high.T", "P.high.t", "p.high.", ".high.t", "p.high." + 41 * "t"]
)
def test_what_is_no_route(key: str) -> None:
    with pytest.raises(ValueError, match=r"routing key|tenant|pool|priority"):
        parse_route(key)


# Events and logs


def test_every_event_has_every_field() -> None:
    for kind in EventKind:
        assert set(told(make_job(), kind)) == EVENT_FIELDS
        assert set(told(make_invalid(), kind)) == EVENT_FIELDS


def test_what_is_always_an_object_is_one() -> None:
    body = told(make_invalid())
    for name in ("labels", "times", "seconds", "usage", "logs"):
        assert isinstance(body[name], dict), name
    assert set(body["seconds"]) == {"queued", "prepare", "run", "total"}
    assert body["tail"] == []


def test_finished_says_everything() -> None:
    times = Times(
        published=NOW,
        claimed=NOW + timedelta(seconds=1),
        started=NOW + timedelta(seconds=3),
        ended=NOW + timedelta(seconds=6, microseconds=5),
    )
    result = JobResult(
        verdict=Verdict(
            outcome=Outcome.FAILED, reason="exited with code 3", blame=Blame.JOB, exit_code=3, oom_seen=True, output=[1]
        ),
        times=times,
        usage=Usage(cpu_seconds=0.5, memory_peak_bytes=7),
        logs=LogStats(stdout_bytes=1, stderr_bytes=2, omitted_bytes=3, omitted_lines=4, complete=True),
        tail=(Line(time=NOW, stream=Stream.ERR, text="é", partial=True),),
    )
    body = told(make_job("j", name="n", labels={"a": "b"}), EventKind.FINISHED, result=result)
    assert body["seconds"] == {"queued": 1, "prepare": 2, "run": 3.000005, "total": 6.000005}
    assert body["times"]["ended"] == "2026-01-02T03:04:11.000005Z"
    assert (body["outcome"], body["reason"], body["blame"]) == ("failed", "exited with code 3", "job")
    assert (body["exit_code"], body["signal"], body["oom_seen"], body["output"]) == (3, None, True, [1])
    assert body["usage"] == {"cpu_seconds": 0.5, "memory_peak_bytes": 7}
    assert body["logs"]["omitted_lines"] == 4
    assert body["tail"] == [{"t": "2026-01-02T03:04:05.000000Z", "s": "err", "m": "é", "p": True}]


def test_clocks_that_disagree_make_no_negative_seconds() -> None:
    result = JobResult(
        verdict=Verdict(outcome=Outcome.SUCCEEDED, reason="", blame=Blame.NONE),
        times=Times(published=NOW, claimed=NOW - timedelta(seconds=9), ended=NOW),
    )
    assert told(make_job(), EventKind.FINISHED, result=result)["seconds"]["queued"] == 0


def test_an_event_that_stops_a_job_gives_the_reason_as_a_word() -> None:
    assert told(make_job(), EventKind.STOPPING, stop=StopReason.TIMEOUT)["reason"] == "timeout"


def test_an_events_address_is_the_same_however_often_it_is_sent() -> None:
    job = make_job("j", reply=Reply(to="q"))
    event = Event(kind=EventKind.FINISHED, submission=job, worker="w", claim="c", seq=4, attempt=1, time=NOW)
    notice = encode_event(event)
    assert (notice.key, notice.message_id) == ("acme.j.finished", "acme/j/c/4")
    assert notice.reply == Reply(to="q")
    assert encode_event(replace(event, kind=EventKind.STARTED)).reply is None
    assert Notice.from_json(notice.to_json()) == notice


LISTED = Destination(range=IPv4Network("203.0.113.7/32"), port=443)


def test_choices_survive_being_kept() -> None:
    choices = Choices(
        stack=Stack(name="a", revision="1", image="sha256:1", env={"A": "é"}, cap_add=("X",), allow=(LISTED,)),
        command=("a", ""),
        limits=Limits(timeout=timedelta(seconds=1.5)),
        network=Network.EGRESS,
        secrets=(SecretRef(name="token", shared=True),),
    )
    assert decode_choices(encode_choices(choices)) == choices


def test_choices_of_a_version_without_secrets_and_networks_can_be_read() -> None:
    choices = Choices(stack=Stack(name="a", revision="1", image="sha256:1"), command=("a",), limits=Limits())
    kept = json.loads(encode_choices(choices))
    del kept["secrets"], kept["stack"]["secrets"], kept["network"], kept["stack"]["allow"]
    assert decode_choices(json.dumps(kept)) == choices


@FEW
@given(st.text(max_size=50))
def test_a_batch_of_a_log_is_json(text: str) -> None:
    text = text.encode(errors="replace").decode()
    line = Line(time=NOW, stream=Stream.OUT, text=text)
    batch = Batch(key=make_job("j").key, claim="c", seq=3, out=5, err=6, lines=[line], end=True)
    body = json.loads(encode_batch(batch))
    assert body == {
        "v": 1,
        "id": "j",
        "claim": "c",
        "seq": 3,
        "off": {"out": 5, "err": 6},
        "lines": [{"t": format_time(NOW), "s": "out", "m": text}],
        "end": True,
    }
    live = json.loads(encode_batch(replace(batch, seq=None, end=False)))
    assert not {"seq", "end"} & set(live)


# Ids and times


def test_ordered_ids_are_uuids_that_sort_by_time() -> None:
    ids = [new_ordered_id(NOW + timedelta(milliseconds=number)) for number in range(50)]
    assert ids == sorted(ids)
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
    assert len({new_ordered_id(NOW) for _ in range(1000)}) == 1000
    assert len({new_id() for _ in range(1000)}) == 1000


def test_a_time_is_in_utc_whatever_its_zone() -> None:
    assert format_time(datetime.fromisoformat("2026-01-02T03:04:05+02:00")) == "2026-01-02T01:04:05.000000Z"
    assert format_time(None) is None


def test_the_schema_names_every_field() -> None:
    schema = job_schema()
    assert set(GOOD) <= set(schema["properties"])
    assert schema["required"] == ["stack"]
    assert schema["additionalProperties"] is False


def test_a_stack_may_be_told_apart_from_its_revision() -> None:
    assert str(StackRef(name="a", revision="r1")) == "a@r1"

"""Whatever is published: no daemon minds, its submitter hears what was wrong, and nothing of it is lost."""

import json
import os
from secrets import token_hex
from typing import Any

import pytest
from tests.e2e.submitter import STACK, Followed, Submitter

pytestmark = [pytest.mark.engine, pytest.mark.broker]


async def refused(
    acme: Submitter,
    body: bytes,
    job_id: str,
    *,
    code: str,
    reason: str,
    to: str = "default.normal.acme",
    **message: Any,
) -> Followed:
    """Publish a body; assert that it is refused for that reason, with events, and kept byte for byte."""
    job = await acme.publish(body, to=to, job_id=job_id, **message)
    await job.finished()
    job.ended("rejected", blame="request", reason=reason, oom_seen=False, attempt=0)
    assert job.kinds == ["rejected", "finished"]
    assert reason in job.events[0]["reason"]
    await is_dead(acme, body, code=code, reason=reason, to=to)
    return job


async def is_dead(acme: Submitter, body: bytes, *, code: str, reason: str, to: str) -> None:
    letter = await acme.dead_letter()
    assert letter.body == body
    assert (letter.headers["x-code"], letter.headers["x-from"]) == (code, to)
    assert reason in str(letter.headers["x-reason"])


def body_with(job_id: str, **fields: object) -> bytes:
    return json.dumps({"id": job_id, "stack": STACK, "command": ["true"], **fields}, indent=3).encode()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"comand": ["true"]}, "comand: is not a field"),
        ({"limits": {"cpu": 1}}, "limits.cpu: is not a field"),
        ({"limits": {"timeout": "61m"}}, "limits.timeout: 61m is over this operator's maximum, 1h"),
        ({"limits": {"disk": "2g"}}, "limits.disk: 2 GiB is over this operator's maximum, 1 GiB"),
        ({"limits": {"memory": "5m"}}, "limits.memory"),
        ({"limits": {"timeout": "soon"}}, "limits.timeout"),
        ({"command": "echo hi"}, "command"),
        ({"command": []}, "command"),
        ({"env": {"JOB_ID": "mine"}}, '"JOB_ID" is reserved'),
        ({"stack": "No Stack"}, '"No Stack" is not the name of a stack'),
        ({"labels": {str(number): "" for number in range(17)}}, "labels"),
        ({"code": {"inline": ""}}, "code.inline: is empty"),
        ({"code": {"url": "https://a.example/x", "sha256": "0" * 64}}, "code.url: https://a.example/x is not where"),
    ],
)
async def test_what_is_no_job_is_refused(acme: Submitter, fields: dict[str, object], reason: str) -> None:
    job_id = f"refused-{token_hex(4)}"
    await refused(acme, body_with(job_id, **fields), job_id, code="rejected", reason=reason)


@pytest.mark.parametrize(
    ("job_id", "body", "reason"),
    [
        ("cut-off", b'{"stack": "e2e-pl', "the message is not JSON"),
        ("noise", os.urandom(1000) + b"\xff", "the message is not UTF-8"),
        ("nothing", b"", "the message is not JSON"),
        ("a-list", b"[]", "the message is not a JSON object"),
        ("deep", b"[" * 100_000, "nested too deeply"),
        ("nan", b'{"stack": "e2e-plain", "payload": NaN}', "NaN is no JSON value"),
        ("twice", b'{"stack": "e2e-plain", "stack": "other"}', '"stack" stands twice'),
        ("too-big", b'{"payload": "' + b"x" * 512 * 1024 + b'"}', "more than 524288"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
async def test_any_bytes_are_survived(acme: Submitter, job_id: str, body: bytes, reason: str) -> None:
    await refused(acme, body, job_id, code="undecodable", reason=reason, message_id=job_id)


async def test_a_bad_id_is_quoted_under_another_one(acme: Submitter) -> None:
    body = body_with("not an id!")
    await refused(acme, body, "stand-in", code="rejected", reason="not an id!", message_id="stand-in")


async def test_an_endless_reply_to_gets_no_reply(acme: Submitter) -> None:
    body = body_with("long-reply-to")
    await refused(
        acme,
        body,
        "long-reply-to",
        code="rejected",
        reason="reply_to has more than 200 bytes",
        reply_to="x" * 201,
        message_id="long-reply-to",
    )


async def test_a_pool_that_nobody_serves(acme: Submitter) -> None:
    body, to = body_with("nowhere"), "nowhere.normal.acme"
    job = await refused(acme, body, "nowhere", to=to, code="unroutable", reason="no worker serves pool 'nowhere'")
    assert (job.result["pool"], job.result["priority"]) == ("nowhere", "normal")


async def test_a_priority_that_there_is_not(acme: Submitter) -> None:
    body, to = body_with("urgent"), "default.urgent.acme"
    await refused(acme, body, "urgent", to=to, code="unroutable", reason='priority "urgent" is none')


async def test_a_tenant_that_cannot_be_one_is_not_told(acme: Submitter) -> None:
    body, to = body_with("nobody"), "default.normal.ACME"
    job = await acme.publish(body, to=to, job_id="nobody")
    await is_dead(acme, body, code="rejected", reason='tenant "ACME" is not a word', to=to)
    assert job.events == []


async def test_a_copy_to_a_tenant_that_the_sender_may_not_speak_for_is_not_run(acme: Submitter) -> None:
    body, to = body_with("copied"), "default.normal.acme"
    job = await acme.publish(body, to=to, job_id="copied", headers={"CC": ["default.high.globex"]})
    await is_dead(acme, body, code="rejected", reason=f"does not belong to queue {acme.ns}.q.default.high", to=to)
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0, tenant="acme", priority="normal")
    assert acme.follow("copied", "globex").events == []


async def test_internal_headers_of_a_submitter_mean_nothing(acme: Submitter) -> None:
    headers = {"x-attempt": 7, "x-route": "default.normal.globex", "x-not-before": 1}
    job = await acme.publish(body_with("headers"), job_id="headers", headers=headers)
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0, attempt=1, tenant="acme", priority="normal")

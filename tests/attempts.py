"""Attempts to start, as short as tests want them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from secrets import token_hex

from runner.job import Attempt, InlineCode, Job, JobKey, Limits, LinkedCode, Plan, Priority, Route, Stack, StackRef


def make_attempt(
    *command: str,
    image: str = "sha256:" + 64 * "0",
    worker: str = "w1",
    claim: str | None = None,
    limits: Limits | None = None,
    stack: Stack | None = None,
    env: Mapping[str, str] | None = None,
    payload: bytes | None = None,
    stdin: bytes | None = None,
    code: InlineCode | LinkedCode | None = None,
) -> Attempt:
    """The first attempt at a job of tenant acme; its claim is unique unless given."""
    job = Job(
        key=JobKey(tenant="acme", id="job-1"),
        route=Route(pool="default", priority=Priority.NORMAL, tenant="acme"),
        stack=StackRef(name="busybox"),
        published=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        command=command,
        env=env or {},
        payload=payload,
        stdin=stdin,
        code=code,
    )
    plan = Plan(
        job=job,
        stack=stack or Stack(name="busybox", revision="1", image=image),
        command=command,
        limits=limits or Limits(),
    )
    return Attempt(plan=plan, worker=worker, claim=claim or token_hex(8), number=1)

"""Every way to end, and what is said of it."""

import errno
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from runner.job import (
    Blame,
    Exit,
    Job,
    JobKey,
    Limits,
    Outcome,
    Plan,
    Priority,
    Route,
    Stack,
    StackRef,
    StopReason,
)
from runner.verdict import judge

JOB = Job(
    key=JobKey(tenant="acme", id="1"),
    route=Route(pool="default", priority=Priority.NORMAL, tenant="acme"),
    stack=StackRef(name="busybox"),
    published=datetime(2026, 1, 1, tzinfo=UTC),
    command=("sort",),
)
PLAN = Plan(job=JOB, stack=Stack(name="busybox", revision="r1", image="sha256:0"), command=("sort",), limits=Limits())


@pytest.mark.parametrize(
    ("end", "stop", "outcome", "blame", "words"),
    [
        (Exit(code=0), None, Outcome.SUCCEEDED, Blame.NONE, "exited with code 0"),
        (Exit(code=0, oom_kills=1), None, Outcome.SUCCEEDED, Blame.NONE, "killed for memory"),
        (Exit(code=0, disk_full="/work was full"), None, Outcome.SUCCEEDED, Blame.NONE, "code 0"),
        (Exit(code=3), None, Outcome.FAILED, Blame.JOB, "exited with code 3"),
        (Exit(code=137), None, Outcome.FAILED, Blame.JOB, "exited with code 137"),
        (Exit(signal=9), None, Outcome.FAILED, Blame.JOB, "SIGKILL"),
        (Exit(signal=50), None, Outcome.FAILED, Blame.JOB, "signal 50"),
        (Exit(signal=9, oom_kills=1), None, Outcome.OOM_KILLED, Blame.JOB, "256 MiB"),
        (Exit(code=1, oom_kills=1), None, Outcome.OOM_KILLED, Blame.JOB, "limits.memory"),
        (Exit(code=1, disk_full="/work was full"), None, Outcome.DISK_LIMIT, Blame.JOB, "/work was full"),
        (
            Exit(code=1, disk_full="/scratch was full", full_limit="limits.scratch"),
            None,
            Outcome.DISK_LIMIT,
            Blame.JOB,
            "raise limits.scratch",
        ),
        (
            Exit(code=1, disk_full="full", full_limit="limits.scratch", oom_kills=1),
            *(None, Outcome.OOM_KILLED, Blame.JOB, "raise limits.memory"),
        ),
        (Exit(code=1, disk_full="full", oom_kills=1), None, Outcome.OOM_KILLED, Blame.JOB, "raise limits.disk"),
        (Exit(signal=25), None, Outcome.DISK_LIMIT, Blame.JOB, "a file longer than 64 MiB"),
        (Exit(exec_errno=errno.ENOENT), None, Outcome.FAILED, Blame.REQUEST, "'sort', not found"),
        (Exit(exec_errno=errno.EACCES), None, Outcome.FAILED, Blame.REQUEST, "EACCES"),
        (Exit(lost="the engine was restarted", signal=9), None, Outcome.LOST, Blame.PLATFORM, "the engine"),
        (Exit(code=0), StopReason.TIMEOUT, Outcome.TIMED_OUT, Blame.JOB, "10m"),
        (Exit(signal=9, oom_kills=1), StopReason.TIMEOUT, Outcome.TIMED_OUT, Blame.JOB, "time-out"),
        (Exit(signal=15), StopReason.CANCELLED, Outcome.CANCELLED, Blame.NONE, "cancelled: no more use"),
        (Exit(signal=15), StopReason.SHUTDOWN, Outcome.LOST, Blame.NONE, "shut down"),
        (Exit(signal=9), StopReason.DISK_LIMIT, Outcome.DISK_LIMIT, Blame.JOB, "no more use"),
        (Exit(signal=9), StopReason.OUTPUT_LIMIT, Outcome.OUTPUT_LIMIT, Blame.JOB, "4 MiB"),
        (Exit(signal=9), StopReason.SUPERSEDED, Outcome.LOST, Blame.PLATFORM, "no more use"),
    ],
)
def test_verdict(end: Exit, stop: StopReason | None, outcome: Outcome, blame: Blame, words: str) -> None:
    verdict = judge(PLAN, end, stop, "no more use")
    assert (verdict.outcome, verdict.blame) == (outcome, blame)
    assert words in verdict.reason
    assert verdict.oom_seen == (end.oom_kills > 0)


def test_the_codes_of_a_command_that_cannot_run() -> None:
    assert judge(PLAN, Exit(exec_errno=errno.ENOENT), None).exit_code == 127
    assert judge(PLAN, Exit(exec_errno=errno.EACCES), None).exit_code == 126


def test_the_operator_is_to_blame_for_the_stacks_own_command() -> None:
    plan = replace(PLAN, job=replace(JOB, command=None))
    assert judge(plan, Exit(exec_errno=errno.ENOENT), None).blame is Blame.OPERATOR


def test_output_is_passed_on() -> None:
    assert judge(PLAN, Exit(code=0, output=b'{"rows": [1, 2]}'), None).output == {"rows": [1, 2]}
    assert judge(PLAN, Exit(code=3, output=b'"half"'), None).output == "half"


@pytest.mark.parametrize(
    "raw",
    [b"{", b"\xff", b"NaN", b'"\\ud800"', b"[" * 60_000, b'"' + b"x" * 65536 + b'"'],
    ids=["cut", "bytes", "nan", "surrogate", "deep", "large"],
)
def test_broken_output_fails_a_job_that_exited_well(raw: bytes) -> None:
    verdict = judge(PLAN, Exit(code=0, output=raw), None)
    assert (verdict.outcome, verdict.blame, verdict.exit_code) == (Outcome.FAILED, Blame.JOB, 0)
    assert "JOB_OUTPUT_FILE" in verdict.reason
    assert judge(PLAN, Exit(code=3, output=raw), None).reason == "exited with code 3"

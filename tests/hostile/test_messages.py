"""Messages that are an attack themselves, and commands that the kernel will not execute."""

import json
import re
from typing import Any

import pytest
from tests.e2e.submitter import sh
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
NUL = "a\0b"
TOO_LONG = "the message has 2097[0-9]* bytes, more than 524288; pass on large input elsewhere"
HOLDS = "holds a NUL character; take it out"
DURATION = r'"a\\u0000b" is not a duration; .*'
READ = "the message is read strictly, before anything is made for it"


def rejected(what: str, reason: str, /, *, command: list[str] | None = None, **fields: Any) -> Attack:
    """A message that is no job."""
    return Attack(
        name=what,
        command=command or ["true"],
        stopped_by=READ,
        outcome="rejected",
        blame="request",
        reason=reason,
        fields=fields,
    )


def with_nul(field: str, reason: str, /, **fields: Any) -> Attack:
    """A message with a NUL in one of its strings."""
    told = re.escape(field.replace(NUL, json.dumps(NUL)))
    return rejected(f"NUL in {field}".replace("\0", "␀"), f"{told}: {reason}", **fields)


def not_executed(name: str, reason: str, *, command: list[str], code: int, **fields: Any) -> Attack:
    """A job whose command is none."""
    return Attack(
        name=name,
        command=command,
        stopped_by="the kernel; the init tells what execve said",
        outcome="failed",
        blame="request",
        code=code,
        reason=reason,
        fields=fields,
    )


ATTACKS: list[Attack] = [
    rejected("an environment of 2 MB", TOO_LONG, env={"A": "x" * 2 * MIB}),
    rejected("a command of 2 MB", TOO_LONG, command=["echo", "x" * 2 * MIB]),
    rejected("a payload of 2 MB", TOO_LONG, payload="x" * 2 * MIB),
    with_nul("stack", r'"a\\u0000b" is not the name of a stack, .*', stack=NUL),
    with_nul("command.1", HOLDS, command=["echo", NUL]),
    with_nul("env.A", HOLDS, env={"A": NUL}),
    with_nul("env.a\0b", HOLDS, env={NUL: "a"}),
    with_nul("name", HOLDS, name=NUL),
    with_nul("labels.a", HOLDS, labels={"a": NUL}),
    with_nul("labels.a\0b", HOLDS, labels={NUL: "a"}),
    with_nul("network", "is none; choose from 'none' or 'egress'", network=NUL),
    with_nul("limits.memory", r'"a\\u0000b" is not a size; .*', limits={"memory": NUL}),
    with_nul("limits.timeout", DURATION, limits={"timeout": NUL}),
    with_nul("delay", DURATION, delay=NUL),
    with_nul("start_within", DURATION, start_within=NUL),
    with_nul("unique", DURATION, unique=NUL),
    with_nul("retry.on.0", r'"a\\u0000b" is no reason to retry; .*', retry={"on": [NUL]}),
    with_nul("code.url", "is not an address in plain ASCII; .*", code={"url": NUL, "sha256": "0" * 64}),
    with_nul("code.inline", "is not base64 .*", code={"inline": NUL}),
    Attack(
        name="NUL in payload and standard input",
        command=sh("wc -c <$JOB_PAYLOAD_FILE; wc -c"),
        stopped_by="they are bytes to us",
        code=0,
        out="3\n3\n",
        fields={"payload": NUL, "stdin": NUL},
    ),
    not_executed("a program that is none", r".*'nonsense'.* \(ENOEXEC\) .*", command=["nonsense"], code=126),
    not_executed("a word of 200 kB", r".*'echo'.* \(E2BIG\) .*", command=["echo", "x" * 200_000], code=126),
    not_executed(
        "a variable of 200 kB", r".*'true'.* \(E2BIG\) .*", command=["true"], env={"A": "x" * 200_000}, code=126
    ),
    Attack(
        name="exit code 137, as if killed",
        command=sh("exit 137"),
        stopped_by="the init tells an exit from a signal",
        outcome="failed",
        blame="job",
        code=137,
        reason="exited with code 137",
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)

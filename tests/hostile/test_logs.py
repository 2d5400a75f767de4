"""What can be written where the daemon reads."""

import pytest
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack, attack, failed, survived

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
KEPT = "half head, half tail are kept; the rest is counted, and thrown away as it comes"


def flood(name: str, stream: int, kind: str, mebibytes: int) -> Attack:
    """A job that writes as fast as it is read, and far more than is kept."""
    return survived(name, "flood", str(stream), kind, str(mebibytes), stopped_by=KEPT, limits={"log_bytes": "256k"})


FLOODS = {
    "a flood on standard output": flood("a flood on standard output", 1, "lines", 32),
    "a flood on standard error": flood("a flood on standard error", 2, "lines", 32),
    "a flood without a newline": flood("a flood without a newline", 1, "line", 32),
    "a flood of NUL": flood("a flood of NUL", 1, "nul", 8),
    "a flood that is not UTF-8": flood("a flood that is not UTF-8", 2, "binary", 8),
}

ATTACKS: list[Attack] = [
    *FLOODS.values(),
    survived("a flood of empty lines", "blanks", "100000", stopped_by=KEPT, limits={"log_bytes": "64k"}),
    Attack(
        name="a flood where its stack forbids one",
        command=attack("flood", "1", "lines", "4000"),
        stopped_by='`log_flood = "kill"`',
        outcome="output_limit",
        blame="job",
        signal=15,
        reason="wrote more than 64 KiB of log, its limit, and its stack ends a job for that",
        stack="hostile-terse",
    ),
    failed(
        "frames of the engine's and records of the init's, forged",
        "forge",
        stopped_by="the init's records bear 16 bytes that nobody can guess",
        code=5,
        reason="exited with code 5",
    ),
    failed(
        "all descriptors closed",
        "close_all",
        stopped_by="the init has its own",
        code=6,
        reason="exited with code 6",
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)


@pytest.mark.parametrize("row", FLOODS.values(), ids=lambda row: row.name)
def test_every_byte_is_counted(row: Attack, fought: Fought) -> None:
    logs = fought.jobs[row.name].result["logs"]
    stream, _, mebibytes = row.command[2:]
    assert (logs["stdout_bytes"], logs["stderr_bytes"])[:: 1 if stream == "1" else -1] == (int(mebibytes) * MIB, 0)
    assert logs["omitted_bytes"] >= (int(mebibytes) - 1) * MIB


def test_what_is_forged_is_the_jobs_own_word(fought: Fought) -> None:
    job = fought.jobs["frames of the engine's and records of the init's, forged"]
    for stream in ("out", "err"):
        assert job.text(stream).startswith("\1\0\0\0\0\0\0\4fake\2\0\0\0\0\0\0\4fake\n")
        assert job.text(stream).endswith("\n0123456789abcdef\n")
    assert job.result["logs"]["complete"]

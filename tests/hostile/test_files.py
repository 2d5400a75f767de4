"""Files: what /job/output may become, and every way to fill a disk."""

import pytest
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack, failed, killed_for_memory, survived

pytestmark = [pytest.mark.engine, pytest.mark.broker]

TOO_LONG = "was ended by SIGXFSZ for a file longer than 4 MiB, its disk limit; raise limits.disk"
NEVER = "only its first 64 KiB are read, by the daemon, without following links"
REPLACED = """\
unlink: (EROFS|EBUSY)
symlink: EROFS
symlink in its place: EEXIST
rename: (EXDEV|EBUSY)
move away: (EXDEV|EBUSY)
hard link: (EROFS|EXDEV)
hard link to it: EXDEV
fifo: EROFS
folder: EROFS
mode: EPERM
owner: EPERM
lease: EACCES
lock: given
"""
ELSEWHERE = """\
/x: EROFS
/bin/x: EROFS
/etc/x: EROFS
/job/x: EROFS
/dev/x: EACCES
/proc/x: (ENOENT|EACCES)
/sys/x: (EROFS|EACCES)
/.runner-init: (EACCES|EROFS)
/bin/busybox: (EACCES|EROFS)
/job/payload: (EACCES|EROFS)
"""


def too_long(name: str, *words: str) -> Attack:
    """A job with a file that ends it."""
    return failed(name, *words, stopped_by="RLIMIT_FSIZE", outcome="disk_limit", signal=25, reason=TOO_LONG)


def full(name: str, *words: str, reason: str, out: str) -> Attack:
    """A job that fails for want of room."""
    stopped_by = "the size of the tmpfs, in bytes and in files"
    reason = f"failed while {reason}; raise limits.disk"
    return failed(name, *words, stopped_by=stopped_by, outcome="disk_limit", code=1, reason=reason, out=out)


def full_scratch(name: str, script: str, reason: str, out: str = "") -> Attack:
    """A job that fails for want of room on its scratch disk."""
    return Attack(
        name=name,
        command=["sh", "-c", script],
        stopped_by="a scratch disk is a file system of the job's own, whose space is reserved",
        outcome="disk_limit",
        blame="job",
        code=1,
        reason=f"failed while {reason}; raise limits.scratch",
        out=out,
        limits={"scratch": "8m"},
    )


def misreported(name: str, script: str, reason: str) -> Attack:
    """A job that exits with 0, and whose result is none."""
    return Attack(
        name=f"a result that is {name}",
        command=["sh", "-c", script],
        stopped_by="the result is read with bounds on its size, its depth and its words",
        outcome="failed",
        blame="job",
        code=0,
        reason=f"exited with code 0, but JOB_OUTPUT_FILE {reason}",
    )


ATTACKS: list[Attack] = [
    survived(
        "a link, a pipe or a folder in place of the result",
        "output_replaced",
        stopped_by="`/job` is read-only, the result a mount in it; no link is followed",
        out=REPLACED,
        output={"mine": True},
    ),
    too_long("a result without end", "grow", "/job/output"),
    too_long("progress without end", "grow", "/job/progress"),
    killed_for_memory(
        "all the room that a result may have, reserved at once",
        "reserve",
        stopped_by="the result is memory, the job's own",
        reason="a process was killed for memory while /job/output held 512 MiB; its files count as memory: "
        "raise limits.disk",
        out="/job/output: given\n",
        limits={"disk": "512m"},
    ),
    survived(
        "attributes of a result, more than it may hold",
        "attributes",
        stopped_by="the kernel charges them to the job's memory; no bound that others share",
        out="attributes: (given|EOPNOTSUPP)\n",  # Linux 6.6 began to have them there
    ),
    too_long("a sparse file of a terabyte", "sparse"),
    full(
        "a full disk",
        "fill",
        reason=r"/work was full \(4 MiB\)",
        out="/work/a: ENOSPC\n/tmp/a: ENOSPC\n/dev/shm/a: ENOSPC\n",
    ),
    full(
        "files without end, oddly named",
        *("names", "/work"),
        reason=r"/work had no room for another file \(it had 1024\)",
        out="1023, then ENOSPC\n",
    ),
    full_scratch(
        "a full scratch disk",
        "dd if=/dev/zero of=/scratch/a bs=64k 2>/dev/null; exit 1",
        r"/scratch was full \(7 MiB\)",
    ),
    full_scratch(
        "scratch files without end, oddly named",
        "attack names /scratch",
        r"/scratch had no room for another file \(it had 512\)",
        "502, then ENOSPC\n",
    ),
    survived(
        "writing where nothing is its own",
        "elsewhere",
        stopped_by="the root is read-only, and root's",
        out=ELSEWHERE + "a setuid file: given\n",
        fields={"payload": 1},
    ),
    survived("progress that is nonsense, all the time", "progress", stopped_by="read once a second, 4 KiB of it"),
    misreported(
        "nested without end", r"head -c 60000 /dev/zero | tr '\0' '[' >/job/output", r"is not valid JSON \(.*deep.*\)"
    ),
    misreported("not a number", "echo NaN >/job/output", r"is not valid JSON \(NaN is not JSON\)"),
    misreported("infinite", "echo '[1e999]' >/job/output", r"is not valid JSON \(.*\)"),
    misreported("not UTF-8", r"printf '\"\377\"' >/job/output", r"is not valid JSON \(.*\)"),
    misreported("half of a character", r"printf '%s' '\"\\ud800\"' >/job/output", r"is not valid JSON \(.*\)"),
    misreported(
        "a number of 60,000 digits", r"head -c 60000 /dev/zero | tr '\0' 7 >/job/output", r"is not valid JSON \(.*\)"
    ),
    misreported("all NUL", "head -c 60000 /dev/zero >/job/output", r"is not valid JSON \(.*\)"),
    misreported(
        "too large", "head -c 3m /dev/zero >/job/output", "holds more than 64 KiB; pass on large results elsewhere"
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)


def test_progress_is_told_once_a_second(fought: Fought) -> None:
    job = fought.jobs["progress that is nonsense, all the time"]
    told = [event["progress"] for event in job.events if event["event"] == "progress"]
    assert 1 <= len(told) <= 1 + job.result["seconds"]["run"]
    assert all(isinstance(each, str) and len(each) <= 4096 for each in told)

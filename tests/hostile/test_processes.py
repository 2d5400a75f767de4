"""Processes: too many of them, such as do not want to end, and such as turn on the init."""

import pytest
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack, failed, survived, timed_out

pytestmark = [pytest.mark.engine, pytest.mark.broker]

ROOM = {"memory": "128m"}
BY_ITSELF = "was ended by SIGKILL, which did not come from its worker"
REFUSED = "".join(
    f"{what}\\n"
    for what in (
        *("attach: EPERM", "seize: EPERM", "read: EPERM", "write: EPERM", "take a descriptor: EPERM"),
        *("/proc/1/mem: EACCES", "/proc/1/environ: EACCES", "/proc/1/maps: EACCES", "/proc/1/fd/0: EACCES"),
        *("/proc/1/fd: EACCES", "/proc/1/root/etc: EACCES", "/proc/1/cwd: EACCES"),
    )
)
GIVEN = "".join(f"{what}: given\\n" for what in ("descriptors", "file size", "signals", "memory", "stack", "processes"))

ATTACKS: list[Attack] = [
    survived(
        "fork bomb", "forks", stopped_by="`limits.pids`; the init kills what is left", limits=ROOM, out="EAGAIN\n"
    ),
    timed_out("fork bomb that goes on", "endless_forks", stopped_by="`limits.pids`, `limits.timeout`", limits=ROOM),
    survived("thread bomb", "threads", stopped_by="`limits.pids` counts threads", out="255, then EAGAIN\n"),
    timed_out("deaf to all signals", "deaf", stopped_by="SIGKILL after `limits.grace`"),
    timed_out("stopped by its own hand", "frozen", stopped_by="SIGKILL after `limits.grace`"),
    survived("daemons that outlive the job", "daemons", stopped_by="the init kills every process"),
    survived(
        "processes that replace themselves", "respawn", stopped_by="the init kills until there is none", limits=ROOM
    ),
    survived(
        "thousands of zombies",
        "zombies",
        stopped_by="`limits.pids` counts them; the init reaps them",
        limits={"pids": 4096, "memory": "512m"},
        out="3000\n",
    ),
    survived("signals to the init", "kill_init", stopped_by="the kernel, for PID 1", out="still here\n"),
    failed(
        "the signal by which the daemon kills",
        "end_by_init",
        "40",
        stopped_by="hits the job itself",
        signal=9,
        reason=BY_ITSELF,
    ),
    failed(
        "SIGKILL to all",
        "kill_all",
        stopped_by="its own processes are all that it reaches",
        signal=9,
        reason=BY_ITSELF,
    ),
    survived(
        "a look into the init", "look_into_init", stopped_by="the init is not dumpable; no CAP_SYS_PTRACE", out=REFUSED
    ),
    survived(
        "limits for the init",
        "limit_init",
        stopped_by="the init has opened what it needs before the job runs",
        out=GIVEN,
    ),
    timed_out("no time for the init", "starve_init", stopped_by="the engine's SIGKILL, 2 s after the init's"),
    survived(
        "precedence over the others",
        "priority",
        stopped_by="no capabilities; hard limits",
        out="nice: EACCES\nreal time: EPERM\nmore descriptors: EPERM\nlonger files: EPERM\nmessage queues: EPERM\n"
        "spared by the OOM killer: EACCES\n",
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)

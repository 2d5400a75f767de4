"""What only root may ask of the kernel, asked for."""

import pytest
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack, survived

pytestmark = [pytest.mark.engine, pytest.mark.broker]

SECCOMP = "no capabilities; the engine's seccomp profile"


def asked(name: str, *words: str, stopped_by: str, answers: dict[str, str]) -> Attack:
    """A job that asks for a lot, and is told that it can't have it."""
    out = "".join(f"{question}: ({answer})\n" for question, answer in answers.items())
    return survived(name, *words, stopped_by=stopped_by, out=out)


def forbidden(name: str, program: str, *questions: str, **answers: str) -> Attack:
    """A job to which EPERM is the answer to everything."""
    return asked(name, program, stopped_by=SECCOMP, answers=dict.fromkeys(questions, "EPERM") | answers)


ATTACKS: list[Attack] = [
    forbidden(
        "kernel log, clock, modules, bpf, perf, keys, kexec, reboot, names, swap, …",
        "kernel",
        *("read the kernel's log", "clear the kernel's log", "set the time", "set the clock", "load a module"),
        *("load a module's file", "remove a module", "load a program", "count events", "add a key", "ask for a key"),
        *("load a kernel", "reboot", "name the host", "name the domain", "swap on", "swap off", "count processes"),
        *("catch page faults", "open by handle", "watch all files", "log out the terminal", "reach ports"),
    ),
    forbidden(
        "mknod, mount, pivot_root, chroot",
        "mounts",
        *("block device", "character device", "mount", "bind", "remount", "unmount", "pivot_root", "chroot"),
        *("fsopen", "open_tree"),
    ),
    asked(
        "unshare, clone and setns",
        "namespaces",
        stopped_by=SECCOMP,
        answers=dict.fromkeys(("user", "network", "mounts", "processes", "control groups", "clone"), "EPERM")
        | {"clone3": "ENOSYS|EPERM", "enter": "EPERM", "the init's": "EPERM|EACCES"},
    ),
    asked(
        "raw and packet sockets",
        "sockets_raw",
        stopped_by="no capabilities; a filter of the init's",
        answers=dict.fromkeys(("raw", "raw 6", "packet", "packet, cooked"), "EAFNOSUPPORT"),
    ),
    forbidden(
        "uid 0, groups, capabilities", "identity", "uid 0", "gid 0", "groups", "all capabilities", "a file for root"
    ),
    asked(
        "writing /proc and /sys, reading the machine's memory",
        "settings",
        stopped_by="read-only and masked by the engine; another uid; no device nodes",
        answers={
            "/proc/sys/kernel/core_pattern": "EACCES|EROFS",
            "/proc/sys/vm/overcommit_memory": "EACCES|EROFS",
            "/proc/sys/net/ipv4/ip_forward": "EACCES|EROFS",
            "/proc/sysrq-trigger": "EACCES|EROFS|ENOENT",
            "/sys/kernel/mm/transparent_hugepage/enabled": "EACCES|EROFS|ENOENT",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "EACCES|EROFS|ENOENT",
            "/sys/fs/cgroup/memory.max": "EACCES|EROFS|ENOENT",
            "/sys/fs/cgroup/cgroup.procs": "EACCES|EROFS|ENOENT",
            "/proc/1/oom_score_adj": "EACCES",
            "/proc/kcore": "EACCES|EIO|ENOENT",
            "/dev/mem": "ENOENT",
            "/dev/kmsg": "ENOENT",
        },
    ),
    survived(
        "a program that is root's and setuid",
        "setuid_program",
        stopped_by="`no-new-privileges`",
        out="1 1 1\nroot's file: EACCES\n",
    ),
    Attack(
        name="a program made setuid by the job",
        command=["sh", "-c", "cp /bin/busybox /work/id && chmod 4755 /work/id && cd /work && ./id -u && stat -c %a id"],
        stopped_by="`nosuid` on all that a job can write",
        code=0,
        out="65534\n4755\n",
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)

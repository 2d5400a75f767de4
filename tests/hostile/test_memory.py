"""Memory, by every way that leads to it."""

import pytest
from tests.hostile.arena import Fought, check, check_neighbour
from tests.hostile.attack import Attack, killed_for_memory, survived

pytestmark = [pytest.mark.engine, pytest.mark.broker]

KERNEL_MEMORY = "the kernel charges it to the job's memory"
SOCKET_MEMORY = "the kernel charges it to the job's memory (v2), or to `memory.kmem.tcp`, a quarter of that (v1)"
UNCHARGED = ("netlink", "netlink, user to user", "netlink, 32 bits", "ping", "ping 6", "the hypervisor", "ciphers")

ATTACKS: list[Attack] = [
    killed_for_memory("memory in one gulp", "gulp", stopped_by="the memory limit"),
    killed_for_memory("memory, drip by drip", "drip", stopped_by="the memory limit"),
    survived(
        "a child too greedy, and a parent that goes on",
        "child",
        stopped_by="the memory limit; the job's own end decides, `oom_seen` tells",
        oom=True,
        reason="exited with code 0; one of its processes was killed for memory on the way",
        out="the child died of 9\n",
    ),
    killed_for_memory(
        "files in memory, more than all of it",
        "files_in_memory",
        stopped_by="files in `/work`, `/tmp` and `/dev/shm` count as memory",
        limits={"memory": "8m", "disk": "16m"},
        reason="a process was killed for memory while .*; its files count as memory: raise limits.disk",
    ),
    survived(
        "memory that cannot be reclaimed (mlock)",
        "lock_memory",
        stopped_by="RLIMIT_MEMLOCK, and the memory limit",
        out="mlock: ENOMEM\nmlockall: ENOMEM\n",
    ),
    killed_for_memory("System V shared memory", "system_v", stopped_by="the memory limit; a namespace of its own"),
    killed_for_memory("pipes full of bytes", "pipes", stopped_by=KERNEL_MEMORY),
    killed_for_memory("sockets full of bytes", "sockets", stopped_by=KERNEL_MEMORY),
    killed_for_memory("descriptors without end", "descriptors", stopped_by=f"RLIMIT_NOFILE; {KERNEL_MEMORY}"),
    killed_for_memory("files without a name (memfd)", "memory_files", stopped_by="the memory limit"),
    killed_for_memory("tables of pages for empty memory", "page_tables", stopped_by=KERNEL_MEMORY),
    survived(
        "a cache full of names that are not there", "cached_names", stopped_by=f"{KERNEL_MEMORY}, and reclaims it"
    ),
]


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row.name)
def test_attack(row: Attack, fought: Fought) -> None:
    check(row, fought.jobs[row.name])


def test_neighbours(fought: Fought) -> None:
    for job in fought.neighbours:
        check_neighbour(job)

"""What one job leaves in its network namespace for another: nothing, there is no other in it."""

import re

import pytest
from tests.e2e.submitter import sh
from tests.hostile.arena import Arena, check
from tests.hostile.attack import survived
from tests.hostile.conftest import OpenArena

pytestmark = [pytest.mark.engine, pytest.mark.broker]

TRACES = """\
bind: given
listen: given
name: given
connect: given
datagram: given
address: EPERM
route: EPERM
setting: EACCES
"""

TABLES = "unix tcp tcp6 udp udp6 udplite raw packet icmp arp route if_inet6"
"""What is in a namespace: sockets, also those that nobody has any more, addresses, routes, neighbours."""
COUNTERS = "dev snmp snmp6 netstat"
LOOK = f"""\
cd /proc/net
for table in {TABLES} {COUNTERS}; do echo $table; cat $table; done 2>/dev/null
wc -l netlink
sysctl -a 2>/dev/null | grep ^net
"""


async def look(arena: Arena) -> str:
    """All that a job finds in its namespace; it is of another tenant than the one that leaves something there."""
    job = await arena.run(sh(LOOK), to="default.normal.calm")
    job.ended("succeeded", blame="none", exit_code=0)
    return job.text()


async def test_a_job_finds_nothing_of_the_one_before(arena_at: OpenArena, *, warm: bool) -> None:
    row = survived("traces", "traces", stopped_by="a network namespace for each job", out=TRACES)
    async with arena_at(warm=warm) as arena:
        before = await look(arena)
        assert re.search(r"\n +lo:( +0)+\n", before)
        check(row, await (await arena.attack(row)).finished())
        assert await look(arena) == before


async def test_jobs_at_once_are_in_namespaces_of_their_own(arena_at: OpenArena, *, warm: bool) -> None:
    async with arena_at(warm=warm) as arena:
        jobs = [await arena.submit(sh("readlink /proc/self/ns/net; sleep 60")) for _ in range(2)]
        for job in jobs:
            await job.wrote("]\n")
        assert jobs[0].text() != jobs[1].text()
        for job in jobs:
            await arena.acme.cancel(job)
            await job.finished()

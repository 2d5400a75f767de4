"""What jobs tell, where it is memory of theirs: the host's disk feels none of it, and it outlives the daemon."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, Site, eventually
from tests.e2e.submitter import STACK, Followed, Submitter, open_submitter, sh
from tests.mounted import mounted_tmpfs, results_in_memory

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
WARNING = "the files that jobs write results to are watched, not bounded"
WAITS = sh("echo up; until grep -q go /job/progress; do sleep 0.05; done; echo '{\"a\": 1}' >/job/output")
HELD = "a process was killed for memory while /job/output held 256 MiB"
TOO_LONG = "was ended by SIGXFSZ for a file longer than 256 MiB"
TOO_LARGE = "exited with code 0, but JOB_OUTPUT_FILE holds more than 64 KiB"
BOTH = "for name in output progress; do %s || exec kill -9 $$; done"
TAKES = [
    (BOTH % "fallocate -l 262146k /job/$name", "oom_killed", HELD),
    (BOTH % "head -c 262146k /dev/zero >/job/$name", "oom_killed", HELD),
    (BOTH % "truncate -s 262146k /job/$name", "failed", TOO_LARGE),
    ("exec fallocate -l 300m /job/output", "disk_limit", TOO_LONG),
]


def used(folder: Path) -> int:
    """Bytes that are taken of a file system."""
    disk = os.statvfs(folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


async def most_used(folder: Path, over: asyncio.Event) -> int:
    """The most that was taken of a file system at any time until it was over."""
    most = 0
    while not over.is_set():
        most = max(most, used(folder))
        await asyncio.wait({asyncio.ensure_future(over.wait())}, timeout=0.02)
    return most


@asynccontextmanager
async def serving(site: Site, **settings: str) -> AsyncIterator[tuple[Daemon, Submitter]]:
    async with site.daemon(**settings) as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            yield daemon, acme


async def go_on(site: Site, job: Followed, place: str) -> None:
    """Let a job end that waits for a word in a file of its own."""
    claim = job.events[0]["claim"]
    await asyncio.to_thread((site.state_dir / place / claim / "progress").write_text, '"go"')


def warnings(daemon: Daemon) -> int:
    return daemon.log.read_text().count(WARNING)


async def test_the_hosts_disk_feels_nothing(at: OpenSite, tmp_path: Path) -> None:
    limits = {"disk": "256m", "memory": "16m"}
    async with at(tmp_path) as site:
        # The outer one stands for the host's disk: nobody else writes to it.
        with mounted_tmpfs(site.state_dir, "size=64m"), results_in_memory(site.state_dir):
            async with serving(site, capacity__disk_free="1m") as (daemon, acme), asyncio.TaskGroup() as tasks:
                over = asyncio.Event()
                watching = tasks.create_task(most_used(site.state_dir, over))
                jobs = [await acme.submit(sh(script), limits=limits) for script, _, _ in TAKES]
                calm = await acme.run(sh("echo 1 >/job/progress; echo '\"calm\"' >/job/output"))
                calm.ended("succeeded", blame="none", exit_code=0, output="calm")
                for greedy, (_, outcome, reason) in zip(jobs, TAKES, strict=True):
                    await greedy.finished()
                    told = [greedy.result[name] for name in ("outcome", "blame", "oom_seen")]
                    assert told == [outcome, "job", outcome == "oom_killed"], greedy.result
                    assert greedy.result["reason"].startswith(reason)
                # Not the init, though it is the largest process: it has told of the end.
                assert None not in jobs[0].result["usage"].values(), jobs[0].result
                assert jobs[0].result["logs"]["complete"]
                over.set()
                assert await watching < 16 * MIB
                await daemon.clean()
                assert used(site.state_dir / "results") == 0
                await daemon.stop()
            assert warnings(daemon) == 0


async def test_a_job_goes_on_in_whatever_place_it_began(site: Site) -> None:
    site.keep_warm(STACK, 1)
    async with serving(site, warm__enabled="true") as (first, acme):
        on_disk = await acme.submit(WAITS)
        await on_disk.wrote("up\n")
        await first.kill()
        assert warnings(first) == 1
        with results_in_memory(site.state_dir):
            async with serving(site, warm__enabled="true") as (second, _):
                assert warnings(second) == 0

                async def one_waits() -> bool:
                    return (await second.metrics()).get("runner_warm_containers") == 1

                await eventually(one_waits, "a container waits")
                in_memory = await acme.submit(WAITS)
                await in_memory.wrote("up\n")
                assert (await in_memory.event("started"))["warm"]
                await second.kill()
                async with serving(site) as (third, _):
                    await go_on(site, on_disk, "jobs")
                    await go_on(site, in_memory, "results/jobs")
                    for job in (on_disk, in_memory):
                        await job.finished()
                        job.ended("succeeded", blame="none", exit_code=0, output={"a": 1})
                        assert [event["progress"] for event in job.events if event["event"] == "progress"] == ["go"]
                    await third.clean()
                    await third.stop()
                assert list((site.state_dir / "results" / "jobs").iterdir()) == []

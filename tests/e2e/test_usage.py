"""What a job used is told however it ended, and never guessed."""

import asyncio
import subprocess

import aiodocker
import pytest
from scripts.devservices.process import as_root
from tests.e2e.daemon import Daemon
from tests.e2e.submitter import Followed, Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
BURN = "i=0; while [ $i -lt {count} ]; do i=$((i+1)); done"


async def process_one(daemon: Daemon, job: Followed) -> int:
    """The host's number of the job's init."""
    container = (await job.event("started"))["container"]
    async with aiodocker.Docker(url=daemon.site.engine) as docker:
        pid = (await docker.containers.container(container).show())["State"]["Pid"]
    assert pid > 1
    return int(pid)


async def test_a_job_of_a_moment_has_used_something(acme: Submitter) -> None:
    jobs = [await acme.run(sh(BURN.format(count=3000))) for _ in range(3)]
    for job in jobs:
        job.ended("succeeded", blame="none", exit_code=0)
        assert 0 < job.result["usage"]["cpu_seconds"] < 1
        assert MIB // 4 < job.result["usage"]["memory_peak_bytes"] <= 20 * MIB
    assert min(job.result["seconds"]["run"] for job in jobs) < 1, "it was to be a moment"


async def test_a_job_whose_init_had_to_be_killed_has_used_what_the_host_says(acme: Submitter, daemon: Daemon) -> None:
    fill = "head -c 3m /dev/zero >/work/a"
    job = await acme.submit(
        sh(f"{fill}; {BURN.format(count=200_000)}; echo up; exec sleep 600"), limits={"grace": "1s"}
    )
    await job.wrote("up\n")
    init = await process_one(daemon, job)
    # It can neither pass on a signal nor report any more.
    await asyncio.to_thread(subprocess.run, as_root("kill", "-STOP", str(init)), check=True)
    await acme.cancel(job)
    (await job.finished()).ended("cancelled", blame="none", signal=9)
    assert 0.02 < job.result["usage"]["cpu_seconds"] < 10
    assert 3 * MIB < job.result["usage"]["memory_peak_bytes"] <= 20 * MIB
    assert job.result["logs"]["complete"] is False


async def test_a_job_that_somebody_else_killed_has_used_nobody_knows_what(acme: Submitter, daemon: Daemon) -> None:
    job = await acme.submit(sh("echo up; exec sleep 600"))
    await job.wrote("up\n")
    init = await process_one(daemon, job)
    await asyncio.to_thread(subprocess.run, as_root("kill", "-KILL", str(init)), check=True)
    (await job.finished()).ended("failed", blame="job", signal=9)
    assert job.result["usage"] == {"cpu_seconds": None, "memory_peak_bytes": None}

"""`limits.scratch`: real disk for jobs that need gigabytes, bounded in bytes and files, and gone when they are."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, Site, eventually
from tests.e2e.submitter import Submitter, open_submitter, sh
from tests.mounted import mounted_tmpfs

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
SIZE = 64 * MIB
SETTINGS = {"limits__max__scratch": "4g", "worker__max_deferred": "0"}
FILL = "dd if=/dev/zero of=/scratch/big bs=64k 2>/dev/null"


@pytest.fixture(scope="module")
async def daemon(at: OpenSite, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with at(tmp_path_factory.mktemp("scratch")) as site, site.daemon(**SETTINGS) as daemon:
        await daemon.ready()
        yield daemon
        await daemon.stop()


@pytest.fixture
async def acme(daemon: Daemon) -> AsyncIterator[Submitter]:
    async with open_submitter(daemon.site.broker, daemon.site.ns) as submitter:
        yield submitter
        await submitter.cancel_all()
    await daemon.clean()
    await eventually(lambda: no_disks(daemon.site), "all scratch disks are gone")


async def no_disks(site: Site) -> bool:
    """Whether no loop device has a file of that site any more, whoever made it."""
    found = await asyncio.to_thread(subprocess.run, ["losetup", "--list", "--json"], capture_output=True, check=True)
    devices = json.loads(found.stdout)["loopdevices"] if found.stdout else []
    return not [one for one in devices if str(one["back-file"]).startswith(f"{site.state_dir}/")]


async def test_a_job_without_scratch_has_none(acme: Submitter) -> None:
    job = await acme.run(sh("test -e /scratch && echo there; exit 0"))
    assert job.text() == ""


async def test_it_is_empty_the_jobs_own_and_takes_what_was_asked_for(acme: Submitter) -> None:
    look = "ls -A /scratch; grep -o '/scratch.*' /proc/mounts; cd /scratch; mkdir a; chmod 700 a; df -k /scratch"
    job = await acme.run(sh(f"{look}; head -c 60m /dev/zero >a/b && wc -c <a/b"), limits={"scratch": SIZE})
    job.ended("succeeded", blame="none", exit_code=0)
    first, *_, last = job.text().splitlines()
    assert re.match(r"/scratch ext4 rw,nosuid,nodev", first), first
    assert int(last) == 60 * MIB


async def test_more_than_the_memory_can_be_written(acme: Submitter) -> None:
    # Bit by bit: the first version of control groups lets nobody wait until what is written has reached the disk.
    writes = "dd if=/dev/zero of=/scratch/a bs=1M count=20 seek=$i conv=notrunc,fsync || exit 1; i=$((i + 20))"
    script = f"i=0; while [ $i -lt 200 ]; do {writes}; done; wc -c </scratch/a"
    job = await acme.submit(sh(script), limits={"scratch": "256m"})
    await job.finished(timeout=180)  # disks differ
    job.ended("succeeded", blame="none", exit_code=0, oom_seen=False)
    assert int(job.text()) == 200 * MIB


@pytest.mark.parametrize(
    ("fill", "what"),
    [
        (f"{FILL}; exit 9", r"/scratch was full \(\d+ MiB\)"),
        (
            "exec 3>/scratch/a; rm /scratch/a; dd if=/dev/zero bs=64k >&3 2>/dev/null; sleep 600 & exit 9",
            r"/scratch was full \(\d+ MiB\)",
        ),
        ("cd /scratch; seq 9999 | xargs touch 2>/dev/null; exit 9", r"/scratch had no room for another file .*"),
    ],
    ids=["one big file", "a file without a name", "many small files"],
)
async def test_a_job_that_fills_it_fails_for_that(acme: Submitter, fill: str, what: str) -> None:
    job = await acme.run(sh(fill), limits={"scratch": SIZE})
    job.ended("disk_limit", blame="job", exit_code=9)
    assert re.fullmatch(f"failed while {what}; raise limits.scratch", job.result["reason"]), job.result["reason"]


async def test_a_sparse_file_counts_by_what_it_holds_and_a_longer_one_is_no_file(acme: Submitter) -> None:
    sparse = "dd if=/dev/zero of=/scratch/s bs=1 count=1 seek=60M 2>/dev/null; du -k /scratch/s | cut -f1"
    job = await acme.run(sh(f"{sparse}; dd if=/dev/zero of=/scratch/s bs=1 count=1 seek=90M"), limits={"scratch": SIZE})
    job.ended("disk_limit", blame="job", signal=signal.SIGXFSZ, reason="a file longer than 64 MiB, its scratch limit")
    assert int(job.text().split()[0]) < 64


async def test_a_job_that_copes_with_a_full_disk_has_succeeded(acme: Submitter) -> None:
    job = await acme.run(sh(f"{FILL}; rm /scratch/big"), limits={"scratch": SIZE})
    job.ended("succeeded", blame="none", exit_code=0)


async def test_a_neighbour_has_all_of_its_own(acme: Submitter) -> None:
    full = await acme.submit(sh(f"{FILL}; echo full; exec sleep 600"), limits={"scratch": SIZE})
    await full.wrote("full\n")
    job = await acme.run(sh("head -c 60m /dev/zero >/scratch/a && ls /scratch"), limits={"scratch": SIZE})
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "a\n"
    await acme.cancel(full)
    (await full.finished()).ended("cancelled", blame="none", signal=15)


async def test_a_job_that_does_not_stop_writing_is_stopped(acme: Submitter) -> None:
    loop = "trap '' TERM; echo up; while :; do dd if=/dev/zero of=/scratch/a bs=1M count=32 2>/dev/null; done"
    job = await acme.submit(sh(loop), limits={"scratch": SIZE, "grace": "1s"})
    await job.wrote("up\n")
    await acme.cancel(job)
    (await job.finished()).ended("cancelled", blame="none", signal=9)


async def test_it_is_reserved_on_the_hosts_disk_while_the_job_lives(acme: Submitter, daemon: Daemon) -> None:
    def room() -> int:
        disk = os.statvfs(daemon.site.state_dir)
        return disk.f_bavail * disk.f_frsize

    before = room()
    job = await acme.submit(sh("echo up; exec sleep 600"), limits={"scratch": "4g"})
    await job.wrote("up\n")
    assert before - room() > 3 * 2**30
    await acme.cancel(job)
    await job.finished()

    async def given_back() -> bool:
        return before - room() < 2**30

    await eventually(given_back, "the disk's space is free again")


async def test_a_daemon_that_was_killed_leaves_no_disk(at: OpenSite, tmp_path: Path) -> None:
    settings = {**SETTINGS, "worker__lease": "6s"}
    async with at(tmp_path) as site, site.daemon(**settings) as first:
        await first.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(sh("echo up; echo a >/scratch/a; exec sleep 600"), limits={"scratch": SIZE})
            await job.wrote("up\n")
            await first.kill()
            async with site.daemon(**settings) as second:
                await second.ready()
                await acme.cancel(job)
                (await job.finished()).ended("cancelled", blame="none", signal=15)
                assert job.kinds.count("started") == 1
                await second.stop()
            await eventually(lambda: no_disks(site), "its scratch disk is gone")


async def test_a_job_that_no_room_is_left_for_waits(at: OpenSite, tmp_path: Path) -> None:
    async with at(tmp_path) as site:
        with mounted_tmpfs(site.state_dir, "size=256m"):
            async with site.daemon(**SETTINGS, capacity__disk_free="32m") as daemon:
                await daemon.ready()
                async with open_submitter(site.broker, site.ns) as acme:
                    one = await acme.submit(sh("echo up; exec sleep 600"), limits={"scratch": "128m"})
                    await one.wrote("up\n")
                    two = await acme.submit(["true"], limits={"scratch": "128m"})

                    async def told() -> bool:
                        return "needs 128 MiB of scratch disk" in (await daemon.get("/"))[1]

                    await eventually(told, "the worker says what the job waits for")
                    (await acme.run(["true"])).ended("succeeded", blame="none", exit_code=0)
                    assert two.kinds == []
                    never = await acme.run(["true"], limits={"scratch": "1g"})
                    never.ended(
                        "rejected", blame="request", reason="needs 1 GiB of scratch, this worker's disk holds 2"
                    )
                    await acme.cancel(one)
                    (await two.finished()).ended("succeeded", blame="none", exit_code=0)
                await daemon.stop()

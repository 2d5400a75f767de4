"""What a job writes is bounded wherever it can write: bytes and files."""

import asyncio
from pathlib import Path

import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import eventually
from tests.e2e.submitter import Submitter, open_submitter, sh
from tests.mounted import mounted_tmpfs

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
LIMIT = 4 * MIB

WRITABLE = r"""
for place in $(cut -d" " -f2 /proc/mounts | sort -u); do
    case $place in /proc/*|/sys/*) continue;; esac
    if [ -d "$place" ]; then ( : >"$place/probe" ) 2>/dev/null && echo "$place"
    elif [ -f "$place" ]; then ( : >>"$place" ) 2>/dev/null && echo "$place"; fi
done
exit 0
"""


async def test_there_is_no_other_place_to_write_to(acme: Submitter) -> None:
    job = await acme.run(sh(WRITABLE))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text().split() == ["/dev/shm", "/job/output", "/job/progress", "/tmp", "/work"]  # noqa: S108


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])  # noqa: S108
async def test_no_place_takes_more_bytes_than_the_limit(acme: Submitter, place: str) -> None:
    job = await acme.run(sh(f"head -c 16m /dev/zero >{place}/big; wc -c <{place}/big; exit 9"))
    job.ended("disk_limit", blame="job", exit_code=9, reason=f"{place} was full (4 MiB); raise limits.disk")
    assert int(job.text()) == LIMIT


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])  # noqa: S108
async def test_no_place_takes_more_files_than_the_limit(acme: Submitter, place: str) -> None:
    job = await acme.run(sh(f"cd {place}; seq 2000 | xargs touch 2>/dev/null; ls | wc -l; exit 9"))
    job.ended("disk_limit", blame="job", exit_code=9, reason=f"{place} had no room for another file (it had 1024)")
    assert 1000 < int(job.text()) < 1024


@pytest.mark.parametrize("name", ["output", "progress"])
async def test_the_files_on_the_hosts_disk_cannot_grow_over_the_limit(acme: Submitter, name: str) -> None:
    fill = f"head -c 16m /dev/zero >/job/{name}; wc -c </job/{name}; exit 9"
    job = await acme.run(sh(fill), limits={"disk": "512k"})
    assert job.result["exit_code"] == 9
    assert MIB // 2 <= int(job.text()) <= MIB // 2 + 4096


@pytest.mark.parametrize("name", ["output", "progress"])
@pytest.mark.parametrize("take", ["head -c 6m /dev/zero >", "fallocate -l 6m "])
async def test_nobody_keeps_gigabytes_in_them(acme: Submitter, name: str, take: str) -> None:
    job = await acme.run(sh(f"{take}/job/{name}; exec sleep 600"), limits={"disk": "8m"})
    job.ended("disk_limit", blame="job", signal=9, reason=f"/job/{name} took 6 MiB of its worker's disk")
    assert job.kinds[-2:] == ["stopping", "finished"]


async def test_what_a_job_writes_into_its_container_is_bounded(acme: Submitter) -> None:
    fill = "i=0; while dd if=/dev/zero of=/var/$((i+=1)) bs=64k count=16 2>/dev/null; do sleep 0.05; done"
    job = await acme.run(sh(f"mkdir -p /var; {fill}"), stack="e2e-root", limits={"disk": "4m"})
    job.ended("disk_limit", blame="job", signal=9, reason="into its container, more than limits.disk")


async def test_a_job_that_writes_little_into_its_container_is_left_alone(acme: Submitter) -> None:
    job = await acme.run(sh("echo a >/a && sleep 2.5 && cat /a"), stack="e2e-root")
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "a\n"


async def test_nobody_uses_up_the_message_queues_of_all(acme: Submitter) -> None:
    job = await acme.run(sh("touch /dev/mqueue/mine 2>&1; ls -A /dev/mqueue"))
    assert job.text() == "touch: /dev/mqueue/mine: Too many open files\n"


async def test_no_job_is_taken_while_the_disk_is_nearly_full(at: OpenSite, tmp_path: Path) -> None:
    async with at(tmp_path) as site:
        with mounted_tmpfs(site.state_dir, "size=64m"):
            async with site.daemon(capacity__disk_free="32m") as daemon:
                await daemon.ready()
                async with open_submitter(site.broker, site.ns) as acme:
                    filler = site.state_dir / "filler"
                    await asyncio.to_thread(filler.write_bytes, bytes(40 * MIB))

                    async def full() -> bool:
                        return any(problem.startswith("disk: ") for problem in await daemon.problems())

                    await eventually(full, "the worker says that the disk is full")

                    async def listens_no_more() -> bool:
                        return await acme.listeners("q.default.normal") == 0

                    await eventually(listens_no_more, "the worker takes no jobs")
                    job = await acme.submit(["true"])

                    async def waits() -> bool:
                        return await acme.waiting("q.default.normal") == 1

                    await eventually(waits, "the job waits in the broker")
                    assert job.events == []
                    filler.unlink()
                    await job.finished()
                    job.ended("succeeded", blame="none", exit_code=0)
                await daemon.stop()

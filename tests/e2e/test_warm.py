"""Containers that wait for jobs, as operators and submitters see them."""

from collections.abc import Awaitable, Callable

import pytest
from tests.e2e.daemon import Daemon, Site, eventually
from tests.e2e.submitter import STACK, Followed, open_submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]


def waiting(daemon: Daemon, count: int) -> Callable[[], Awaitable[bool]]:
    async def so_many() -> bool:
        return (await daemon.metrics()).get("runner_warm_containers", 0.0) == count

    return so_many


async def is_warm(job: Followed) -> bool:
    warm: bool = (await job.event("started"))["warm"]
    return warm


async def test_a_stack_keeps_containers_ready_and_leaves_none(site: Site) -> None:
    site.keep_warm(STACK, 2)
    async with site.daemon(warm__enabled="true") as daemon:
        await daemon.ready()
        await eventually(waiting(daemon, 2), "two containers wait")
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.run(sh("echo $JOB_ID; cat $JOB_PAYLOAD_FILE"), payload="data")
            job.ended("succeeded", exit_code=0)
            assert job.text() == f"{job.id}\ndata"
            assert await is_warm(job)
        await eventually(waiting(daemon, 2), "another one takes its place")
        await daemon.clean()
        metrics = await daemon.metrics()
        assert metrics["runner_warm_containers"] == 2
        assert "<h2>warm</h2>" in (await daemon.get("/"))[1]
        await daemon.stop()
        assert await site.containers() == []


async def test_jobs_that_keep_coming_are_awaited(site: Site) -> None:
    async with site.daemon(warm__enabled="true") as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            jobs = [await acme.run(["true"]) for _ in range(6)]
            assert not any([await is_warm(job) for job in jobs])
            await eventually(waiting(daemon, 1), "one waits for the next")
            assert await is_warm(await acme.run(["true"]))
        await daemon.stop()


async def test_none_wait_where_the_operator_wants_none(site: Site) -> None:
    site.keep_warm(STACK, 2)
    async with site.daemon(warm__enabled="false") as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            jobs = [await acme.run(["true"]) for _ in range(8)]
            assert not any([await is_warm(job) for job in jobs])
            await daemon.clean()
        assert await site.containers() == []
        await daemon.stop()


async def test_there_are_never_more_than_the_operator_has_memory_for(site: Site) -> None:
    site.keep_warm(STACK, 10)
    async with site.daemon(warm__enabled="true", warm__memory="48m") as daemon:
        await daemon.ready()
        await eventually(waiting(daemon, 3), "three of 16 MiB wait")
        async with open_submitter(site.broker, site.ns) as acme:
            assert await is_warm(await acme.run(["true"]))
        await eventually(waiting(daemon, 3), "three wait again")
        await daemon.stop()


async def test_nothing_waits_on_a_worker_that_takes_no_jobs(site: Site) -> None:
    site.keep_warm(STACK, 2)
    async with site.daemon(warm__enabled="true", worker__drain_timeout="60s") as daemon:
        await daemon.ready()
        await eventually(waiting(daemon, 2), "two containers wait")
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(sh("echo up; exec sleep 600"))
            await job.wrote("up\n")
            daemon.terminate()
            await eventually(waiting(daemon, 0), "a worker on its way out keeps none ready")
            await acme.cancel(job)
            await job.finished()
        await daemon.stopped()


@pytest.mark.slow
async def test_what_a_killed_daemon_kept_is_replaced(site: Site) -> None:
    site.keep_warm(STACK, 2)
    async with site.daemon(warm__enabled="true") as killed:
        await killed.ready()
        await eventually(waiting(killed, 2), "two containers wait")
        killed.process.kill()
        await killed.process.wait()
    async with site.daemon(warm__enabled="true") as daemon:
        await daemon.ready()
        await eventually(waiting(daemon, 2), "two containers wait")
        await _serves(daemon, site)
        await daemon.stop()


async def _serves(daemon: Daemon, site: Site) -> None:
    async with open_submitter(site.broker, site.ns) as acme:
        job = await acme.run(["true"])
        assert await is_warm(job)
    await daemon.clean()

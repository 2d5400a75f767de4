"""What a fleet remembers: cancels of jobs that nobody has yet, and which jobs are to be the only ones of their ids."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import aio_pika
import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, Site
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh

from runner.adapters.amqp.names import Names

pytestmark = [pytest.mark.engine, pytest.mark.broker]


@asynccontextmanager
async def second(site: Site) -> AsyncIterator[Daemon]:
    """Another worker of the same fleet."""
    name = f"{site.ns}-two"
    elsewhere = replace(site, folder=site.folder / "two")
    elsewhere.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with elsewhere.daemon(worker__name=name, stacks__dir=str(site.stacks)) as daemon:
        await daemon.ready()
        yield daemon
        daemon.terminate()
        assert await daemon.exited() == 0
        assert not daemon.faults()
    async with await aio_pika.connect(site.broker) as connection:
        channel = await connection.channel()
        for queue in (Names(site.ns).worker_lease(name), Names(site.ns).worker_control(name)):
            await channel.queue_delete(queue)


async def test_what_was_cancelled_while_no_worker_was_up_never_runs(site: Site) -> None:
    async with site.daemon() as daemon:
        await daemon.ready()
        await daemon.stop()
    async with open_submitter(site.broker, site.ns) as acme:
        jobs = [await acme.submit(["true"]) for _ in range(5)]
        other = await acme.submit(["true"])
        for job in jobs:
            await acme.cancel(job, "typo")
        async with site.daemon() as daemon, second(site):
            await daemon.ready()
            for job in jobs:
                await job.finished()
                job.ended("cancelled", blame="none", reason="cancelled: typo")
                assert job.kinds == ["finished"]
            await other.finished()
            other.ended("succeeded", blame="none", exit_code=0)
            await daemon.stop()


async def test_what_was_cancelled_while_its_worker_was_down_is_stopped_when_that_is_back(site: Site) -> None:
    async with site.daemon() as first:
        await first.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(sh("echo up; exec sleep 600"))
            await job.wrote("up\n")
            await first.kill()
            await acme.cancel(job, "not needed")
            async with site.daemon() as daemon:
                await job.finished()
                job.ended("cancelled", blame="none", signal=15, reason="not needed")
                assert job.kinds.count("started") == 1
                await daemon.stop()


async def test_a_job_is_cancelled_while_it_is_delayed_or_waits_for_its_next_attempt(acme: Submitter) -> None:
    retried = await acme.submit(sh("exit 1"), retry={"max": 3, "delay": "5s"})
    await retried.event("retrying")
    delayed = await acme.submit(["true"], delay="5s")
    for job in (retried, delayed):
        await acme.cancel(job)
    for job in (delayed, retried):
        await job.finished()
        job.ended("cancelled", blame="none")
    assert delayed.kinds == ["finished"]
    assert retried.kinds.count("started") == 1


async def test_a_cancel_of_what_is_over_harms_nobody(acme: Submitter) -> None:
    job = await acme.run(["true"])
    await acme.cancel(job)
    after = await acme.run(["true"])
    after.ended("succeeded", blame="none", exit_code=0)
    assert job.kinds.count("finished") == 1


async def copies(acme: Submitter, job_id: str, count: int) -> Followed:
    body = {"id": job_id, "stack": "e2e-plain", "command": ["true"], "unique": "1h"}
    published = [acme.publish(json.dumps(body).encode(), job_id=job_id) for _ in range(count)]
    return (await asyncio.gather(*published))[0]


async def test_of_many_copies_of_a_unique_job_one_worker_runs_one(
    at: OpenSite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(at(tmp_path_factory.mktemp("fleet")))
        daemon = await stack.enter_async_context(site.daemon())
        await daemon.ready()
        acme = await stack.enter_async_context(open_submitter(site.broker, site.ns))
        async with second(site):
            jobs = [await copies(acme, f"only-{number}", 6) for number in range(8)]
            for job in jobs:
                await job.until(lambda job=job: len(_ends(job)) == 6, "six ends")  # type: ignore[misc]
                assert sorted(_ends(job)) == ["duplicate"] * 5 + ["finished"]
                assert job.kinds.count("started") == 1
                job.ended("succeeded", blame="none", exit_code=0)
            workers = {event["worker"] for job in jobs for event in job.events if event["event"] == "duplicate"}
            assert len(workers) == 2
        await daemon.stop()
        assert await site.messages() == {}


def _ends(job: Followed) -> list[str]:
    return [kind for kind in job.kinds if kind in ("finished", "duplicate")]


async def test_a_unique_job_passes_its_own_retries(acme: Submitter) -> None:
    job = await acme.submit(sh('test "$JOB_ATTEMPT" -gt 1'), unique="1h", retry={"max": 2, "delay": "1s"}, delay="1s")
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0, attempt=2)
    assert "duplicate" not in job.kinds

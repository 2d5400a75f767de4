"""The lives of a daemon: how it starts, how it ends, and what it finds when it comes back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aio_pika
import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import BUSY, WAITS, Daemon, Site, eventually
from tests.e2e.submitter import open_submitter, sh
from tests.proxy import Proxy

pytestmark = [pytest.mark.engine, pytest.mark.broker]

CONFIG = 78
RUNS_ONCE_IN_VAIN = sh('test "$JOB_ATTEMPT" -gt 1 && exec echo again; echo up; exec sleep 600')


@pytest.fixture(scope="module", autouse=True)
async def twin(at: OpenSite, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A second daemon of one name, on another machine so to speak; it gives up after a minute, meanwhile others run."""
    folder = tmp_path_factory.mktemp("twins")
    async with at(folder) as site, site.daemon() as first:
        await first.ready()
        elsewhere = replace(site, folder=folder / "elsewhere")
        elsewhere.state_dir.mkdir(mode=0o700, parents=True)
        async with first.unhindered(but=BUSY), elsewhere.daemon(stacks__dir=str(site.stacks)) as second:
            yield second
        await first.stop()


async def draining(daemon: Daemon) -> None:
    async def is_so() -> bool:
        return "draining" in await daemon.problems()

    await eventually(is_so, "the daemon drains")


async def test_a_drain_lets_jobs_end_and_takes_no_more(site: Site) -> None:
    async with site.daemon(capacity__max_jobs="1") as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            running = await acme.submit(sh(f"echo up; {WAITS}; echo done"))
            await running.wrote("up\n")
            queued = await acme.submit(["true"])
            daemon.terminate()
            await draining(daemon)
            assert (await daemon.get("/healthz"))[0] == 200
            site.let_go(running)
            await daemon.stopped()
            await running.finished()
            running.ended("succeeded", blame="none", exit_code=0)
            assert running.text() == "up\ndone\n"
            assert queued.events == []
    assert await site.messages() == {"q.default.normal": 1}


async def test_a_drain_that_takes_too_long_gives_jobs_back(site: Site) -> None:
    async with site.daemon(worker__drain_timeout="1s") as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(RUNS_ONCE_IN_VAIN)
            await job.wrote("up\n")
            await daemon.stop()
            await job.event("retrying")
            assert job.kinds == ["claimed", "started", "stopping", "retrying"]
            assert (await job.event("stopping"))["reason"] == "shutdown"
            assert (await job.event("retrying"))["outcome"] == "lost"
            async with site.daemon() as next_daemon:
                await job.finished()
                job.ended("succeeded", blame="none", exit_code=0, attempt=2)
                assert job.kinds[4:] == ["claimed", "started", "finished"]
                await next_daemon.stop()
    assert await site.messages() == {}


async def test_a_second_signal_ends_all_at_once(site: Site) -> None:
    async with site.daemon() as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(sh("trap '' TERM; echo up; sleep 600"), limits={"grace": "60s"})
            await job.wrote("up\n")
            daemon.terminate()
            await draining(daemon)
            daemon.terminate()
            assert await daemon.exited() == 0
            await job.event("retrying")
            assert job.kinds == ["claimed", "started", "stopping", "retrying"]
    assert (await site.containers(), site.job_folders) == ([], [])


async def test_jobs_of_a_daemon_that_was_killed_end_once_each(site: Site) -> None:
    async with site.daemon() as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            jobs = [await acme.submit(sh(f"echo up; {WAITS}; echo done")) for _ in range(10)]
            await asyncio.gather(*(job.wrote("up\n") for job in jobs))
            await daemon.kill()
            for job in jobs[:5]:
                site.let_go(job)
            async with site.daemon() as next_daemon:
                await next_daemon.ready()
                assert all("finished" not in job.kinds for job in jobs[5:])
                for job in jobs[5:]:
                    site.let_go(job)
                for job in jobs:
                    await job.finished()
                    job.ended("succeeded", blame="none", exit_code=0)
                    assert job.text() == "up\ndone\n"
                    assert job.kinds == ["claimed", "started", "finished"]
                await next_daemon.clean()
                await next_daemon.stop()
    assert await site.messages() == {}


async def test_a_daemon_in_the_same_folder_does_not_start(site: Site) -> None:
    async with site.daemon() as first:
        await first.ready()
        async with first.unhindered(but=BUSY), site.daemon() as second:
            assert await second.exited() == CONFIG
            assert f"in use by the process {first.process.pid}" in second.log.read_text()
        await first.stop()


async def test_every_fault_of_the_configuration_is_told_on_a_line_of_its_own(site: Site) -> None:
    wrong = {
        "worker__pools": '["Not a word"]',
        "amqp__url": "nonsense",
        "limits__max__timeout": "soon",
        "no__such": "1",
    }
    async with site.daemon(**wrong) as daemon:
        assert await daemon.exited() == CONFIG
        lines = sorted(daemon.log.read_text().splitlines())
        assert [line.split(": ")[:2] for line in lines] == [
            ["runner", "amqp.url[0]"],
            ["runner", "limits.max.timeout"],
            ["runner", "no"],
            ["runner", "worker.pools[0]"],
        ]


async def test_a_queue_that_stands_with_other_arguments_is_told(site: Site) -> None:
    async with await aio_pika.connect(site.broker) as connection:
        channel = await connection.channel()
        await channel.declare_queue(f"{site.ns}.q.default.normal", durable=True)
        await channel.declare_exchange(f"{site.ns}.dead", "direct", durable=True)
    async with site.daemon() as daemon:
        assert await daemon.exited() == CONFIG
        lines = daemon.log.read_text().splitlines()
        assert any(f"queue {site.ns}.q.default.normal stands with other arguments" in line for line in lines)
        assert any(f"exchange {site.ns}.dead stands with other arguments" in line for line in lines)


async def test_a_daemon_that_may_not_declare_tells_what_is_missing(site: Site) -> None:
    async with site.daemon(amqp__declare="false") as daemon:
        assert await daemon.exited() == CONFIG
        lines = daemon.log.read_text().splitlines()
        assert f"runner: queue {site.ns}.dead is missing; run: runner topology apply" in lines


@pytest.mark.parametrize("service", ["broker", "engine"])
async def test_a_service_that_is_not_there_yet_is_waited_for(site: Site, service: str) -> None:
    async with Proxy(site.broker if service == "broker" else site.engine) as proxy:
        await proxy.refuse()
        setting = "amqp__url" if service == "broker" else "engine__url"
        async with site.daemon(**{setting: proxy.url}) as daemon:

            async def is_alive() -> bool:
                return (await daemon.get("/healthz"))[0] == 200

            await eventually(is_alive, "the daemon answers")
            assert (await daemon.get("/readyz"))[0] == 503
            assert await daemon.problems() == ["starting: waiting for the broker or the engine"]
            await proxy.accept()
            await daemon.ready()
            assert await daemon.problems() == []
            await daemon.stop()


async def test_the_twin_gave_up(twin: Daemon) -> None:
    assert await twin.exited(timeout=90) == CONFIG
    assert f"another worker is called {twin.site.ns}" in twin.log.read_text().splitlines()[-1]

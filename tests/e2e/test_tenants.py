"""Tenants with queues of their own: shares by weight, a cap that can be changed while jobs run."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, Site, eventually, open_site
from tests.e2e.submitter import Submitter, open_submitter, sh
from tests.services import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.broker]

BURN = sh("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done")
"""Some tenths of a second of CPU time."""


@pytest.fixture
async def site(
    broker: Endpoint, engine: Endpoint, busybox_image: str, namespace: str, tmp_path: Path
) -> AsyncIterator[Site]:
    opened = open_site(
        broker=broker.url,
        engine=engine.url,
        image=busybox_image,
        folder=tmp_path,
        ns=namespace,
        tenants=("acme", "globex"),
    )
    async with opened as site:
        yield site


@asynccontextmanager
async def taking(site: Site, **settings: str) -> AsyncIterator[tuple[Daemon, Submitter]]:
    """A daemon that takes jobs, and whoever submits them."""
    async with site.daemon(**settings) as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as submitter:
            yield daemon, submitter


def configure(site: Site, text: str) -> str:
    """Write the configuration; its path."""
    path = site.folder / "runner.toml"
    path.write_text(text)
    return str(path)


def tenants(*, weight: int = 1, acme_runs: int | None = None) -> str:
    cap = "" if acme_runs is None else f"max_running = {acme_runs}\n"
    return f"[tenants.acme]\nqueue = true\nweight = {weight}\n{cap}[tenants.globex]\nqueue = true\n"


async def wait_for_depth(submitter: Submitter, queue: str, depth: int) -> None:
    async def is_so() -> bool:
        return await submitter.waiting(queue) == depth

    await eventually(is_so, f"{depth} messages are ready in {queue}")


async def test_a_tenants_cap_holds_up_its_own_jobs_only_and_is_raised_while_they_run(site: Site) -> None:
    config = configure(site, tenants(acme_runs=1))
    async with taking(site, config=config) as (daemon, submitter):
        long = sh("echo up; exec sleep 600")
        first = await submitter.submit(long)
        await first.wrote("up\n")
        second = await submitter.submit(long)
        for tenant in ("globex", "initech"):
            other = await submitter.run(["true"], to=f"default.normal.{tenant}")
            other.ended("succeeded", blame="none", exit_code=0)
        await wait_for_depth(submitter, "q.default.normal.acme", 1)
        assert second.events == []
        configure(site, tenants(acme_runs=2))
        daemon.process.send_signal(signal.SIGHUP)
        await second.wrote("up\n")
        for job in (first, second):
            await submitter.cancel(job)
            await job.finished()
        await daemon.stop()


async def test_what_tenants_get_of_a_full_worker_goes_by_their_weights(site: Site) -> None:
    config = configure(site, tenants(weight=3))
    settings = {"capacity__cpus": "0.5", "capacity__max_jobs": "1"}
    async with taking(site, config=config, **settings) as (daemon, submitter):
        gate = await submitter.submit(sh("echo up; exec sleep 600"), to="default.normal.initech")
        await gate.wrote("up\n")
        jobs = {
            tenant: [await submitter.submit(BURN, to=f"default.normal.{tenant}") for _ in range(14)]
            for tenant in ("acme", "globex")
        }
        for tenant in jobs:
            await wait_for_depth(submitter, f"q.default.normal.{tenant}", 14)
        await submitter.cancel(gate)

        def claimed() -> list[str]:
            order = [(job.events[0]["time"], tenant) for tenant, all_ in jobs.items() for job in all_ if job.events]
            return [tenant for _, tenant in sorted(order)]

        async def enough() -> bool:
            return len(claimed()) >= 16

        await eventually(enough, "16 jobs are claimed", 240)
        order = claimed()[:16]
        assert 10 <= order.count("acme") <= 14, order
        for tenant in jobs:
            await submitter.purge(f"q.default.normal.{tenant}")
        await daemon.stop()

"""The daemon's own proof that nothing leaks. The daemon is in this process, so that it need not take a minute."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import aiodocker
import aiohttp
import pytest
from tests.e2e.daemon import BUSY, Site, eventually, free_port, without_problems
from tests.e2e.submitter import open_submitter, sh

from runner.adapters.docker import sweep
from runner.app.serve import serve
from runner.settings import load_settings

pytestmark = [pytest.mark.engine, pytest.mark.broker]

AUDIT = "runner.adapters.docker.audit"


class Pages:
    """What the daemon shows."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> str:
        """The text of a page; nothing when nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url + path) as response:
                return await response.text()
        except aiohttp.ClientError:
            return ""

    async def show(self, count: int) -> bool:
        """Whether so many containers are unaccounted for, by the metrics and by the status."""
        metrics, page = await self.get("/metrics"), await self.get("/")
        gauge = f"\nrunner_containers_unaccounted {float(count)}\n" in metrics
        return gauge and f"<h2>unaccounted</h2>\n<p>{count}</p>" in page

    async def ready(self) -> bool:
        return await self.get("/readyz") == "[]"


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[Pages]:
    port = free_port()
    serving = asyncio.create_task(serve(load_settings(site.environment({"http__port": str(port)}))))
    pages = Pages(port)

    async def taking() -> bool:
        if serving.done():
            await serving
        return await pages.ready()

    try:
        await eventually(taking, "the daemon takes jobs")
        yield pages
    finally:
        if not serving.done():  # the signal is for its handler, which is gone with it
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(30):
            await serving


async def test_a_container_that_nobody_accounts_for_is_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "EVERY", timedelta(seconds=0.2))
    async with served(site) as pages, aiodocker.Docker(url=site.engine) as docker:
        assert await pages.show(0)
        stray = await docker.containers.create(
            {"Image": "runner/e2e-plain:current", "Cmd": ["true"], "Labels": {"runner.worker": site.ns}}
        )
        async with without_problems(lambda: pages.get("/readyz"), but=BUSY):
            await eventually(lambda: pages.show(1), "the container is shown")
        await stray.delete(force=True)
        await eventually(lambda: pages.show(0), "the container is not shown any more")
    told = [record.message for record in caplog.records if record.name == AUDIT]
    assert told[0] == "there are containers that nobody accounts for"


async def test_jobs_that_come_and_go_are_no_leak(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "EVERY", timedelta(seconds=0.01))
    async with served(site) as pages, open_submitter(site.broker, site.ns) as acme:
        for _ in range(5):
            await asyncio.gather(acme.run(["true"]), acme.run(sh("echo out; exit 3")))
        assert await pages.show(0)
    assert [record for record in caplog.records if record.name == AUDIT] == []

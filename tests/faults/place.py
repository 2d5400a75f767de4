"""A daemon under test with an engine that may be broken beneath it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aio_pika
import aiodocker
from tests.e2e.daemon import BUSY, Daemon, Site, eventually, open_site
from tests.e2e.submitter import STACK, Followed, Submitter, open_submitter, sh
from tests.engine_proxy import EngineProxy
from tests.faults import held_runtime
from tests.faults.held_runtime import HeldRuntime
from tests.services import Endpoint, Engine, build_busybox

IMPATIENT = (str(Path(__file__).with_name("impatient.py")),)
GO = "while [ ! -s $JOB_PROGRESS_FILE ]; do sleep 0.05; done"
"""Has a job go on when it is let go."""
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"


@dataclass(slots=True, kw_only=True)
class Place:
    """A daemon on an engine of its own, with a proxy in between."""

    engine: Engine
    proxy: EngineProxy
    site: Site
    daemon: Daemon
    acme: Submitter
    held: HeldRuntime | None
    """What the engine makes the containers of the stack of that name with."""

    async def running(self, script: str, **fields: Any) -> Followed:
        """A job that has written `up`, and of whose start is told."""
        job = await self.acme.submit(sh(script), **fields)
        await job.wrote("up\n")
        await job.event("started")  # the log comes by a way of its own, and may be first
        return job

    async def container_of(self, job: Followed) -> str:
        """The id of the container that the engine has for a job now, told of or not."""
        await job.event("claimed")
        name = f"runner-{self.site.ns}-{job.events[-1]['claim']}"
        async with aiodocker.Docker(url=self.engine.url) as docker:
            return (await docker.containers.get(name)).id

    def unhindered(self) -> AbstractAsyncContextManager[None]:
        """A block in which the daemon takes jobs; but for an engine that is busy, which this one gives a second."""
        return self.daemon.unhindered(but=BUSY)

    def let_go(self, job: Followed) -> None:
        """End a job's `GO`."""
        claim = job.events[-1]["claim"]
        (self.site.state_dir / "jobs" / claim / "progress").write_text("go on")

    async def quarantined(self, *jobs: Followed) -> None:
        """Return when the places of these jobs, and no other, are."""

        async def told() -> bool:
            return sorted(key.split("/")[-1] for key in (await self.status())["quarantined"]) == ids

        ids = sorted(job.id for job in jobs)
        await eventually(told, f"the places of {ids} are quarantined")

    async def says(self, what: str) -> None:
        """Return when the daemon names that as a problem."""

        async def told() -> bool:
            return any(what in problem for problem in await self.daemon.problems())

        await eventually(told, f"the daemon says: {what}")

    async def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        control = await self.acme.exchange(".control")
        queue = await self.acme.channel.declare_queue(exclusive=True)
        await control.publish(aio_pika.Message(b"", reply_to=queue.name), f"worker.{self.site.ns}.ping")
        async with asyncio.timeout(30), queue.iterator() as messages:
            async for message in messages:
                body: dict[str, Any] = json.loads(message.body)
                return body
        raise AssertionError("no answer")

    async def calm_down(self) -> None:
        """Return when everything works, nothing runs, and nothing is left of what did."""
        self.proxy.heal()
        await (self.engine.resume() if self.engine.process is not None else self.engine.start())
        await self.acme.cancel_all()
        await self.daemon.ready()
        await self.daemon.clean()

    async def leave(self) -> None:
        """Drain the daemon; nothing is left."""
        self.daemon.terminate()
        assert await self.daemon.exited() == 0
        assert await self.site.containers() == []
        assert self.site.job_folders == []


@asynccontextmanager
async def open_place(
    engine: Engine, broker: Endpoint, folder: Path, *, warm: int = 0, held: HeldRuntime | None = None
) -> AsyncIterator[Place]:
    """A daemon that gives up soon, ready; what is on the engine and in the broker is removed at the end.

    It keeps so many containers `warm`. `held` is a runtime that the engine was told of.
    """
    image = await build_busybox(engine.url)
    ns = f"f{token_hex(5)}"
    async with (
        EngineProxy(engine.url) as proxy,
        open_site(broker=broker.url, engine=engine.url, image=image, folder=folder, ns=ns) as site,
    ):
        settings = {"engine__url": proxy.url, "engine__start_parallelism": "16"}
        if warm:
            site.keep_warm(STACK, warm)
            settings["warm__enabled"] = "true"
        if held is not None:
            settings["engine__runtimes"] = json.dumps(["runc", held_runtime.NAME])
            site.write_stack(held_runtime.STACK, f'runtime = "{held_runtime.NAME}"\n')
            async with aiodocker.Docker(url=engine.url) as docker:
                await docker.images.tag(image, repo=f"runner/{held_runtime.STACK}", tag="current")
        async with site.daemon(program=IMPATIENT, **settings) as daemon:
            await daemon.ready()
            async with open_submitter(site.broker, site.ns) as acme:
                yield Place(engine=engine, proxy=proxy, site=site, daemon=daemon, acme=acme, held=held)

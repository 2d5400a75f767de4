"""Revisions are switched and rolled back while jobs flow: nobody notices, and no job runs on a mixture."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex

import aiodocker
import pytest
from tests.e2e.daemon import Daemon, Site
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh
from tests.services import BUSYBOX_TAG

from runner.app.stacks import build_stack, use_revision
from runner.settings import Settings, load_settings

pytestmark = [pytest.mark.broker, pytest.mark.engine]

AT_ONCE = "6"
"""So few that most jobs wait here for room, and get what is current when they have it."""


@asynccontextmanager
async def two_revisions(site: Site) -> AsyncIterator[tuple[str, Settings, dict[str, str]]]:
    """A stack with two revisions, and what the file /version says in each; its images are removed at the end."""
    stack = f"switch-{token_hex(4)}"
    folder, settings = site.stacks / stack, load_settings(site.environment({}))
    site.write_stack(stack, 'smoke = ["cat", "/version"]\n')
    (folder / "Dockerfile").write_text(f"FROM {BUSYBOX_TAG}\nCOPY version /version\n")
    versions = {}
    try:
        for version in ("one", "two"):
            (folder / "version").write_text(f"{version}\n")
            admitted = await build_stack(settings, stack, print, use=True, fresh=False)
            versions[admitted.revision] = f"{version}\n"
        yield stack, settings, versions
    finally:
        async with aiodocker.Docker(url=site.engine) as docker:
            for image in await docker.images.list(filters={"reference": [f"runner/{stack}"]}):
                for tag in image["RepoTags"]:
                    await docker.images.delete(tag, force=True)


@dataclass(slots=True)
class Switching:
    """How often a revision was switched so far, and whether that is enough."""

    times: int = 0
    enough: bool = False


async def switch(settings: Settings, stack: str, revisions: list[str], done: Switching) -> None:
    """Use one revision, then roll back to the other, until it is enough."""
    while not done.enough:
        wanted = None if done.times % 3 == 2 else revisions[done.times % 2]
        await use_revision(settings, stack, wanted)
        done.times += 1


async def flow(submitter: Submitter, stack: str, count: int) -> list[Followed]:
    """That many jobs, each to its end."""
    jobs = [await submitter.submit(["cat", "/version"], stack=stack) for _ in range(count)]
    return [await job.finished(timeout=240) for job in jobs]


@asynccontextmanager
async def working(site: Site) -> AsyncIterator[tuple[Daemon, Submitter]]:
    async with site.daemon(capacity__max_jobs=AT_ONCE) as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as submitter:
            yield daemon, submitter
        await daemon.stop()


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
async def test_jobs_flow_while_revisions_are_switched(site: Site, count: int) -> None:
    async with two_revisions(site) as (stack, settings, versions), working(site) as (_, submitter):
        # Its last words come after all the switches.
        long = await submitter.submit(
            sh("trap 'cat /version; exit' TERM; cat /version; while :; do sleep 0.1; done"), stack=stack
        )
        await long.wrote("\n")
        done, jobs = Switching(), list[Followed]()
        async with asyncio.timeout(540), asyncio.TaskGroup() as tasks:
            tasks.create_task(switch(settings, stack, list(versions), done))
            # On for as long as it takes to meet both, whichever is faster here: to switch, or to run a job.
            while done.times < 6 or {job.result["revision"] for job in jobs} != set(versions):
                jobs += await flow(submitter, stack, count)
            done.enough = True
        await submitter.cancel(long)
        await long.finished()
        for job in jobs:
            job.ended("succeeded", exit_code=0)
            assert job.text() == versions[job.result["revision"]]
        assert long.text() == 2 * versions[long.result["revision"]]


async def test_a_pin_holds_whatever_is_current(site: Site) -> None:
    async with two_revisions(site) as (stack, _, versions), working(site) as (_, submitter):
        for revision, version in versions.items():
            job = await submitter.run(["cat", "/version"], stack=f"{stack}@{revision}")
            job.ended("succeeded", exit_code=0)
            assert (job.text(), job.result["revision"], job.result["stack"]) == (
                version,
                revision,
                f"{stack}@{revision}",
            )
        elsewhere = await submitter.submit(["true"], stack=f"{stack}@elsewhere")
        deferred = await elsewhere.event("deferred")
        assert deferred["reason"] == f'this worker has no revision "elsewhere" of the stack "{stack}"'
        await submitter.cancel(elsewhere)
        (await elsewhere.finished()).ended("cancelled")

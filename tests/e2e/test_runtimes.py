"""Stacks under another OCI runtime than the usual one: runc under a second name, in an engine that was told of it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from secrets import token_hex

import aiodocker
import pytest
from scripts.devservices.process import find_program
from tests.e2e.daemon import Daemon, Site, open_site
from tests.e2e.submitter import Submitter, open_submitter, sh
from tests.services import Endpoint, Engine, build_busybox

pytestmark = [pytest.mark.engine, pytest.mark.broker]

OTHER, MISSING, FORBIDDEN = "other", "kata", "runsc"
SETTINGS = {
    "engine__runtimes": json.dumps(["runc", OTHER, MISSING]),
    "worker__max_deferred": "0",  # no worker beside this one could have them
}
NOT_ALLOWED = f'runtime: "{FORBIDDEN}" is not among engine.runtimes; add it there'
NOT_THERE = f'runtime: the engine does not know "{MISSING}"; add it to its runtimes'


@pytest.fixture(scope="module")
async def site(broker: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site with a stack for each runtime, named like it."""
    folder = tmp_path_factory.mktemp("runtimes")
    (folder / "site").mkdir()
    flags = ["--add-runtime", f"{OTHER}={find_program('runc')}"]
    async with Engine(folder / "engine", flags=flags) as engine:
        image = await build_busybox(engine.url)
        opened = open_site(
            broker=broker.url, engine=engine.url, image=image, folder=folder / "site", ns=f"r{token_hex(5)}"
        )
        async with opened as site, aiodocker.Docker(url=engine.url) as docker:
            for name in (OTHER, MISSING, FORBIDDEN):
                site.write_stack(name, f'runtime = "{name}"\n')
                await docker.images.tag(image, repo=f"runner/{name}", tag="current")
            yield site


@pytest.fixture(scope="module")
async def daemon(site: Site) -> AsyncIterator[Daemon]:
    async with site.daemon(**SETTINGS) as daemon:
        await daemon.ready()
        yield daemon
        daemon.terminate()
        assert await daemon.exited() == 0
        assert await site.containers() == []


@pytest.fixture
async def acme(daemon: Daemon) -> AsyncIterator[Submitter]:
    async with open_submitter(daemon.site.broker, daemon.site.ns) as submitter:
        yield submitter


async def test_a_job_runs_under_the_runtime_of_its_stack(acme: Submitter, site: Site) -> None:
    under = {}
    async with aiodocker.Docker(url=site.engine) as docker:
        for stack in (OTHER, "e2e-plain"):
            job = await acme.submit(sh("echo up; exec sleep 1000"), stack=stack)
            await job.wrote("up\n")
            container = await docker.containers.get((await job.event("started"))["container"])
            under[stack] = (await container.show())["HostConfig"]["Runtime"]
            await acme.cancel(job)
            (await job.finished()).ended("cancelled", signal=15)
    assert under == {OTHER: OTHER, "e2e-plain": "runc"}


@pytest.mark.parametrize(("stack", "why"), [(FORBIDDEN, NOT_ALLOWED), (MISSING, NOT_THERE)])
async def test_a_runtime_that_is_not_allowed_or_not_there_is_refused(acme: Submitter, stack: str, why: str) -> None:
    job = await acme.run(["true"], stack=stack)
    job.ended("rejected", reason=f'the stack "{stack}" cannot be used on this worker: ')
    assert why in job.result["reason"]


async def test_the_operator_is_told_at_start_up(daemon: Daemon) -> None:
    told = [json.loads(line) for line in daemon.faults()]
    problem = f"engine.runtimes: the engine does not know {MISSING}; stacks with it are passed on"
    assert [(record["event"], record["problem"]) for record in told] == [("a runtime is missing", problem)]


async def test_check_tells_which_runtime_is_missing_and_which_stacks_it_keeps_from_use(site: Site) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner", "check", "--json"),
        env=site.environment(SETTINGS),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    told = {found["name"]: found for found in map(json.loads, out.splitlines())}
    assert process.returncode == 78
    assert f"engine.runtimes: the engine does not know {MISSING}; it knows " in told["engine"]["detail"]
    refused = {
        name: told[f"stack {name}"]["detail"] for name in (OTHER, MISSING, FORBIDDEN) if not told[f"stack {name}"]["ok"]
    }
    assert NOT_THERE in refused.pop(MISSING)
    assert NOT_ALLOWED in refused.pop(FORBIDDEN)
    assert refused == {}

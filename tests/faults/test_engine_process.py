"""The engine, or one container's shim, is killed, stopped or restarted at each phase of a job.

What is told of every job is true, it is told once, nothing is left behind, and jobs beside it do not notice.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from tests.e2e.daemon import Daemon, Site, eventually, open_site
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh
from tests.engine_proxy import EngineProxy, Fault, after, refuse
from tests.services import Endpoint, Engine, build_busybox
from tests.shims import shim_of, stop_shim

pytestmark = [pytest.mark.engine, pytest.mark.broker]

IMPATIENT = (str(Path(__file__).with_name("impatient.py")),)
CREATE, START, DELETE = "POST .*/containers/create", "POST .*/start$", "DELETE .*/containers/"
GO = "while [ ! -s $JOB_PROGRESS_FILE ]; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"
ENGINE_STOPPED = "the engine stopped, and the job with it"


@dataclass(slots=True, kw_only=True)
class Place:
    """A daemon on an engine of its own, with a proxy in between."""

    engine: Engine
    proxy: EngineProxy
    site: Site
    daemon: Daemon
    acme: Submitter

    def hold(self, pattern: str, until: asyncio.Event) -> Fault:
        """Have the next such request wait."""
        return self.proxy.fault(pattern, after(until), times=1)

    async def running(self, script: str, **fields: Any) -> Followed:
        """A job that has written `up`."""
        job = await self.acme.submit(sh(script), **fields)
        await job.wrote("up\n")
        return job

    def let_go(self, job: Followed) -> None:
        """End a job's `GO`."""
        claim = job.events[-1]["claim"]
        (self.site.state_dir / "jobs" / claim / "progress").write_text("go on")

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
        async with asyncio.timeout(20), queue.iterator() as messages:
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
async def open_place(engine: Engine, broker: Endpoint, folder: Path) -> AsyncIterator[Place]:
    image = await build_busybox(engine.url)
    ns = f"f{token_hex(5)}"
    async with (
        EngineProxy(engine.url) as proxy,
        open_site(broker=broker.url, engine=engine.url, image=image, folder=folder, ns=ns) as site,
        site.daemon(program=IMPATIENT, engine__url=proxy.url) as daemon,
    ):
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            yield Place(engine=engine, proxy=proxy, site=site, daemon=daemon, acme=acme)


@pytest.fixture(scope="module")
async def engine_of_ours(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """An engine that may be broken; it runs again after each test."""
    async with Engine(tmp_path_factory.mktemp("engine") / "engine") as engine:
        yield engine


@pytest.fixture(scope="module")
async def shared_place(
    engine_of_ours: Engine, broker: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    """The daemon that lives through all of it."""
    async with open_place(engine_of_ours, broker, tmp_path_factory.mktemp("shared")) as place:
        yield place
        await place.leave()
        assert await place.site.messages() == {}


@pytest.fixture
async def place(shared_place: Place) -> AsyncIterator[Place]:
    yield shared_place
    await shared_place.calm_down()


async def kill_and_start(engine: Engine) -> None:
    await engine.kill()
    await engine.start()


async def restart(engine: Engine) -> None:
    await engine.restart()


Deed = Callable[[Engine], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Phases:
    """A job in each phase of its life, all of them waiting for what comes."""

    running: Followed
    ending: Followed
    removed: Followed
    starting: Followed
    created: Followed

    @property
    def all(self) -> list[Followed]:
        return [self.running, self.ending, self.removed, self.starting, self.created]


@asynccontextmanager
async def in_every_phase(place: Place) -> AsyncIterator[Phases]:
    """Holds back requests; lets them go at the end."""
    go_on = asyncio.Event()
    running = await place.running(f"echo up; {GO}; echo end")
    ending = await place.running(f"echo up; {GO}; exit 0")
    removal = place.hold(DELETE, go_on)
    removed = await (await place.acme.submit(["true"])).finished()
    await eventually(lambda: _met(removal), "the removal")
    start = place.hold(START, go_on)
    starting = await place.acme.submit(["true"])
    await eventually(lambda: _met(start), "the start")
    create = place.hold(CREATE, go_on)
    created = await place.acme.submit(["true"])
    await eventually(lambda: _met(create), "the creation")
    yield Phases(running=running, ending=ending, removed=removed, starting=starting, created=created)
    go_on.set()


async def _met(fault: Fault) -> bool:
    return fault.met > 0


async def test_an_engine_that_hangs_for_a_while_costs_no_job_anything(place: Place) -> None:
    async with in_every_phase(place) as phases:
        await place.engine.pause()
        place.let_go(phases.ending)
    await place.says("the container engine does not answer")
    assert "finished" not in phases.ending.kinds  # its last word is on its way through the engine
    waiting = await place.acme.submit(["true"])
    assert waiting.events == []
    await place.engine.resume()
    place.let_go(phases.running)
    for job in (*phases.all, waiting):
        await job.finished()
        job.ended("succeeded", blame="none", exit_code=0, attempt=1)
    assert phases.running.text() == "up\nend\n"


@pytest.mark.parametrize("deed", [kill_and_start, restart])
async def test_an_engine_that_goes_down_loses_what_runs_and_nothing_else(place: Place, deed: Deed) -> None:
    async with in_every_phase(place) as phases:
        handles = await place.running("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done", retry={"max": 0})
        await deed(place.engine)
    for job in (phases.running, handles):
        assert (await job.event("retrying"))["outcome"] == "lost"
    assert ENGINE_STOPPED in phases.running.events[phases.running.kinds.index("retrying")]["reason"]
    for job in (phases.running, phases.ending, handles):
        await job.event("started", 2)
    for job in (phases.running, phases.ending):
        place.let_go(job)
    await place.acme.cancel(handles, "enough")
    for job in phases.all:
        await job.finished()
        job.ended("succeeded", blame="none", exit_code=0)
    assert (await handles.finished()).result["outcome"] == "cancelled"
    assert [job.kinds.count("retrying") <= 1 for job in phases.all] == [True] * 5
    assert phases.removed.result["attempt"] == 1


async def test_an_engine_whose_disk_is_full_costs_no_job_anything(place: Place) -> None:
    place.proxy.fault(START, refuse(500, "mkdir /run/containerd: no space left on device"))
    jobs = [await place.acme.submit(["true"], retry={"max": 0}) for _ in range(3)]
    await jobs[0].event("deferred")
    await place.says("no space left on device")
    assert (await place.status())["state"] == "paused"
    place.proxy.heal()
    for job in jobs:
        await job.finished()
        job.ended("succeeded", blame="none", exit_code=0, attempt=1)
        assert "retrying" not in job.kinds
    await place.daemon.ready()


async def test_deadlines_and_cancels_hold_while_the_engine_hangs(place: Place) -> None:
    late = await place.running(STUBBORN, limits={"timeout": "3s", "grace": "1s"})
    cancelled = await place.running(STUBBORN, limits={"grace": "1s"})
    await place.engine.pause()
    await place.acme.cancel(cancelled, "enough")
    await late.finished()
    await cancelled.finished()
    late.ended("timed_out", blame="job", reason="could not be ended within 2s, and what is in it may still run")
    cancelled.ended("cancelled", blame="none", reason="enough")
    await place.engine.resume()
    await place.daemon.ready()


async def test_a_shim_that_hangs_for_a_while_costs_its_job_nothing(place: Place) -> None:
    job = await place.running(f"echo up; {GO}; i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; done; exit 3")
    shim = shim_of((await job.event("started"))["container"])
    await stop_shim(shim)
    try:
        place.let_go(job)
        (await place.acme.run(["true"])).ended("succeeded", blame="none", exit_code=0)
        assert "finished" not in job.kinds
    finally:
        os.kill(shim, signal.SIGCONT)
    await job.finished()
    job.ended("failed", blame="job", exit_code=3, attempt=1)
    assert job.text() == "up\n" + "".join(f"{number}\n" for number in range(1, 201))
    assert job.result["logs"]["complete"] is True


async def test_a_shim_that_hangs_keeps_its_place_and_nothing_else(place: Place) -> None:
    late = await place.running(STUBBORN, limits={"timeout": "4s", "grace": "1s"})
    shim = shim_of((await late.event("started"))["container"])
    await stop_shim(shim)
    try:
        await late.finished()
        late.ended("timed_out", blame="job", reason="may still run")

        async def quarantined() -> bool:
            return [key.split("/")[-1] for key in (await place.status())["quarantined"]] == [late.id]

        await eventually(quarantined, "its place is quarantined")
        for _ in range(3):
            (await place.acme.run(["true"])).ended("succeeded", blame="none", exit_code=0)
        assert await place.daemon.problems() == []

        async def alone() -> bool:
            metrics = await place.daemon.metrics()
            return (metrics["runner_claimed_cpus"], metrics["runner_containers_live"]) == (0.5, 1)

        await eventually(alone, "only its claim is left")
        assert (await place.daemon.metrics())["runner_cleanup_failures_total"] > 0
    finally:
        os.kill(shim, signal.SIGCONT)


@pytest.mark.slow
async def test_a_shim_that_hangs_does_not_hold_up_the_end_of_the_daemon(
    engine_of_ours: Engine, broker: Endpoint, tmp_path: Path
) -> None:
    async with open_place(engine_of_ours, broker, tmp_path) as place:
        late = await place.running(STUBBORN, limits={"timeout": "2s", "grace": "0s"})
        shim = shim_of((await late.event("started"))["container"])
        await stop_shim(shim)
        try:
            await late.finished()
            place.daemon.terminate()
            assert await place.daemon.exited(20) == 0
        finally:
            os.kill(shim, signal.SIGCONT)
        async with place.site.daemon(program=IMPATIENT) as second:
            await second.ready()
            await second.clean()
            await second.stop()
        assert late.kinds.count("finished") == 1


async def test_a_shim_that_is_killed_takes_its_job_along_and_no_other(place: Place) -> None:
    beside = await place.running(f"echo up; {GO}; exit 4")
    job = await place.running("echo up; exec sleep 1000")
    os.kill(shim_of((await job.event("started"))["container"]), signal.SIGKILL)
    await job.finished()
    job.ended("failed", blame="job", signal=9, reason="SIGKILL, which did not come from its worker")
    place.let_go(beside)
    await beside.finished()
    beside.ended("failed", blame="job", exit_code=4)


async def test_jobs_run_on_under_an_engine_with_live_restore(broker: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    async with (
        Engine(tmp_path / "engine", flags=["--live-restore"]) as engine,
        open_place(engine, broker, tmp_path / "site") as place,
    ):
        for deed in (kill_and_start, restart):
            job = await place.running(f"echo up; {GO}; echo end")
            late = await place.running(STUBBORN, limits={"timeout": "60s", "grace": "1s"})
            await deed(engine)
            await place.daemon.ready()
            place.let_go(job)
            await place.acme.cancel(late, "enough")
            await job.finished()
            job.ended("succeeded", blame="none", exit_code=0, attempt=1)
            assert (job.text(), job.result["logs"]["complete"]) == ("up\nend\n", True)
            await late.finished()
            late.ended("cancelled", blame="none", signal=9, attempt=1)
        await place.leave()

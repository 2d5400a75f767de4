"""`runner serve` as a process, and everything that it leaves in the broker, in the engine and on the disk."""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import aiodocker
import aiohttp
from aio_pika.abc import AbstractChannel
from tests.e2e.submitter import STACK, Followed

from runner.adapters.amqp.names import Names
from runner.adapters.amqp.topology import Topology, describe_topology, job_queues

_PATIENCE = 30.0
_LOOK_AGAIN = 0.05
_WATCH_EVERY = 0.2
_SAMPLE = re.compile(r"(runner_\w+?)(?:\{.*\})? ([0-9.eE+-]+)")

_STACKS = {
    STACK: 'command = ["echo", "from the stack"]\n',
    "e2e-flood": 'log_flood = "kill"\nlimits.log_bytes = "64k"\n',
    "e2e-wrong-command": 'command = ["no-such-program"]\n',
    "e2e-root": 'read_only = false\nuser = "0"\n',
    "e2e-unbuilt": "",
}
WAITS = 'until [ -s "$JOB_OUTPUT_FILE" ]; do sleep 0.1; done'
"""Has a job wait until its site lets it go; its output tells that."""
_UNBUILT = "e2e-unbuilt"
_WARM = "warm-"
_LANES = 8
_given: set[int] = set()


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, timeout: float = _PATIENCE) -> None:
    """Return when the condition holds, which nobody tells us."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(_LOOK_AGAIN)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:g} s: {what}") from None


BUSY = "the engine did not answer ping"
"""A problem that a daemon has whose engine, or whose machine, has too much to do."""


@asynccontextmanager
async def without_problems(readiness: Callable[[], Awaitable[str]], *, but: str | None = None) -> AsyncIterator[None]:
    """A block in which `/readyz` names no problem, but perhaps one with these words in it; in the end there is none.

    `readiness` gives the text of that page, or nothing when nobody answers: a busy daemon is asked again.
    """
    unexpected: list[str] = []

    async def look() -> bool:
        if not (text := await readiness()):
            return False
        found: list[str] = json.loads(text)
        unexpected.extend(problem for problem in found if but is None or but not in problem)
        return not found or bool(unexpected)

    async def watch() -> None:
        while True:
            await look()
            await asyncio.sleep(_WATCH_EVERY)

    async with _kept_up(watch()):
        yield
        await eventually(look, "the daemon has no problem")
    assert unexpected == []


@asynccontextmanager
async def _kept_up(doing: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """It goes on until the block ends, and has not failed by then."""
    task = asyncio.create_task(doing)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled(), task.exception()


async def remove_all(engine: str, names: Callable[[], Awaitable[Sequence[str]]]) -> None:
    """Remove the containers of these names until there are none; one may be on its way out already."""
    async with aiodocker.Docker(url=engine) as docker:

        async def gone() -> bool:
            found = await names()
            for name in found:
                with suppress(aiodocker.DockerError):
                    await docker.containers.container(name).delete(force=True)
            return not found

        await eventually(gone, "no container is left")


def free_port() -> int:
    """A TCP port that nobody listens on, below those of brokers, and those that the kernel gives to clients.

    Whoever gets it listens some time later: nobody else in this test run is given it, nor anybody in here twice.
    """
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _LANES
    while True:
        port = 10_000 + secrets.randbelow(10_000 // _LANES) * _LANES + lane
        with socket.socket() as probe:
            if port not in _given and probe.connect_ex(("127.0.0.1", port)):
                _given.add(port)
                return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What daemons of one name leave to each other: a namespace in the broker, a state folder, stacks, an engine."""

    broker: str
    engine: str
    folder: Path
    ns: str
    tenants: tuple[str, ...] = ()
    """Those with a queue of their own."""

    @property
    def state_dir(self) -> Path:
        """The daemon's `worker.state_dir`."""
        return self.folder / "state"

    @property
    def stacks(self) -> Path:
        """The daemon's `stacks.dir`."""
        return self.folder / "stacks"

    @property
    def topology(self) -> Topology:
        """What stands in the broker for this namespace."""
        return describe_topology(Names(self.ns), job_queues(["default"], self.tenants))

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Small jobs, so that many of them fit, and nothing else from the environment of the tests."""
        plain = {
            "worker__name": self.ns,
            "worker__state_dir": str(self.state_dir),
            "stacks__dir": str(self.stacks),
            "amqp__url": self.broker,
            "amqp__namespace": self.ns,
            "engine__url": self.engine,
            "capacity__cpus": "64",
            "capacity__memory": "4g",
            "limits__default__memory": "16m",
            "limits__default__disk": "4m",
            "limits__default__grace": "5s",
            "warm__enabled": "false",  # so that what is left of a job can be told from what waits for the next
            "log__format": "json",
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        return kept | {f"RUNNER_{name.upper()}": value for name, value in {**plain, **settings}.items()}

    @asynccontextmanager
    async def daemon(self, *, program: Sequence[str] = ("-m", "runner"), **settings: str) -> AsyncIterator["Daemon"]:
        """A daemon with these settings (`section__field`), not waited for; killed at the end if it still runs."""
        port = free_port()
        number = len(list(self.folder.glob("*.log")))
        log = self.folder / f"{number}.log"
        environ = self.environment({"http__port": str(port), **settings})
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *program, "serve", env=environ, stdin=asyncio.subprocess.DEVNULL, stderr=stderr
            )
        daemon = Daemon(site=self, process=process, log=log, url=f"http://127.0.0.1:{port}")
        try:
            yield daemon
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def write_stack(self, name: str, text: str = "") -> None:
        """Install a stack."""
        folder = self.stacks / name
        folder.mkdir(parents=True)
        (folder / "stack.toml").write_text(text)

    def keep_warm(self, name: str, count: int) -> None:
        """Have that many containers of a stack wait for jobs, in a daemon with `warm__enabled`."""
        path = self.stacks / name / "stack.toml"
        path.write_text(f"warm = {count}\n{path.read_text()}")

    async def containers(self) -> list[str]:
        """The names of all containers that this site's daemons made."""
        async with aiodocker.Docker(url=self.engine) as docker:
            found = await docker.containers.list(all=True, filters={"label": [f"runner.worker={self.ns}"]})
            # One that is just being removed may be listed without a name.
            return [(container["Names"] or [container["Id"]])[0].lstrip("/") for container in found]

    async def warm_containers(self) -> list[str]:
        """The names of those that wait for a job."""
        return [name for name in await self.containers() if name.startswith(_WARM)]

    @property
    def job_folders(self) -> list[str]:
        """The folders under the state folder of containers that were made for jobs."""
        return [path.name for place in ("jobs/*", "results/jobs/*") for path in self.state_dir.glob(place)]

    def let_go(self, job: Followed) -> None:
        """End a job's `WAITS`."""
        (self.state_dir / "jobs" / job.events[-1]["claim"] / "output").write_text('"let go"')

    async def messages(self) -> dict[str, int]:
        """How many messages are ready in each queue that has some; all of them, once no daemon runs."""
        names = [queue.name for queue in self.topology.queues if queue.arguments.get("x-queue-type") != "stream"]
        names.append(Names(self.ns).worker_lease(self.ns))
        async with _admin(self.broker) as channel:
            counts = {}
            for name in names:
                declared = await channel.declare_queue(name, passive=True)
                counts[name.removeprefix(f"{self.ns}.")] = declared.declaration_result.message_count or 0
        return {name: count for name, count in counts.items() if count}

    async def erase(self) -> None:
        """Remove the namespace from the broker and the site's containers from the engine."""
        async with _admin(self.broker) as channel:
            names = Names(self.ns)
            own = [names.worker_lease(self.ns), names.worker_control(self.ns)]
            for queue in [*own, *(queue.name for queue in self.topology.queues)]:
                await channel.queue_delete(queue)
            for exchange in self.topology.exchanges:
                await channel.exchange_delete(exchange.name)
        await remove_all(self.engine, self.containers)


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One life of a daemon."""

    site: Site
    process: asyncio.subprocess.Process
    log: Path
    url: str

    async def ready(self, timeout: float = _PATIENCE) -> None:
        """Return when it takes jobs."""
        await eventually(self._is_ready, "the daemon is ready", timeout)

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page; 0 when nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    def unhindered(self, *, but: str | None = None) -> AbstractAsyncContextManager[None]:
        """A block in which no problem keeps it from taking jobs, but perhaps one with these words in it."""

        async def readiness() -> str:
            return (await self.get("/readyz"))[1]

        return without_problems(readiness, but=but)

    async def problems(self) -> list[str]:
        """Why it takes no jobs."""
        _, text = await self.get("/readyz")
        found: list[str] = json.loads(text)
        return found

    async def metrics(self) -> dict[str, float]:
        """The value of each metric, summed over its labels."""
        _, text = await self.get("/metrics")
        values: dict[str, float] = {}
        for line in text.splitlines():
            if sample := _SAMPLE.fullmatch(line):
                values[sample[1]] = values.get(sample[1], 0.0) + float(sample[2])
        return values

    async def waiting(self, stack: str) -> float:
        """How many containers of a stack wait for jobs."""
        _, text = await self.get("/metrics")
        sample = f'runner_warm_containers{{stack="{stack}"}} '
        return sum(float(line.removeprefix(sample)) for line in text.splitlines() if line.startswith(sample))

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End it with no chance to say anything."""
        self.process.kill()
        await self.process.wait()

    async def exited(self, timeout: float = _PATIENCE) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            async with asyncio.timeout(timeout):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"still running after {timeout:g} s: {self.log.read_text()[-4000:]}") from None

    async def stop(self) -> None:
        """Drain it, and see that nothing is left."""
        self.terminate()
        await self.stopped()

    async def stopped(self) -> None:
        """Return when it has drained, and see that nothing is left: no process, container or file.

        Nor may there be a fault on its log.
        """
        assert await self.exited() == 0, self.log.read_text()[-4000:]
        assert await self.site.containers() == []
        assert self.site.job_folders == []
        assert not self.faults(), self.faults()

    async def clean(self, timeout: float = _PATIENCE) -> None:
        """Return when it runs nothing, and nothing is left of what it ran."""
        try:
            await eventually(self._is_clean, "the daemon is idle and has cleaned up", timeout)
        except AssertionError as error:
            told = {name: value for name, value in (await self.metrics()).items() if value and "_bucket" not in name}
            raise AssertionError(f"{error}: {told}, {self.log.read_text()[-4000:]}") from None
        assert [name for name in await self.site.containers() if not name.startswith(_WARM)] == []
        await eventually(self._knows_all, "as many containers wait as it says", timeout)
        # The files go after the container, beside everything else.
        await eventually(self._has_no_files, "no file is left of a job")

    def faults(self) -> list[str]:
        """What it complained about: errors, and whatever is no record at all, such as a trace.

        The client library's word on a connection does not count: that a broker is away is no fault of the daemon's.
        """
        return [line for line in self.log.read_text().splitlines() if not _is_harmless(line)]

    def resident(self, what: str = "VmRSS") -> int:
        """Its memory in bytes; `VmHWM` is the most since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) * 1024

    def forget_peak(self) -> None:
        """Measure the peak of its memory from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    async def _is_ready(self) -> bool:
        if self.process.returncode is not None:
            raise AssertionError(f"the daemon has ended: {self.log.read_text()[-4000:]}")
        return (await self.get("/readyz"))[0] == 200

    async def _has_no_files(self) -> bool:
        return all(name.startswith(_WARM) for name in self.site.job_folders)

    async def _knows_all(self) -> bool:
        """Those that wait are not of an earlier life; one may just be made."""
        return len(await self.site.containers()) == (await self.metrics()).get("runner_warm_containers", 0.0)

    async def _is_clean(self) -> bool:
        metrics = await self.metrics()
        created, removed = metrics["runner_containers_created_total"], metrics["runner_containers_removed_total"]
        idle = not (metrics["runner_claimed_cpus"] or metrics.get("runner_jobs_running"))
        return created - removed == metrics.get("runner_warm_containers", 0.0) and idle


def _is_harmless(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return record["level"] not in ("error", "critical") or record["logger"] == "aiormq.connection"


@asynccontextmanager
async def _admin(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel()


@asynccontextmanager
async def open_site(
    *, broker: str, engine: str, image: str, folder: Path, ns: str, tenants: tuple[str, ...] = ()
) -> AsyncIterator[Site]:
    """A site with its stacks, and nothing else yet; erased at the end."""
    site = Site(broker=broker, engine=engine, folder=folder, ns=ns, tenants=tenants)
    site.state_dir.mkdir(mode=0o700)
    for name, text in _STACKS.items():
        site.write_stack(name, text)
    async with aiodocker.Docker(url=engine) as docker:
        for name in _STACKS.keys() - {_UNBUILT}:
            await docker.images.tag(image, repo=f"runner/{name}", tag="current")
    try:
        yield site
    finally:
        await site.erase()

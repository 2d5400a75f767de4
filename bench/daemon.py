"""This daemon as a subject: cold, and with containers that wait."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from secrets import randbelow, token_hex

import aio_pika
import aiohttp
from scripts.devservices.process import log_tail

from bench.crowd import TENANT, Crowd, Member, open_crowd
from bench.figures import cpu_seconds
from bench.subject import HI, Run, Site, since
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.topology import describe_topology, job_queues
from runner.adapters.docker.warm import FOOTPRINT
from runner.client import Client

STACK = "bench"
_MOMENTS = ("claimed", "started", "ended")
_PHASES = (
    "published until claimed: broker, plan, admission",
    "claimed until started: lease, record, container, description",
    "started until ended: the process, as its init saw it",
    "ended until known: log confirmed, journal, `finished`, subscriber",
)
_RUNNER = str(Path(sys.executable).with_name("runner"))
_READY = 60.0
_MADE = 5.0
"""Seconds that one warm container may take to be made, on a machine that does much else."""
_LOOK_EVERY = 0.25
"""A look at the metrics costs the daemon some milliseconds of CPU time, which are not its jobs'."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """This daemon."""

    name: str
    client: Client
    crowd: Crowd
    port: int
    daemon: int
    warm: int

    @property
    def pids(self) -> Sequence[int]:
        """The daemon is one process."""
        return [self.daemon]

    def spent(self) -> float:
        """CPU seconds of the daemon."""
        return cpu_seconds(self.pids)

    async def one(self, command: Sequence[str] = HI) -> Run:
        """Submit it and follow it, as any client does."""
        began, published, first = time.perf_counter(), time.time(), None
        job = await self.client.submit(stack=STACK, command=list(command), tenant=TENANT)
        async for batch in job.batches():
            if first is None and batch.lines:
                first = since(began)
        result = await job.result()
        if result.outcome != "succeeded":
            raise RuntimeError(f"{self.name}: {result.reason}")
        total, phases = since(began), _phases(published, result.body["times"], time.time())
        started = [event.body["warm"] async for event in job.events() if event.kind == "started"]
        return Run(total=total, first_line=first, phases=phases, warm=started == [True])

    async def many(self, count: int) -> float:
        """Submit all of them, then wait for the last one, and until its container and files are removed, too."""
        began = time.perf_counter()
        await self.crowd.run(count, HI)
        await self.until_idle()
        return time.perf_counter() - began

    async def rest(self) -> None:
        """Return when nothing runs or is removed, and as many containers wait as it keeps."""
        await self.until_idle()
        await self.until_warm(self.warm)

    async def watch_over(self, members: Sequence[Member]) -> None:
        """See that these jobs, and no others, run."""
        await self.crowd.begun(members)
        running = await self.metric("runner_jobs_running")
        if running != len(members):
            raise RuntimeError(f"{running:.0f} jobs run, and not {len(members)}")

    async def until_warm(self, count: int) -> None:
        """Return when so many containers wait."""
        async with asyncio.timeout(_READY + _MADE * count):
            while await self.metric("runner_warm_containers") < count:
                await asyncio.sleep(_LOOK_EVERY)

    async def until_idle(self) -> None:
        """Return when nothing runs, and what ran was cleaned up."""
        async with asyncio.timeout(_READY):
            while await self.metric("runner_claimed_cpus"):
                await asyncio.sleep(_LOOK_EVERY)

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as response:
            text = await response.text()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


def _phases(published: float, times: Mapping[str, str], heard: float) -> dict[str, float]:
    """Milliseconds from each moment to the next, by the clock of this machine."""
    moments = [published, *(datetime.fromisoformat(times[name]).timestamp() for name in _MOMENTS), heard]
    return {phase: 1000 * (end - begin) for phase, (begin, end) in zip(_PHASES, pairwise(moments), strict=True)}


def room_for(warm: int) -> str:
    """The `warm.memory` with which so many containers wait and never more, however many jobs came lately."""
    return str(warm * FOOTPRINT)


@asynccontextmanager
async def runner(
    site: Site, name: str, *, warm: int, limits: Mapping[str, str | float], **settings: str
) -> AsyncIterator[Runner]:
    """A daemon that keeps so many containers warm, 0 turns that off; `limits` are those of the stack."""
    word = f"bench-{token_hex(4)}"
    folder = site.folder / word
    stacks = folder / "stacks" / STACK
    stacks.mkdir(parents=True)
    lines = [f"warm = {warm}", "[limits]", *(f"{key} = {json.dumps(value)}" for key, value in limits.items())]
    (stacks / "stack.toml").write_text("\n".join([*lines, ""]))
    port = 20000 + randbelow(10000)
    given = {
        "worker__name": word,
        "worker__state_dir": str(folder / "state"),
        "worker__drain_timeout": "10s",
        "amqp__url": site.broker,
        "amqp__namespace": word,
        "engine__url": site.engine,
        "stacks__dir": str(folder / "stacks"),
        "capacity__cpu_overcommit": "200",
        "capacity__max_jobs": "400",
        "warm__enabled": "true" if warm else "false",
        "http__port": str(port),
        "log__level": "warning",
        **settings,
    }
    env = {**os.environ, **{f"RUNNER_{key.upper()}": value for key, value in given.items()}}
    log = folder / "serve.log"
    await _call(env, "topology", "apply")
    process = await asyncio.create_subprocess_exec(_RUNNER, "serve", env=env, stderr=log.open("wb"))
    try:
        await _until_ready(port, log)
        async with Client(site.broker, word) as client, open_crowd(site.broker, word, STACK) as crowd:
            opened = Runner(name=name, client=client, crowd=crowd, port=port, daemon=process.pid, warm=warm)
            await opened.until_warm(warm)
            yield opened
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await erase(site.broker, word)


async def erase(broker: str, namespace: str) -> None:
    """Remove a namespace, and what its worker of the same name has declared, from the broker."""
    names = Names(namespace)
    topology = describe_topology(names, job_queues(["default"], ()))
    own = [names.worker_lease(namespace), names.worker_control(namespace), names.worker_superseded(namespace)]
    connection = await aio_pika.connect(broker)
    async with connection:
        channel = await connection.channel()
        for queue in [*own, *(queue.name for queue in topology.queues)]:
            await channel.queue_delete(queue)
        for exchange in topology.exchanges:
            await channel.exchange_delete(exchange.name)


async def _until_ready(port: int, log: Path) -> None:
    try:
        async with asyncio.timeout(_READY):
            while not await _is_ready(port):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise RuntimeError(f"the daemon was not ready in time{log_tail(log)}") from None


async def _is_ready(port: int) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == HTTPStatus.OK
    except aiohttp.ClientError:
        return False


async def _call(env: Mapping[str, str], *words: str) -> None:
    silent, heard = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(_RUNNER, *words, env=env, stdout=silent, stderr=heard)
    _, why = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"`runner {' '.join(words)}` failed: {why.decode(errors='replace').strip()}")

"""This daemon as a subject: cold, and with containers that wait."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from secrets import randbelow, token_hex

import aiohttp
from scripts.devservices.process import log_tail

from bench.subject import HI, Run, Site, since
from runner.client import Client

_RUNNER = str(Path(sys.executable).with_name("runner"))
_READY = 60.0
_MADE = 5.0
"""Seconds that one warm container may take to be made, on a machine that does much else."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """This daemon."""

    name: str
    client: Client
    stack: str
    tenant: str
    daemon: int

    @property
    def pids(self) -> Sequence[int]:
        """The daemon is one process."""
        return [self.daemon]

    async def one(self, command: Sequence[str] = HI) -> Run:
        """Submit it and follow it."""
        began, first = time.perf_counter(), None
        job = await self.client.submit(stack=self.stack, command=list(command), tenant=self.tenant)
        async for batch in job.batches():
            if first is None and batch.lines:
                first = since(began)
        result = await job.result()
        if result.outcome != "succeeded":
            raise RuntimeError(f"{self.name}: {result.reason}")
        total, told = since(began), result.body["seconds"]
        phases = {name: 1000 * told[name] for name in ("queued", "prepare", "run")}
        return Run(total=total, first_line=first, phases={**phases, "told": total - sum(phases.values())})

    async def many(self, count: int, command: Sequence[str] = HI) -> float:
        """Submit all of them, then wait for the last one."""
        began = time.perf_counter()
        jobs = await asyncio.gather(
            *(self.client.submit(stack=self.stack, command=list(command), tenant=self.tenant) for _ in range(count))
        )
        results = await asyncio.gather(*(job.result() for job in jobs))
        bad = [result.reason for result in results if result.outcome != "succeeded"]
        if bad:
            raise RuntimeError(f"{self.name}: {len(bad)} of {count} jobs failed: {bad[0]}")
        return time.perf_counter() - began


@asynccontextmanager
async def runner(site: Site, name: str, *, warm: int, **settings: str) -> AsyncIterator[Runner]:
    """A daemon that keeps so many containers warm; 0 turns that off."""
    word = f"bench-{token_hex(4)}"
    folder = site.folder / word
    stacks = folder / "stacks" / "bench"
    stacks.mkdir(parents=True)
    (stacks / "stack.toml").write_text(f"warm = {warm}\n")
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
        await _until_ready(port, warm, log)
        async with Client(site.broker, word) as client:
            yield Runner(name=name, client=client, stack="bench", tenant="acme", daemon=process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _until_ready(port: int, warm: int, log: Path) -> None:
    try:
        async with asyncio.timeout(_READY + _MADE * warm):
            while not (await _is_ready(port) and await _waiting(port) >= warm):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise RuntimeError(f"the daemon was not ready in time{log_tail(log)}") from None


async def _is_ready(port: int) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == HTTPStatus.OK
    except aiohttp.ClientError:
        return False


async def _waiting(port: int) -> float:
    """How many containers wait for jobs."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("runner_warm_containers{"))


async def _call(env: Mapping[str, str], *words: str) -> None:
    silent = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(_RUNNER, *words, env=env, stdout=silent, stderr=silent)
    if await process.wait():
        raise RuntimeError(f"`runner {' '.join(words)}` failed")

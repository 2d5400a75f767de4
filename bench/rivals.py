"""What people use instead: the engine's command line, its API, and Celery with the Docker SDK."""

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import aiodocker

from bench.figures import cpu_seconds, tree
from bench.subject import HI, ROOT, Run, Site, since

DOCKER_RUNS = 4
"""How many command lines run at a time, where there are many jobs."""
_READY = 60.0
_TMPFS = {"/tmp": "size=64m", "/work": "size=64m"}


@dataclass(slots=True, kw_only=True)
class DockerRun:
    """`docker run --rm`, a process for each job."""

    site: Site
    name: str = "docker run"
    _running: set[int] = field(default_factory=set)

    @property
    def pids(self) -> Sequence[int]:
        """The command lines that run now."""
        return sorted(self._running)

    def spent(self) -> float:
        """CPU seconds of the command lines that have ended: nothing else ends meanwhile that we have started."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    async def rest(self) -> None:
        """The last one returns when its container is removed."""

    async def one(self) -> Run:
        """From the shell's point of view."""
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            "docker", "-H", self.site.engine, "run", "--rm", "--network", "none", "-m", "320m", "--memory-swap", "320m",
            "--cpus", "0.5", "--pids-limit", "257", "-u", "65534:65534", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--read-only",
            "--tmpfs", "/tmp:size=64m", "--tmpfs", "/work:size=64m",
            self.site.image, *HI, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._running.add(process.pid)
        output, _ = await process.communicate()
        self._running.discard(process.pid)
        if output != b"hi\n":
            raise RuntimeError(f"docker run wrote {output!r}")
        return Run(total=since(began))

    async def many(self, count: int) -> float:
        """Some at a time."""
        return await _at_once(count, DOCKER_RUNS, self.one)


@dataclass(slots=True, kw_only=True)
class BareEngine:
    """The engine's own API, nothing else: create, start, wait, logs, delete. It runs in the process that measures.

    `unplugged`: its containers are left out of the engine's networks, as ours are, of which few people know.
    """

    site: Site
    docker: aiodocker.Docker
    name: str = "bare engine"
    parallelism: int = 4
    unplugged: bool = False
    pids: Sequence[int] = ()
    """None: the process that measures holds much else."""

    def spent(self) -> float:
        """CPU seconds of the process that measures, which does nothing else meanwhile."""
        return time.process_time()

    async def rest(self) -> None:
        """It deletes each container before it goes on."""

    async def one(self) -> Run:
        """One ordinary container."""
        began = time.perf_counter()
        config: dict[str, Any] = {
            "Image": self.site.image,
            "Cmd": list(HI),
            "User": "65534:65534",
            "NetworkDisabled": self.unplugged,
            "HostConfig": {
                "NetworkMode": "none",
                "Memory": 320 * 2**20,
                "MemorySwap": 320 * 2**20,
                "NanoCpus": 500_000_000,
                "PidsLimit": 257,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "ReadonlyRootfs": True,
                "Tmpfs": _TMPFS,
            },
        }
        container = await self.docker.containers.create(config, name=f"bench-{token_hex(6)}")
        await container.start()
        await container.wait()
        lines = await container.log(stdout=True, stderr=True)
        await container.delete(force=True)
        if "".join(lines) != "hi\n":
            raise RuntimeError(f"the engine gave {lines!r}")
        return Run(total=since(began))

    async def many(self, count: int) -> float:
        """A fixed number at a time."""
        return await _at_once(count, self.parallelism, self.one)


@dataclass(slots=True, kw_only=True)
class Celery:
    """A Celery worker with a task that calls the Docker SDK, and a process that submits to it line by line."""

    name: str
    worker: int
    submitter: asyncio.subprocess.Process

    @property
    def pids(self) -> Sequence[int]:
        """The worker's processes."""
        return tree(self.worker)

    def spent(self) -> float:
        """CPU seconds of the worker's processes."""
        return cpu_seconds(self.pids)

    async def rest(self) -> None:
        """A task removes its container before it returns."""

    async def one(self) -> Run:
        """Until the result is back."""
        return Run(total=1000 * await self._ask(1))

    async def many(self, count: int) -> float:
        """All submitted, then the last result awaited."""
        return await self._ask(count)

    async def _ask(self, count: int) -> float:
        if self.submitter.stdin is None or self.submitter.stdout is None:
            raise RuntimeError("the submitter has no pipes")
        self.submitter.stdin.write(b"%d\n" % count)
        answer = await self.submitter.stdout.readline()
        return float(answer)


_SUBMIT = """
import sys, time
from bench.celery_app import run
for line in sys.stdin:
    began = time.perf_counter()
    results = [run.delay(["echo", "hi"]) for _ in range(int(line))]
    assert all(result.get(timeout=600) == "hi\\n" for result in results)
    print(time.perf_counter() - began, flush=True)
"""


@asynccontextmanager
async def celery(site: Site, python: Path, processes: int) -> AsyncIterator[Celery]:
    """A worker with so many processes, ready."""
    env = {**os.environ, "BENCH_BROKER": site.broker, "BENCH_ENGINE": site.engine, "BENCH_IMAGE": site.image}
    queue = f"bench-{token_hex(4)}"
    env["PYTHONPATH"] = str(ROOT)
    worker = await asyncio.create_subprocess_exec(
        str(python), "-m", "celery", "-A", "bench.celery_app", "worker", "-c", str(processes), "-Q", queue,
        "-n", f"{queue}@%h", "--without-gossip", "--without-mingle", "-l", "warning",
        env=env, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    script = _SUBMIT.replace('run.delay(["echo", "hi"])', f'run.apply_async((["echo", "hi"],), queue="{queue}")')
    submitter = await asyncio.create_subprocess_exec(
        str(python), "-c", script, env=env, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    subject = Celery(name=f"Celery, {processes} processes", worker=worker.pid, submitter=submitter)
    try:
        async with asyncio.timeout(_READY):
            await subject.many(2 * processes)  # every process has imported what it needs
        yield subject
    finally:
        for process in (submitter, worker):
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _at_once(count: int, parallelism: int, one: Callable[[], Awaitable[Run]]) -> float:
    gate, began = asyncio.Semaphore(parallelism), time.perf_counter()

    async def gated() -> None:
        async with gate:
            await one()

    await asyncio.gather(*(gated() for _ in range(count)))
    return time.perf_counter() - began

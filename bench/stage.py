"""What all parts of the run share: the services, the image, the options, and how to open the subjects."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiodocker
from scripts.devservices.shared import DEV

from bench.daemon import Runner, runner
from bench.rivals import BareEngine, Celery, DockerRun, celery
from bench.subject import Site

PROCESSES = (2, 4, 8)
"""How many processes Celery gets."""
AT_A_TIME = (2, 4, 8)
"""How many containers the loop around the bare engine has at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line can change; the defaults are those of the full run."""

    samples: int
    jobs: int
    rival_jobs: int
    rounds: int
    trial: int
    pool: int
    mixed: int
    idle: int
    watch: float
    life: int
    megabytes: int
    writers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the parts play."""

    site: Site
    docker: aiodocker.Docker
    options: Options

    @asynccontextmanager
    async def runner(
        self, name: str, *, warm: int = 0, limits: Mapping[str, str | float] | None = None, **settings: str
    ) -> AsyncIterator[Runner]:
        """A daemon of its own that keeps so many containers warm; `limits` are those of its stack."""
        say(f"starting {name}" + (f", and {warm} containers that wait" if warm else ""))
        async with runner(self.site, name, warm=warm, limits=limits or {}, **settings) as opened:
            yield opened

    @asynccontextmanager
    async def celery(self, *processes: int) -> AsyncIterator[list[Celery]]:
        """Workers with so many processes each."""
        # In a thread, for it may take minutes: connections that send no heartbeat meanwhile would be closed.
        python = await asyncio.to_thread(celery_python)
        say(f"starting Celery workers with {', '.join(map(str, processes))} processes")
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(celery(self.site, python, count)) for count in processes]

    def docker_run(self) -> DockerRun:
        """The engine's command line."""
        return DockerRun(site=self.site)

    def bare(self, at_a_time: int) -> BareEngine:
        """The engine's API."""
        name = f"bare engine, {at_a_time} at a time"
        return BareEngine(site=self.site, docker=self.docker, name=name, parallelism=at_a_time)


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def celery_python() -> Path:
    """The interpreter of Celery's own environment, made when it is missing."""
    folder = DEV / "bench-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        say("making an environment with Celery and the Docker SDK")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "celery", "docker"], check=True)
    return python

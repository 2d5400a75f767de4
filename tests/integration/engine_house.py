"""A docker adapter for one test, with short ways to run jobs on it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.attempts import make_attempt
from tests.engine_log import EngineLog

from runner.adapters.docker.client import TIME_LIMITS, TimeLimits
from runner.adapters.docker.config import LABEL_WORKER
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.engine import OpenEngine, open_engine
from runner.job import Attempt, Exit, Stream


class House:
    """The parts of the adapter, and what was heard from the last job."""

    def __init__(self, opened: OpenEngine, log: EngineLog, *, worker: str, state_dir: Path, image: str) -> None:
        self.engine = opened.engine
        self.client = opened.client
        self.sweep = opened.sweep
        self.worker = worker
        self.state_dir = state_dir
        self.image = image
        self.log = log
        self.out = bytearray()
        self.err = bytearray()
        self._heard = asyncio.Event()

    def attempt(self, *command: str, **told: Any) -> Attempt:
        return make_attempt(*command, **({"worker": self.worker, "image": self.image} | told))

    def hear(self, stream: Stream, data: bytes) -> None:
        (self.out if stream is Stream.OUT else self.err).extend(data)
        self._heard.set()

    async def heard(self, text: bytes) -> None:
        """Return when the job has written that to stdout."""
        async with asyncio.timeout(30):
            while text not in self.out:
                self._heard.clear()
                await self._heard.wait()

    async def launch(self, attempt: Attempt) -> DockerContainer:
        self.out.clear()
        self.err.clear()
        return await self.engine.launch(attempt, self.hear)

    async def run(self, *command: str, **told: Any) -> Exit:
        """Run a job to its end and remove it."""
        attempt = self.attempt(*command, **told)
        try:
            container = await self.launch(attempt)
            async with asyncio.timeout(60):
                return await container.wait()
        finally:
            await self.engine.discard(attempt)

    async def inspect(self, attempt: Attempt) -> dict[str, Any]:
        found = await self.client.inspect(attempt.container_name)
        assert found is not None
        return found

    async def names(self) -> set[str]:
        """This worker's containers, as the engine has them."""
        return {container.name for container in await self.client.labelled(f"{LABEL_WORKER}={self.worker}")}

    async def audited(self) -> int:
        """How many containers are unaccounted for, as a worker without a job sees it that removes nothing yet."""
        await self.sweep.once(grace=timedelta(minutes=5), idle=lambda: True)
        return self.log.unaccounted

    def folders(self) -> set[str]:
        """The claims of which there are files."""
        jobs = self.state_dir / "jobs"
        return {path.name for path in jobs.iterdir()} if jobs.exists() else set()

    def connections(self) -> int:
        """How many of the client's connections are in use."""
        return len(self.client.api.busy)


@asynccontextmanager
async def open_house(
    url: str,
    worker: str,
    state_dir: Path,
    image: str,
    *,
    limits: TimeLimits = TIME_LIMITS,
    warm_memory: int = 0,
) -> AsyncIterator[House]:
    """An adapter for the engine at `url`."""
    log = EngineLog()
    async with open_engine(
        url=url, worker=worker, state_dir=state_dir, observer=log, limits=limits, warm_memory=warm_memory
    ) as opened:
        yield House(opened, log, worker=worker, state_dir=state_dir, image=image)

"""Removing whatever containers a worker left."""

from dataclasses import dataclass
from datetime import timedelta

from runner import __version__
from runner.adapters.docker.config import LABEL_WORKER
from runner.adapters.docker.engine import open_engine
from runner.adapters.lock import WorkerLock
from runner.adapters.metrics import Metrics
from runner.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """How many containers are gone, and how many are left that the engine did not remove."""

    removed: int
    left: int


async def reap(settings: Settings) -> Reaped:
    """Remove every container of this worker, and their files.

    Raises `ConfigError` while a daemon holds the worker's lock, `EngineError` when the engine does not answer.
    """
    worker, state_dir = settings.worker.name, settings.worker.state_dir
    metrics = Metrics(version=__version__, installed=lambda: ())
    with WorkerLock(state_dir).hold():
        async with open_engine(url=settings.engine.url, worker=worker, state_dir=state_dir, observer=metrics) as opened:
            found = await opened.client.labelled(f"{LABEL_WORKER}={worker}")
            left = await opened.sweep.once(grace=timedelta(0))
    return Reaped(removed=max(0, len(found) - left), left=left)

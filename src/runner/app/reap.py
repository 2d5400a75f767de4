"""Removing whatever containers a worker left."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from runner import __version__
from runner.adapters.docker.client import Listed
from runner.adapters.docker.engine import open_engine
from runner.adapters.docker.results import place_in_memory
from runner.adapters.docker.sweep import GRACE
from runner.adapters.journal import journal_exists, open_journal
from runner.adapters.lock import WorkerLock
from runner.adapters.metrics import Metrics
from runner.app.local import clear_killed
from runner.errors import EngineGone
from runner.job import warm_name
from runner.ports import OpenClaim
from runner.settings import Settings

_LIMIT = timedelta(seconds=50)
_LATE = timedelta(seconds=30)
"""How long after its deadline a job is left to a daemon that may be about to come back, and would tell its end."""
_CLEANED_UP = timedelta(minutes=5)
"""How long a daemon that runs is trusted to remove what it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """How many containers are gone, and how many are left that the engine did not remove."""

    removed: int
    left: int


async def reap(settings: Settings) -> Reaped:
    """Remove every container of this worker, and of local runs that were killed, and their files.

    Raises `ConfigError` while a daemon holds the worker's lock, `EngineError` when the engine does not answer.
    """
    worker, state_dir = settings.worker.name, settings.worker.state_dir
    metrics = Metrics(version=__version__, installed=lambda: ())
    with WorkerLock(state_dir).hold():
        async with open_engine(
            url=settings.engine.url,
            worker=worker,
            state_dir=state_dir,
            observer=metrics,
            in_memory=place_in_memory(state_dir, "jobs"),
        ) as opened:
            found = await opened.sweep.found()
            left = await opened.sweep.once(grace=timedelta(0))
    killed = await clear_killed(settings)
    return Reaped(removed=max(0, len(found) - left) + killed, left=left)


async def reap_expired(settings: Settings) -> Reaped:
    """Remove the containers that no life of the daemon will want: past their time, unknown, or without a lease.

    Where no daemon runs, all other files of jobs go, too. Beside a daemon that runs it touches nothing of that one's.
    Raises `EngineError` when the engine takes too long.
    """
    metrics = Metrics(version=__version__, installed=lambda: ())
    try:
        async with (
            asyncio.timeout(_LIMIT.total_seconds()),
            open_engine(
                url=settings.engine.url,
                worker=settings.worker.name,
                state_dir=settings.worker.state_dir,
                observer=metrics,
                in_memory=place_in_memory(settings.worker.state_dir, "jobs"),
            ) as opened,
        ):
            await opened.client.ping()
            # First, for a claim is in the journal before its job has a container, or one that waited has its name:
            # what is listed and not there is unknown.
            listed, folders = await opened.sweep.found(), opened.sweep.folders()
            serves = WorkerLock(settings.worker.state_dir).held()
            found, wanted = await _wanted(settings, listed, serves=serves)
            left = await opened.sweep.clear(found, wanted, grace=GRACE if serves else timedelta(0))
            if not serves:  # of a container that was to get a job, a folder may bear another name than it did
                await opened.sweep.clear_folders(folders, wanted | left)
            killed = await clear_killed(settings)
    except TimeoutError:
        raise EngineGone(f"the engine did not remove everything within {_LIMIT.total_seconds():.0f} s") from None
    young = 0 if serves else len(left)
    return Reaped(removed=len({container.name for container in found} - wanted - left) + killed, left=young)


async def _wanted(
    settings: Settings, listed: Sequence[Listed], *, serves: bool
) -> tuple[Sequence[Listed], frozenset[str]]:
    """What was listed, by the names that are due to it, and the names that a daemon has, or the next one will adopt."""
    if not journal_exists(settings.worker.state_dir):
        return listed, frozenset()
    async with open_journal(settings.worker.state_dir, lambda: datetime.now(UTC)) as journal:
        names, claims = await journal.names(), await journal.open_claims()
        found = [replace(one, name=names.get(one.id, one.name)) for one in listed]
        if serves:
            ended = await journal.ended_lately(_CLEANED_UP)
            waiting = {one.name for one in found if one.name.startswith(warm_name(settings.worker.name, ""))}
            return found, ended.union(waiting, (claim.record.container_name for claim in claims))
        renewed = await journal.renewed()
    running = {container.name for container in found if container.running}
    return found, frozenset(
        claim.record.container_name
        for claim in claims
        if not _is_expired(claim, settings.worker.lease, renewed, runs=claim.record.container_name in running)
    )


def _is_expired(claim: OpenClaim, lease: timedelta, renewed: datetime, *, runs: bool) -> bool:
    """Whether nobody may go on with the claim, or its job should have been gone long ago."""
    now = datetime.now(UTC)
    late = runs and claim.deadline is not None and now > claim.deadline + _LATE
    return late or now > max(claim.record.claimed, renewed) + lease

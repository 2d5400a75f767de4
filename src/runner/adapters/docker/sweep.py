"""Removing what no task owns: what an earlier life left, and what a cleanup that was broken off left."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NoReturn

from runner.adapters.docker.audit import Audit
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import TIME_LIMITS, EngineClient, Listed, Operation
from runner.adapters.docker.config import LABEL_WORKER
from runner.adapters.docker.files import JobFolder, JobFolders, container_of, folder_of
from runner.adapters.docker.observer import EngineObserver
from runner.adapters.docker.removal import Removal
from runner.errors import EngineError

_LOG = logging.getLogger(__name__)

EVERY = timedelta(seconds=60)
GRACE = TIME_LIMITS[Operation.CREATE] + timedelta(seconds=30)
"""How old an unknown container must be: a create that we gave up may still land."""
_PATIENCE = timedelta(minutes=2)
_PATIENCE_AT_START = timedelta(seconds=60)
"""How long jobs wait for the removal of what an earlier life left: all they need is its room."""
_LONGEST_PAUSE = 30.0

Known = Callable[[], frozenset[str]]
"""The names of the containers that live tasks own, or the ids."""
Idle = Callable[[], bool]
"""Whether there is no job here."""


class Sweep:
    """Looks for containers with this worker's label, and for job folders, that `known` does not name.

    Those of `known` that wait for a job are `waiting`.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        removal: Removal,
        census: Census,
        audit: Audit,
        observer: EngineObserver,
        worker: str,
        folders: JobFolders,
        known: Known,
        waiting: Known = frozenset,
    ) -> None:
        self._client = client
        self._removal = removal
        self._census = census
        self._audit = audit
        self._observer = observer
        self._worker = worker
        self._folders = folders
        self._known = known
        self._waiting = waiting

    async def at_start(self) -> None:
        """Remove everything that is not known, however young. Waits for the engine, for as long as it takes."""
        pause = 1.0
        while True:
            try:
                await self.once(grace=timedelta(0), patience=_PATIENCE_AT_START)
            except EngineError as error:
                _LOG.warning("the engine cannot be swept yet", extra={"problem": str(error)})
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def run(self, idle: Idle) -> NoReturn:
        """Sweep every minute, until cancelled, and see that nothing has leaked whenever the worker is `idle`."""
        while True:
            await asyncio.sleep(EVERY.total_seconds())
            try:
                await self.once(grace=GRACE, idle=idle)
            except EngineError as error:
                _LOG.warning("this sweep failed", extra={"problem": str(error)})

    async def once(self, *, grace: timedelta, idle: Idle = lambda: False, patience: timedelta = _PATIENCE) -> int:
        """Remove what is unknown and older than `grace`; how many containers are left that should not be there.

        Nothing is audited unless the worker is `idle`. Raises `EngineError` when the engine cannot list its containers.
        """
        before, was_idle, waited = self._known(), idle(), self._waiting()
        found = await self.found()
        known, waiting = before | self._known(), self._waiting()
        still_idle = was_idle and idle() and known == waited == waiting
        listed = frozenset(container.name for container in found)
        self._audit.look(idle=still_idle, listed=listed - waiting, waiting=len(waiting))
        left = await self.clear(found, known, grace=grace, patience=patience)
        self._count(found, known)
        await self.clear_folders(self.folders(), known | left | self._known())
        return len(left)

    async def found(self) -> Sequence[Listed]:
        """All containers of this worker. Raises `EngineError`."""
        return await self._client.labelled(f"{LABEL_WORKER}={self._worker}")

    def folders(self) -> frozenset[str]:
        """The names of all folders of jobs, and of containers that wait for one."""
        return self._folders.names()

    async def clear_folders(self, found: frozenset[str], owned: frozenset[str]) -> None:
        """Remove those whose container is not among the `owned`, by name."""
        for name in found:
            if container_of(name, self._worker) not in owned:
                await self._remove_folder(self._folders.of(name))

    async def clear(
        self, found: Sequence[Listed], known: frozenset[str], *, grace: timedelta, patience: timedelta = _PATIENCE
    ) -> frozenset[str]:
        """Remove those that are not `known` and older than `grace`, with their files; the names of those left."""
        strays = [container for container in found if known.isdisjoint((container.name, container.id))]
        old = [container for container in strays if time.time() - container.created >= grace.total_seconds()]
        async with asyncio.TaskGroup() as removals:
            tasks = [removals.create_task(self._remove(container, patience)) for container in old]
        gone = {name for task in tasks if (name := task.result())}
        return frozenset(container.name for container in strays) - gone

    async def _remove(self, container: Listed, patience: timedelta) -> str | None:
        """The name of the container if it is gone now."""
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await self._removal.remove(container.name, container.id)
        except TimeoutError:
            self._census.appeared(container.name)
            return None
        self._observer.orphan_removed()
        _LOG.info("a container that nobody owned was removed", extra={"container": container.name})
        folder = folder_of(container.name, self._worker)
        if folder != container.name:
            await self._remove_folder(self._folders.of(folder))
        return container.name

    def _count(self, found: Sequence[Listed], known: frozenset[str]) -> None:
        """Whatever we counted and nobody owns is gone if the engine does not list it."""
        for name in self._census.living() - known - {container.name for container in found} - self._known():
            self._census.gone(name)

    async def _remove_folder(self, folder: JobFolder) -> None:
        try:
            await asyncio.to_thread(folder.remove)  # a job's code may have many files
        except OSError as error:
            self._observer.cleanup_failed()
            _LOG.warning("a job's files could not be removed", extra={"path": str(folder.path), "problem": str(error)})

"""A container that waited becomes that of a job."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.adapters.docker.census import Census
from runner.adapters.docker.config import Site
from runner.adapters.docker.files import JobFolders, folder_of, not_made
from runner.adapters.docker.launch import Launch, Launches
from runner.adapters.docker.making import REMAKE_PATIENCE
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.warm import Kind, WarmPool
from runner.errors import EngineError, EngineUnfit
from runner.job import Attempt, LinkedCode, Network, Plan

_LOG = logging.getLogger(__name__)

_MOUNTED_KNOWN = 1000
"""Packages of which it is remembered that they are too large to be linked into a container that waits."""
_PATIENCE = 1.0
"""Seconds for which a change of limits keeps its place: one that takes longer hangs, and the next one goes on."""


@dataclass(slots=True, kw_only=True)
class Handover:
    """Gives containers of the pool to jobs that they fit: files and limits, as soon as a job is to come.

    The name comes beside the job itself, when nobody else can have that any more. Until then, and where the engine
    refuses it, the container is found by the id in the claim's record.
    """

    warm: WarmPool
    launches: Launches
    census: Census
    site: Site
    folders: JobFolders
    _resizing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _mounted: OrderedDict[LinkedCode, None] = field(default_factory=OrderedDict)

    def expect(self, name: str, plan: Plan) -> str | None:
        """Make a container that waits that of the job whose name it gets later; its id, or None if none fits."""
        if plan.limits.scratch or plan.network is not Network.NONE or plan.job.code in self._mounted:
            return None  # what has to be mounted or connected has to be so before the container starts
        warm = self.warm.take(kind := Kind.of(plan.stack, plan.limits, self.site))
        if warm is None:
            return None
        launch = self.launches.also_known(warm.name, name)
        self.launches.rush.joined(name)
        self.census.goes_by(warm.name, name)
        resources = None if warm.kind == kind else kind.resources
        launch.becoming = self.launches.own(asyncio.create_task(self._become(warm.sandbox, name, resources)))
        return warm.sandbox.id

    def to_be_mounted(self, code: LinkedCode) -> None:
        """Remember that no container that waits is of use to a job with that code."""
        self._mounted[code] = None
        if len(self._mounted) > _MOUNTED_KNOWN:
            self._mounted.popitem(last=False)

    async def expected(self, attempt: Attempt) -> Sandbox | None:
        """The container that waited and is the attempt's now; None where there is none, or it is of no use."""
        launch = self.launches.find(attempt.container_name)
        if launch is None or launch.becoming is None:
            return None
        try:
            sandbox = await asyncio.shield(launch.becoming)
            if sandbox.alive and launch.to_mount is None:
                return sandbox
            problem = "its job's code has to be mounted" if sandbox.alive else "it ended"
        except EngineError as error:
            problem = str(error)
        await self._unmake(launch, attempt.claim, problem)
        return None

    async def _unmake(self, launch: Launch, claim: str, problem: str) -> None:
        level = logging.WARNING if launch.to_mount is None else logging.INFO
        _LOG.log(level, "a container that waited is of no use", extra={"container": launch.former, "problem": problem})
        # Not broken off: until it is gone, only this launch knows by which name and id it goes.
        unmaking = self.launches.own(asyncio.create_task(self.launches.unmake(claim)))
        await asyncio.wait({unmaking}, timeout=REMAKE_PATIENCE)
        if not unmaking.done():
            # It was told nothing of the job, which another worker may have as it is.
            raise EngineUnfit(f"a container that waited for a job cannot be used or removed: {problem}")

    async def _become(self, sandbox: Sandbox, name: str, resources: Mapping[str, Any] | None) -> Sandbox:
        try:
            sandbox.folder.become(self.folders.of(folder_of(name, self.site.worker)))
        except OSError as error:
            raise not_made(error) from error
        if resources is not None:
            await self._resize(sandbox, resources)
        return sandbox

    async def _resize(self, sandbox: Sandbox, resources: Mapping[str, Any]) -> None:
        """Change its limits when nobody else's are being changed: the engine's own work for it is what takes time."""
        async with self._resizing:
            resizing = self.launches.own(asyncio.create_task(sandbox.resize(resources)))
            await asyncio.wait({resizing}, timeout=_PATIENCE)
        await resizing

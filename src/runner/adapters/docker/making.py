"""Making containers whose init waits for a job, through an engine that may fail at each step."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import EngineClient, EngineUnreachable
from runner.adapters.docker.config import Access, Site, create_body, lodge
from runner.adapters.docker.files import JobFolder, JobFolders, container_of, not_made, write_hosts
from runner.adapters.docker.launch import Launch, Launches
from runner.adapters.docker.loop import LoopDevice
from runner.adapters.docker.removal import Removal
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.scratch import ScratchDisks
from runner.errors import DeferredError, EngineError, EngineGone, EngineUnfit, ImageMissing
from runner.job import Limits, Stack

_LOG = logging.getLogger(__name__)

REMAKE_PATIENCE = 10.0
"""Seconds for which a launch waits until a container is gone that it makes anew."""
_FINAL = (EngineGone, EngineUnfit, ImageMissing)
"""Failures that the same call would meet again, or that leave nobody to call."""


@dataclass(slots=True, kw_only=True)
class Maker:
    """Makes containers, `starting` as many at once as that has places; what there is of them stands in `launches`."""

    client: EngineClient
    removal: Removal
    census: Census
    scratch: ScratchDisks
    launches: Launches
    site: Site
    folders: JobFolders
    starting: asyncio.Semaphore

    async def make(self, claim: str, stack: Stack, limits: Limits, access: Access | None = None) -> Sandbox:
        """A started container whose init waits for its job. Raises `EngineError` or `DeferredError`."""
        name, folder = container_of(claim, self.site.worker), self.folders.of(claim)
        launch, stack = self.launches.of(name), lodge(stack, claim, self.site)
        _make_files(folder, launch, self.site.hosts)
        if limits.scratch:
            launch.disk = await self._make_disk(name, stack, limits)
        disk = launch.disk.path if launch.disk else None
        body = create_body(
            stack,
            limits,
            folder.path,
            self.site,
            results=folder.results,
            scratch=disk,
            code=launch.to_mount,
            access=access,
        )
        async with self.starting:
            container, attachment = await self._started(launch, name, body)
        launch.let_go_of_disk()
        return Sandbox(self.client, container, attachment, folder, self.site.reserve)

    async def _make_disk(self, name: str, stack: Stack, limits: Limits) -> LoopDevice:
        try:
            return await self.scratch.make(name, limits.scratch, uid=stack.uid, gid=stack.gid)
        except OSError as error:
            raise DeferredError(f"its scratch disk cannot be made on this worker: {error}") from error

    async def _started(self, launch: Launch, name: str, body: dict[str, object]) -> tuple[str, Attachment]:
        """Make a container and start it; once more from the beginning where the engine fails for no good reason.

        Not the start alone: a container that could not be started has lost its streams.
        """
        try:
            return await self._made_and_started(launch, name, body)
        except _FINAL:
            raise
        except EngineError as error:
            _LOG.warning("a container could not be started; it is made anew", extra={"problem": str(error)})
            failed = error
        launch.let_go_of_streams()
        try:
            async with asyncio.timeout(REMAKE_PATIENCE):
                await self.removal.remove(name, await launch.outcome())
        except TimeoutError:
            raise failed from None
        return await self._made_and_started(launch, name, body)

    async def _made_and_started(self, launch: Launch, name: str, body: dict[str, object]) -> tuple[str, Attachment]:
        launch.creation = self.launches.own(asyncio.create_task(self._create(launch, name, body)))
        container = await asyncio.shield(launch.creation)
        launch.attachment = attachment = await self.client.attach(container)
        await self.client.start(container)
        return container, attachment

    async def _create(self, launch: Launch, name: str, body: dict[str, object]) -> str:
        launch.possible = True
        try:
            container = await self.client.create(name, body)
        except EngineUnreachable as error:
            launch.possible = False
            raise EngineUnfit(str(error)) from error
        except EngineGone:
            launch.uncertain = True
            raise
        self.census.appeared(name)
        return container


def _make_files(folder: JobFolder, launch: Launch, hosts: Path) -> None:
    try:
        folder.create()
        write_hosts(hosts)
        if launch.to_mount is not None:
            folder.make_place_for_code()
    except OSError as error:
        raise not_made(error) from error

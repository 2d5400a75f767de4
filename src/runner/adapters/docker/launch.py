"""What there may be of a container, and how it is undone."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.client import EngineClient, Operation
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.files import JobFolder, JobFolders, container_of, folder_of
from runner.adapters.docker.loop import LoopDevice
from runner.adapters.docker.observer import EngineObserver
from runner.adapters.docker.removal import Removal
from runner.adapters.docker.rush import Rush
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.scratch import ScratchDisks
from runner.errors import EngineError
from runner.ports import Packages, Unpacked

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_FILES_PAUSE = 5.0
_NAMED_WITHIN = 1.0
"""Seconds for which `started` waits for the name, which takes the engine 8 ms: one that takes longer hangs."""
_LINKED_MAX = 1000
"""Entries of a job's code that are linked into its folder, which takes 20 to 50 µs each; more are mounted, and then the
job cannot have a container that waited."""


@dataclass(slots=True)
class Launch:
    """What there may be of a container, from before it exists until nothing is left of it.

    `creation` is never cancelled: an engine that was asked makes the container whether or not we listen, and only
    the answer tells. `uncertain` is set where there was none: the container may appear after it was looked for.
    `disk` is ours until the engine has mounted it, or there is nobody left who might.
    `possible` is false while the engine was not asked for anything.
    `code` is what its job brings along, and `linking` shows that to it.
    `container` is there once its job began.
    `becoming` makes a container that waited its job's, whose `former` name goes on until it is `named`.
    `waited` is the id of a container that waited for a job in an earlier life, and became the claim's.
    """

    possible: bool = False
    creation: asyncio.Task[str] | None = None
    attachment: Attachment | None = None
    uncertain: bool = False
    code: Unpacked | None = None
    linking: asyncio.Task[None] | None = None
    disk: LoopDevice | None = None
    becoming: asyncio.Task[Sandbox] | None = None
    former: str | None = None
    waited: str | None = None
    named: asyncio.Task[None] | None = None
    container: DockerContainer | None = None

    @property
    def to_mount(self) -> Path | None:
        """The folder of code that is too much to be linked file by file."""
        return self.code.folder if self.code is not None and self.code.entries > _LINKED_MAX else None

    @property
    def ended(self) -> bool:
        """Whether its job began and has ended."""
        return self.container is not None and self.container.ended is not None

    def let_go_of_streams(self) -> None:
        """Close the connection to the container's streams, if there is one."""
        if self.attachment is not None:
            self.attachment.close()
            self.attachment = None

    def let_go_of_disk(self) -> None:
        """Leave the scratch disk to the engine that has mounted it, or to nobody."""
        if self.disk is not None:
            self.disk.close()
            self.disk = None

    async def has_name(self) -> None:
        """Return when the container that waited has its job's name, or the engine refused it, or hangs."""
        if self.named is not None:
            await asyncio.wait({self.named}, timeout=_NAMED_WITHIN)

    def let_go_of_name(self) -> None:
        """Leave the container the name that it has: whoever removes it does so by its id."""
        if self.named is not None:
            self.named.cancel()

    async def outcome(self) -> str | None:
        """The container's id once the engine has answered; None if it made none that we know of."""
        if self.creation is None:
            return None
        await asyncio.wait({self.creation})
        return None if self.creation.exception() else self.creation.result()


@dataclass(slots=True, kw_only=True)
class Launches:
    """All launches of this worker, by their containers' names, and the tasks that belong to them."""

    client: EngineClient
    removal: Removal
    scratch: ScratchDisks
    observer: EngineObserver
    packages: Packages | None
    worker: str
    folders: JobFolders
    rush: Rush = field(default_factory=Rush)
    _known: dict[str, Launch] = field(default_factory=dict)
    _under_way: set[asyncio.Task[Any]] = field(default_factory=set)
    _disposals: set[asyncio.Task[None]] = field(default_factory=set)

    def names(self) -> frozenset[str]:
        """The containers that a launch has begun to make and no undoing has finished with."""
        return frozenset(self._known)

    def find(self, name: str) -> Launch | None:
        """The launch of a container of that name, if one has begun."""
        return self._known.get(name)

    def of(self, name: str, *, possible: bool = False) -> Launch:
        """The launch of a container of that name; of a new one it is told whether it may exist already."""
        return self._known.setdefault(name, Launch(possible=possible))

    def keep(self, name: str, waited: str | None) -> None:
        """An earlier life's launch: of a container of that name, or of the id of one that waited."""
        launch = self.of(name, possible=True)
        if waited is not None:
            launch.waited = launch.former = waited
            self._known[waited] = launch

    def also_known(self, former: str, name: str) -> Launch:
        """The launch goes by another name as well, until nothing is left of it."""
        launch = self._known[name] = self._known[former]
        launch.former = former
        return launch

    def begin_naming(self, launch: Launch, container: str, name: str) -> None:
        """Have a container that waited renamed; nobody has to wait for it."""
        launch.named = self.own(asyncio.create_task(self._name(container, name)))

    async def _name(self, container: str, name: str) -> None:
        try:
            await self.client.rename(container, name)
        except EngineError as error:
            problem = {"container": container, "problem": str(error)}
            _LOG.warning("a container that waited keeps its name, though it has a job", extra=problem)

    def own(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Keep a task that is not to be cancelled with whoever waits for it."""
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it
        return task

    async def undo(self, claim: str, *, patient: bool = False) -> None:
        """Return when nothing is left of what was made for the claim, or to wait for one, and its code is let go of.

        A `patient` one waits for jobs that are on their way, if its own has ended.
        """
        await self.unmake(claim, patient=patient)
        if self.packages is not None:
            self.packages.release(claim)

    async def unmake(self, claim: str, *, patient: bool = False) -> None:
        """Return when nothing is left of what was made for the claim, or to wait for one, if anything was."""
        name = container_of(claim, self.worker)
        launch = self.of(name, possible=True)
        self.rush.left(name)
        try:
            if patient and launch.ended:
                await self.rush.over()
            if launch.container is not None:
                await self._compare(launch.container)
            launch.let_go_of_streams()
            launch.let_go_of_name()
            if under_way := {task for task in (launch.becoming, launch.linking) if task is not None}:
                await asyncio.wait(under_way)
            container = await launch.outcome()
            if launch.waited is not None:  # another one may have taken its place, and have the name
                await self.removal.remove(name, launch.waited)
            if launch.possible:
                await self.removal.remove(name, container)
            if launch.uncertain:
                await asyncio.sleep(self.client.limits[Operation.CREATE].total_seconds())
                await self.removal.remove(name)
            await self._remove_files(self.folders.of(claim))
        finally:
            launch.let_go_of_streams()
            launch.let_go_of_disk()
            self.scratch.forget(name)
            self._known.pop(name, None)
            self._known.pop(launch.former or name, None)

    def drop(self, name: str) -> None:
        """Undo what goes by that name, if anything does, without anybody's waiting for it."""
        if name not in self._known:
            return
        disposal = asyncio.create_task(self.undo(folder_of(name, self.worker)))
        self._disposals.add(disposal)
        disposal.add_done_callback(self._disposals.discard)

    async def dropped(self) -> None:
        """Return when everything that was dropped is gone."""
        while self._disposals:
            await asyncio.wait(self._disposals)

    async def close(self) -> None:
        """Let go of all connections and end all tasks; what was not undone is left to the next sweep."""
        for launch in self._known.values():
            launch.let_go_of_streams()
            launch.let_go_of_disk()
        owned = [*self._under_way, *self._disposals]
        for task in owned:
            task.cancel()
        await asyncio.gather(*owned, return_exceptions=True)

    async def _compare(self, job: DockerContainer) -> None:
        """Tell where the engine contradicts what the job's end was judged by, as long as it can be asked."""
        for found in await job.disagreements():
            self.observer.end_disputed(found.matter)
            told = {"what": found.matter, "reported": found.reported, "engine": found.engine}
            _LOG.warning("the engine contradicts the end that was told of a job", extra={"container": job.id} | told)

    async def _remove_files(self, folder: JobFolder) -> None:
        while True:
            try:
                return await asyncio.to_thread(folder.remove)  # there may be a thousand links to its code
            except OSError as error:
                self.observer.cleanup_failed()
                _LOG.warning("a job's files could not be removed yet", extra={"problem": str(error)})
            await asyncio.sleep(_FILES_PAUSE)

"""Containers for jobs, made and unmade through the engine."""

import asyncio
import errno
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from runner.adapters.docker.adoption import adopt
from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.audit import Audit
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import (
    TIME_LIMITS,
    EngineClient,
    EngineUnreachable,
    Operation,
    TimeLimits,
    open_client,
)
from runner.adapters.docker.config import Access, Site, create_body, lodge
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.files import JobFolder, container_of, folder_of
from runner.adapters.docker.fitness import Fitness
from runner.adapters.docker.loop import LoopDevice
from runner.adapters.docker.nonces import Nonces
from runner.adapters.docker.observer import EngineObserver
from runner.adapters.docker.probe import Probes
from runner.adapters.docker.removal import Removal
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.scratch import ScratchDisks
from runner.adapters.docker.sweep import Sweep
from runner.adapters.docker.warm import Kind, WarmPool
from runner.errors import DeferredError, EngineError, EngineGone, EngineUnfit, ImageMissing, StartError
from runner.init.binary import init_binary
from runner.job import Attempt, Bytes, Limits, LinkedCode, Network, Plan, Stack
from runner.ports import OnOutput, Packages, Unpacked

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FILES_PAUSE = 5.0
_REMAKE_PATIENCE = 10.0
"""Seconds for which a launch waits until a container is gone that it makes anew."""
_MOUNTED_KNOWN = 1000
"""Packages of which it is remembered that they are too large to be linked into a container that waits."""
_FINAL = (EngineGone, EngineUnfit, ImageMissing)
"""Failures that the same call would meet again, or that leave nobody to call."""
_PROBE = Limits(memory=Bytes(32 * 2**20), disk=Bytes(2**20))
_NO_RESERVE = Bytes(0)
_LINKED_MAX = 1000
"""Entries of a job's code that are linked into its folder, which takes 20 to 50 µs each; more are mounted, and then the
job cannot have a container that waited."""


GrantAccess = Callable[[Stack], Access]
"""How a stack's jobs reach out. Raises `DeferredError` while they may not."""


def no_access(stack: Stack) -> Access:
    """For an engine that has no network for jobs."""
    raise DeferredError(f"a job of the stack {stack.name} cannot reach out: there is no network for it here")


@dataclass(slots=True)
class _Launch:
    """What there may be of a container, from before it exists until nothing is left of it.

    `creation` is never cancelled: an engine that was asked makes the container whether or not we listen, and only
    the answer tells. `uncertain` is set where there was none: the container may appear after it was looked for.
    `disk` is ours until the engine has mounted it, or there is nobody left who might.
    `possible` is false while the engine was not asked for anything.
    `code` is what its job brings along, and `linking` shows that to it.
    `becoming` gives a container that was warm its job's name; until then it may have its `former` one.
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

    @property
    def to_mount(self) -> Path | None:
        """The folder of code that is too much to be linked file by file."""
        return self.code.folder if self.code is not None and self.code.entries > _LINKED_MAX else None

    def let_go_of_disk(self) -> None:
        if self.disk is not None:
            self.disk.close()
            self.disk = None


class DockerEngine:
    """Implements `runner.ports.Engine`. Make one with `open_engine`."""

    def __init__(
        self,
        *,
        client: EngineClient,
        removal: Removal,
        census: Census,
        observer: EngineObserver,
        site: Site,
        nonces: Nonces,
        jobs: Path,
        scratch: ScratchDisks,
        packages: Packages | None,
        start_parallelism: int,
        warm_memory: int,
        access: GrantAccess,
    ) -> None:
        self.client = client
        self._access = access
        self.fitness = Fitness(self._probe)
        self._scratch = scratch
        self._removal = removal
        self._census = census
        self._observer = observer
        self._site = site
        self._nonces = nonces
        self._jobs = jobs
        self._packages = packages
        self._starting = asyncio.Semaphore(start_parallelism)
        self._launches: dict[str, _Launch] = {}
        self._creations: set[asyncio.Task[Any]] = set()
        self._disposals: set[asyncio.Task[None]] = set()
        self._mounted: OrderedDict[LinkedCode, None] = OrderedDict()
        self.warm = WarmPool(
            make=self._make_ready, drop=self.drop, observer=observer, site=site, memory=Bytes(warm_memory)
        )

    def names(self) -> frozenset[str]:
        """The containers that a launch has begun to make and no discard has finished with."""
        return frozenset(self._launches)

    def keep(self, name: str) -> None:
        """A container of that name may be adopted; see `runner.ports.Engine`."""
        self._launches.setdefault(name, _Launch(possible=True))
        self._census.appeared(name)

    def drop(self, name: str) -> None:
        """Nobody will adopt the container; see `runner.ports.Engine`."""
        if name in self._launches:
            self._dispose(folder_of(name, self._site.worker))

    async def dropped(self) -> None:
        """Return when everything that was dropped is gone."""
        while self._disposals:
            await asyncio.wait(self._disposals)

    def expect(self, name: str, plan: Plan) -> None:
        """Give a warm container its job's name, if there is one that fits; see `runner.ports.Engine`."""
        if plan.limits.scratch or plan.network is not Network.NONE or plan.job.code in self._mounted:
            return  # what has to be mounted or connected has to be so before the container starts
        warm = self.warm.take(kind := Kind.of(plan.stack, plan.limits, self._site))
        if warm is None:
            return
        launch = self._launches[name] = self._launches[warm.name]
        launch.former = warm.name
        self._census.renamed(warm.name, name)
        resources = None if warm.kind.resources == kind.resources else kind.resources
        launch.becoming = self._own(asyncio.create_task(self._become(warm.sandbox, name, resources)))

    async def prepare(self, attempt: Attempt) -> None:
        """Get the job's code; see `runner.ports.Engine`."""
        job = attempt.plan.job
        if job.code is None:
            return
        if self._packages is None:
            raise AssertionError("an engine without packages was given a job with code")
        launch = self._launches.setdefault(attempt.container_name, _Launch())
        launch.code = await self._packages.hold(attempt.claim, job)
        if launch.to_mount is not None and isinstance(job.code, LinkedCode):
            self._mounted[job.code] = None
            if len(self._mounted) > _MOUNTED_KNOWN:
                self._mounted.popitem(last=False)

    async def launch(self, attempt: Attempt, on_output: OnOutput) -> DockerContainer:
        """Start the attempt's container and hand the job over to the init in it; see `runner.ports.Engine`."""
        plan, nonce = attempt.plan, self._nonces.of(attempt.claim)
        launch = self._launches.setdefault(attempt.container_name, _Launch())
        if (waited := await self._expected(attempt)) is not None:
            await self._show_code(launch, waited)
            return await waited.run(attempt, nonce, on_output, warm=True)
        code, launch = launch.code, self._launches.setdefault(attempt.container_name, _Launch())
        launch.code = code
        access = self._access(plan.stack) if plan.network is Network.EGRESS else None
        self.fitness.check()
        try:
            sandbox = await self._prepare(attempt.claim, plan.stack, plan.limits, access)
        except (StartError, ImageMissing):
            raise
        except EngineError as error:
            if not isinstance(error.__cause__, EngineUnreachable):  # the pings see to that
                self.fitness.failed(plan.stack, surely=isinstance(error, EngineUnfit))
            raise
        self.fitness.started()
        await self._show_code(launch, sandbox)
        return await sandbox.run(attempt, nonce, on_output, warm=False)

    async def adopt(self, attempt: Attempt, on_output: OnOutput) -> DockerContainer:
        """The container that an earlier life launched for the attempt; see `runner.ports.Engine`.

        Waits for an engine that does not answer.
        """
        self.keep(attempt.container_name)
        self._scratch.note(attempt.container_name, attempt.plan.limits.scratch)
        return await adopt(
            attempt,
            client=self.client,
            site=self._site,
            folder=JobFolder(self._jobs / attempt.claim),
            nonce=self._nonces.of(attempt.claim),
            on_output=on_output,
        )

    async def discard(self, attempt: Attempt) -> None:
        """Return when nothing is left of the attempt; see `runner.ports.Engine`."""
        await self._undo(attempt.claim)

    async def _show_code(self, launch: _Launch, sandbox: Sandbox) -> None:
        """Show a container its job's code, unless it has it mounted."""
        if launch.code is None or launch.to_mount is not None:
            return
        link = asyncio.to_thread(sandbox.folder.link_code, launch.code.folder)
        launch.linking = self._own(asyncio.create_task(link))
        try:
            await asyncio.shield(launch.linking)
        except OSError as error:
            raise DeferredError(f"this worker cannot show the job its code: {error.strerror or error}") from error

    async def close(self) -> None:
        """Let go of all connections; what was not discarded is left to the next sweep."""
        for launch in self._launches.values():
            if launch.attachment is not None:
                launch.attachment.close()
            launch.let_go_of_disk()
        owned = [*self._creations, *self._disposals]
        for task in owned:
            task.cancel()
        await asyncio.gather(*owned, return_exceptions=True)

    async def _expected(self, attempt: Attempt) -> Sandbox | None:
        """The container that waited and is the attempt's now; None where there is none, or it is of no use."""
        launch = self._launches.get(attempt.container_name)
        if launch is None or launch.becoming is None:
            return None
        try:
            sandbox = await asyncio.shield(launch.becoming)
            if sandbox.alive and launch.to_mount is None:
                return sandbox
            problem = "its job's code has to be mounted" if sandbox.alive else "it ended"
        except EngineError as error:
            problem = str(error)
        level = logging.WARNING if launch.to_mount is None else logging.INFO
        _LOG.log(level, "a container that waited is of no use", extra={"container": launch.former, "problem": problem})
        # Not broken off: until it is gone, only this launch knows by which name and id it goes.
        unmaking = self._own(asyncio.create_task(self._unmake(attempt.claim)))
        await asyncio.wait({unmaking}, timeout=_REMAKE_PATIENCE)
        if not unmaking.done():
            raise EngineError(f"a container that waited for a job cannot be used or removed: {problem}")
        return None

    async def _become(self, sandbox: Sandbox, name: str, resources: Mapping[str, Any] | None) -> Sandbox:
        try:
            sandbox.folder.move(self._jobs / folder_of(name, self._site.worker))
        except OSError as error:
            raise EngineError(f"the job's files cannot be made: {error}") from error
        await sandbox.become(name, resources)
        return sandbox

    async def _make_ready(self, name: str, stack: Stack, limits: Limits) -> Sandbox:
        return await self._prepare(folder_of(name, self._site.worker), stack, limits)

    async def _undo(self, claim: str) -> None:
        """Return when nothing is left of what was made for the claim, or to wait for one, and its code is let go of."""
        await self._unmake(claim)
        self._release(claim)

    async def _unmake(self, claim: str) -> None:
        """Return when nothing is left of what was made for the claim, or to wait for one, if anything was."""
        name = container_of(claim, self._site.worker)
        launch = self._launches.setdefault(name, _Launch(possible=True))
        try:
            if launch.attachment is not None:
                launch.attachment.close()
                launch.attachment = None
            if under_way := {task for task in (launch.becoming, launch.linking) if task is not None}:
                await asyncio.wait(under_way)
            container = await self._outcome(launch)
            if launch.possible:
                await self._removal.remove(name, container)
            if launch.uncertain:
                await asyncio.sleep(self.client.limits[Operation.CREATE].total_seconds())
                await self._removal.remove(name)
            await self._remove_files(JobFolder(self._jobs / claim))
        finally:
            launch.let_go_of_disk()
            self._scratch.forget(name)
            self._launches.pop(name, None)
            self._launches.pop(launch.former or name, None)

    def _dispose(self, claim: str) -> None:
        """The same, without anybody's waiting for it."""
        disposal = asyncio.create_task(self._undo(claim))
        self._disposals.add(disposal)
        disposal.add_done_callback(self._disposals.discard)

    async def _probe(self, stack: Stack) -> None:
        """Start a container for nobody. Raises what a launch would."""
        claim = f"probe-{token_hex(8)}"
        try:
            await self._prepare(claim, stack, _PROBE)
        finally:
            self._dispose(claim)

    async def _prepare(self, claim: str, stack: Stack, limits: Limits, access: Access | None = None) -> Sandbox:
        """A started container whose init waits for its job."""
        name, folder = container_of(claim, self._site.worker), JobFolder(self._jobs / claim)
        launch, stack = self._launches.setdefault(name, _Launch()), lodge(stack, claim, self._site)
        try:
            folder.create()
            if launch.to_mount is not None:
                folder.make_place_for_code()
        except OSError as error:
            kind = EngineUnfit if error.errno == errno.ENOSPC else EngineError
            raise kind(f"the job's files cannot be made: {error}") from error
        if limits.scratch:
            launch.disk = await self._make_disk(name, stack, limits)
        disk = launch.disk.path if launch.disk else None
        body = create_body(stack, limits, folder.path, self._site, scratch=disk, code=launch.to_mount, access=access)
        async with self._starting:
            container, attachment = await self._started(launch, name, body)
        launch.let_go_of_disk()
        return Sandbox(self.client, container, attachment, folder, self._site.reserve)

    async def _make_disk(self, name: str, stack: Stack, limits: Limits) -> LoopDevice:
        try:
            return await self._scratch.make(name, limits.scratch, uid=stack.uid, gid=stack.gid)
        except OSError as error:
            raise DeferredError(f"its scratch disk cannot be made on this worker: {error}") from error

    async def _started(self, launch: _Launch, name: str, body: dict[str, object]) -> tuple[str, Attachment]:
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
        if launch.attachment is not None:
            launch.attachment.close()
        try:
            async with asyncio.timeout(_REMAKE_PATIENCE):
                await self._removal.remove(name, await self._outcome(launch))
        except TimeoutError:
            raise failed from None
        return await self._made_and_started(launch, name, body)

    async def _made_and_started(self, launch: _Launch, name: str, body: dict[str, object]) -> tuple[str, Attachment]:
        launch.creation = self._own(asyncio.create_task(self._create(launch, name, body)))
        container = await asyncio.shield(launch.creation)
        launch.attachment = attachment = await self.client.attach(container)
        await self.client.start(container)
        return container, attachment

    def _own(self, creation: asyncio.Task[T]) -> asyncio.Task[T]:
        self._creations.add(creation)
        creation.add_done_callback(self._creations.discard)
        creation.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it
        return creation

    async def _create(self, launch: _Launch, name: str, body: dict[str, object]) -> str:
        launch.possible = True
        try:
            container = await self.client.create(name, body)
        except EngineUnreachable as error:
            launch.possible = False
            raise EngineUnfit(str(error)) from error
        except EngineGone:
            launch.uncertain = True
            raise
        self._census.appeared(name)
        return container

    def _release(self, claim: str) -> None:
        if self._packages is not None:
            self._packages.release(claim)

    async def _outcome(self, launch: _Launch) -> str | None:
        """The container's id once the engine has answered; None if it made none that we know of."""
        if launch.creation is None:
            return None
        await asyncio.wait({launch.creation})
        return None if launch.creation.exception() else launch.creation.result()

    async def _remove_files(self, folder: JobFolder) -> None:
        while True:
            try:
                return await asyncio.to_thread(folder.remove)  # there may be a thousand links to its code
            except OSError as error:
                self._observer.cleanup_failed()
                _LOG.warning("a job's files could not be removed yet", extra={"problem": str(error)})
            await asyncio.sleep(_FILES_PAUSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEngine:
    """The engine with what belongs to it: client for health checks, sweep, what that found amiss, disks, probes."""

    engine: DockerEngine
    client: EngineClient
    sweep: Sweep
    audit: Audit
    scratch: ScratchDisks
    probes: Probes


@asynccontextmanager
async def open_engine(
    *,
    url: str,
    worker: str,
    state_dir: Path,
    observer: EngineObserver,
    packages: Packages | None = None,
    reserve: Bytes = _NO_RESERVE,
    uids: range | None = None,
    start_parallelism: int | None = None,
    warm_memory: int = 0,
    access: GrantAccess = no_access,
    limits: TimeLimits = TIME_LIMITS,
) -> AsyncIterator[OpenEngine]:
    """The engine at `url`, which need not be there yet. Raises `ConfigError` for a bad url or a missing init.

    Without `packages` it takes no jobs that bring code along. Jobs that may write to the engine's disk without a bound
    are ended when less than `reserve` is free there. `access` is asked for each job that reaches out.
    Those of stacks that name no user run as one of `uids`, if given.
    """
    parallel = start_parallelism or default_parallelism()
    jobs = state_dir.absolute() / "jobs"
    site = Site(
        worker=worker,
        boot=_BOOT_ID.read_text().strip(),
        init=init_binary().absolute(),
        reserve=reserve,
        uids=uids,
    )
    async with open_client(url, observer, limits) as client:
        census, audit = Census(observer), Audit(observer)
        removal = Removal(client, census, observer, at_once=parallel)
        scratch = ScratchDisks(state_dir.absolute())
        engine = DockerEngine(
            client=client,
            removal=removal,
            census=census,
            observer=observer,
            site=site,
            nonces=Nonces(state_dir / "secret"),
            jobs=jobs,
            scratch=scratch,
            packages=packages,
            start_parallelism=parallel,
            warm_memory=warm_memory,
            access=access,
        )
        probes = Probes(client=client, removal=removal, census=census, site=site)
        sweep = Sweep(
            client=client,
            removal=removal,
            census=census,
            observer=observer,
            worker=worker,
            jobs=jobs,
            known=lambda: engine.names() | probes.names(),
            waiting=engine.warm.names,
            audit=audit,
        )
        try:
            yield OpenEngine(engine=engine, client=client, sweep=sweep, audit=audit, scratch=scratch, probes=probes)
        finally:
            await engine.close()


def default_parallelism() -> int:
    """How many containers start at once: more would only start each of them later."""
    return min(max(2 * (os.cpu_count() or 1), 2), 16)

"""Containers for jobs, made and unmade through the engine."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from runner.adapters.docker.adoption import adopt
from runner.adapters.docker.audit import Audit
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import TIME_LIMITS, EngineClient, EngineUnreachable, TimeLimits, open_client
from runner.adapters.docker.config import Access, Site
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.files import JobFolders, container_of, folder_of
from runner.adapters.docker.fitness import Fitness
from runner.adapters.docker.handover import Handover
from runner.adapters.docker.launch import Launch, Launches
from runner.adapters.docker.making import Maker
from runner.adapters.docker.nonces import Nonces
from runner.adapters.docker.observer import EngineObserver
from runner.adapters.docker.probe import Probes
from runner.adapters.docker.removal import Removal
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.scratch import ScratchDisks
from runner.adapters.docker.sweep import Sweep
from runner.adapters.docker.warm import WarmPool
from runner.errors import DeferredError, EngineError, EngineUnfit, ImageMissing, StartError
from runner.init.binary import init_binary
from runner.job import Attempt, Bytes, Limits, LinkedCode, Network, Plan, Stack
from runner.ports import OnOutput, Packages

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROBE = Limits(memory=Bytes(32 * 2**20), disk=Bytes(2**20))
_NO_RESERVE = Bytes(0)


GrantAccess = Callable[[Stack], Access]
"""How a stack's jobs reach out. Raises `DeferredError` while they may not."""


def no_access(stack: Stack) -> Access:
    """For an engine that has no network for jobs."""
    raise DeferredError(f"a job of the stack {stack.name} cannot reach out: there is no network for it here")


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
        folders: JobFolders,
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
        self._census = census
        self._site = site
        self._nonces = nonces
        self._folders = folders
        self._packages = packages
        self._launches = Launches(
            client=client,
            removal=removal,
            scratch=scratch,
            observer=observer,
            packages=packages,
            worker=site.worker,
            folders=folders,
        )
        self._maker = Maker(
            client=client,
            removal=removal,
            census=census,
            scratch=scratch,
            launches=self._launches,
            site=site,
            folders=folders,
            starting=asyncio.Semaphore(start_parallelism),
        )
        self.warm = WarmPool(
            make=self._make_ready, drop=self.drop, observer=observer, site=site, memory=Bytes(warm_memory)
        )
        self._handover = Handover(warm=self.warm, launches=self._launches, census=census, site=site, folders=folders)

    def names(self) -> frozenset[str]:
        """The containers that a launch has begun to make and no discard has finished with."""
        return self._launches.names()

    def keep(self, name: str, waited: str | None = None) -> None:
        """A container of that name or id may be adopted; see `runner.ports.Engine`."""
        self._launches.keep(name, waited)
        self._census.appeared(name)

    def drop(self, name: str) -> None:
        """Nobody will adopt the container; see `runner.ports.Engine`."""
        self._launches.drop(name)

    async def dropped(self) -> None:
        """Return when everything that was dropped is gone."""
        await self._launches.dropped()

    def expect(self, name: str, plan: Plan) -> str | None:
        """Give a job a warm container, if there is one that fits; see `runner.ports.Engine`."""
        return self._handover.expect(name, plan)

    async def prepare(self, attempt: Attempt) -> None:
        """Get the job's code; see `runner.ports.Engine`."""
        job = attempt.plan.job
        if job.code is None:
            return
        if self._packages is None:
            raise AssertionError("an engine without packages was given a job with code")
        launch = self._launches.of(attempt.container_name)
        launch.code = await self._packages.hold(attempt.claim, job)
        if launch.to_mount is not None and isinstance(job.code, LinkedCode):
            self._handover.to_be_mounted(job.code)

    async def launch(self, attempt: Attempt, on_output: OnOutput) -> DockerContainer:
        """Start the attempt's container and hand the job over to the init in it; see `runner.ports.Engine`."""
        nonce, launch = self._nonces.of(attempt.claim), self._launches.of(attempt.container_name)
        code = launch.code
        sandbox, warm = await self._handover.expected(attempt), True
        if sandbox is None:
            launch = self._launches.of(attempt.container_name)  # a new one, where one that waited was of no use
            launch.code = code
            sandbox, warm = await self._make(attempt), False
        else:
            self._launches.begin_naming(launch, sandbox.id, attempt.container_name)  # beside all that follows
        await self._show_code(launch, sandbox)
        launch.container = await sandbox.run(attempt, nonce, on_output, warm=warm)
        self._launches.rush.began(attempt.container_name)
        await launch.has_name()
        return launch.container

    async def adopt(self, attempt: Attempt, on_output: OnOutput) -> DockerContainer:
        """The container that an earlier life launched for the attempt; see `runner.ports.Engine`.

        Waits for an engine that does not answer.
        """
        self.keep(attempt.container_name)
        launch = self._launches.of(attempt.container_name)
        self._scratch.note(attempt.container_name, attempt.plan.limits.scratch)
        adopted, name = await adopt(
            attempt,
            waited=launch.waited,
            client=self.client,
            site=self._site,
            folder=self._folders.of(attempt.claim),
            nonce=self._nonces.of(attempt.claim),
            on_output=on_output,
        )
        launch.container = adopted
        if name != attempt.container_name:
            self._launches.begin_naming(launch, adopted.id, attempt.container_name)
        return adopted

    async def discard(self, attempt: Attempt, *, patient: bool = False) -> None:
        """Return when nothing is left of the attempt; see `runner.ports.Engine`."""
        await self._launches.undo(attempt.claim, patient=patient)

    def hurry(self) -> None:
        """Let no removal wait any longer; see `runner.ports.Engine`."""
        self._launches.rush.hurry()

    async def close(self) -> None:
        """Let go of all connections; what was not discarded is left to the next sweep."""
        await self._launches.close()

    async def _make(self, attempt: Attempt) -> Sandbox:
        """A container for a job that has none. What it meets tells whether this engine can start anything at all."""
        plan = attempt.plan
        access = self._access(plan.stack) if plan.network is Network.EGRESS else None
        self.fitness.check()
        try:
            sandbox = await self._maker.make(attempt.claim, plan.stack, plan.limits, access)
        except (StartError, ImageMissing):
            raise
        except EngineError as error:
            if not isinstance(error.__cause__, EngineUnreachable):  # the pings see to that
                self.fitness.failed(plan.stack, surely=isinstance(error, EngineUnfit))
            raise
        self.fitness.started()
        return sandbox

    async def _show_code(self, launch: Launch, sandbox: Sandbox) -> None:
        """Show a container its job's code, unless it has it mounted."""
        if launch.code is None or launch.to_mount is not None:
            return
        link = asyncio.to_thread(sandbox.folder.link_code, launch.code.folder)
        launch.linking = self._launches.own(asyncio.create_task(link))
        try:
            await asyncio.shield(launch.linking)
        except OSError as error:
            raise DeferredError(f"this worker cannot show the job its code: {error.strerror or error}") from error

    async def _make_ready(self, name: str, stack: Stack, limits: Limits) -> Sandbox:
        return await self._maker.make(folder_of(name, self._site.worker), stack, limits)

    async def _probe(self, stack: Stack) -> None:
        """Start a container for nobody. Raises what a launch would."""
        claim = f"probe-{token_hex(8)}"
        try:
            await self._maker.make(claim, stack, _PROBE)
        finally:
            self.drop(container_of(claim, self._site.worker))


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
    in_memory: Path | None = None,
    packages: Packages | None = None,
    reserve: Bytes = _NO_RESERVE,
    uids: range | None = None,
    start_parallelism: int | None = None,
    warm_memory: int = 0,
    access: GrantAccess = no_access,
    limits: TimeLimits = TIME_LIMITS,
) -> AsyncIterator[OpenEngine]:
    """The engine at `url`, which need not be there yet. Raises `ConfigError` for a bad url or a missing init.

    What jobs write to their results goes to the folder `in_memory`, as memory of theirs, else to `state_dir`.
    Without `packages` it takes no jobs that bring code along. Jobs that may write to the engine's disk without a bound
    are ended when less than `reserve` is free there. `access` is asked for each job that reaches out.
    Those of stacks that name no user run as one of `uids`, if given.
    """
    parallel = start_parallelism or default_parallelism()
    folders = JobFolders(jobs=state_dir.absolute() / "jobs", in_memory=in_memory)
    site = _site(worker, state_dir, reserve, uids)
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
            folders=folders,
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
            folders=folders,
            known=lambda: engine.names() | probes.names(),
            waiting=engine.warm.names,
            audit=audit,
        )
        try:
            yield OpenEngine(engine=engine, client=client, sweep=sweep, audit=audit, scratch=scratch, probes=probes)
        finally:
            await engine.close()


def _site(worker: str, state_dir: Path, reserve: Bytes, uids: range | None) -> Site:
    return Site(
        worker=worker,
        boot=_BOOT_ID.read_text().strip(),
        init=init_binary().absolute(),
        hosts=state_dir.absolute() / "hosts",
        reserve=reserve,
        uids=uids,
    )


def default_parallelism() -> int:
    """How many containers start at once: half of a start is waiting, and more would only start each of them later."""
    return 2 * (os.cpu_count() or 1)

"""One job, run here and now with no broker: the same sandbox, limits, environment and words as in the daemon."""

import asyncio
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner import __version__
from runner.adapters.docker.engine import OpenEngine, open_engine
from runner.adapters.docker.images import open_images
from runner.adapters.docker.results import place_in_memory
from runner.adapters.journal import SqliteJournal, open_journal
from runner.adapters.lock import WorkerLock
from runner.adapters.metrics import Metrics
from runner.adapters.secrets import FileSecrets
from runner.app.egress import Gate, Watch
from runner.app.packages import open_packages_of
from runner.codec import Envelope, Notice, decode_job, encode_event, new_ordered_id, parse_route
from runner.errors import ConfigError, DeferredError, EngineUnfit, ImageMissing, RejectedError
from runner.executor import Run
from runner.job import (
    Attempt,
    Blame,
    Choices,
    EventKind,
    Invalid,
    Job,
    JobKey,
    JobResult,
    Network,
    Outcome,
    Plan,
    Stack,
    StopReason,
    Times,
    Verdict,
)
from runner.plan import Policy, check_request, make_plan
from runner.ports import Batch, ClaimRecord, Event, Stacks
from runner.settings import Settings
from runner.timeline import Timeline

log = logging.getLogger(__name__)

_FOLDER = "exec"
_LOCK = "lock"
_SWEPT = "swept"
"""In the folder of a worker that was root's: its containers are gone."""
_NAME_MAX = 40
_YOUNG = timedelta(minutes=1)
"""How long a folder that nobody has locked is left alone: its owner may be about to."""
_HURRY = timedelta(seconds=10)
"""How long a removal may still take after the second interrupt: one that works takes less than a second."""
_WAITING_MOST = 64
"""Batches that wait for whoever reads us before the job's log is held back, and cut as its limit says."""

Show = Callable[[Notice | Batch], None]
"""Takes what would be published, in order, on a thread of its own: it may block."""


@dataclass(frozen=True, slots=True)
class Interrupts:
    """Set by whoever wants the job to end: the first cancels it, the second leaves out its grace, and hurries."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)


class _Told:
    """The ports `Events` and `LogSink`: everything goes to `show`, one after the other."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._queue: asyncio.Queue[Notice | Batch | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()

    async def pass_on(self) -> None:
        """Show what was told, until `close`."""
        while (item := await self._queue.get()) is not None:
            await asyncio.to_thread(self._show, item)
            if self._queue.qsize() < _WAITING_MOST:
                self._room.set()

    def close(self) -> None:
        """Nothing more will be told."""
        self._queue.put_nowait(None)

    async def publish(self, event: Event) -> None:
        """Have it shown before this process ends, which is as safe as it gets."""
        self._queue.put_nowait(encode_event(event))

    def offer(self, batch: Batch) -> None:
        """Have it shown."""
        self._queue.put_nowait(batch)
        if self._queue.qsize() >= _WAITING_MOST:
            self._room.clear()

    async def room(self, claim: str) -> None:  # noqa: ARG002 - there is one claim
        """Return when whoever reads us is not far behind."""
        await self._room.wait()

    def confirmed(self, claim: str) -> int:  # noqa: ARG002
        """Nothing: no later life goes on with the log."""
        return 0

    async def flush(self, key: JobKey, claim: str, timeout: float) -> bool:  # noqa: ARG002 - nothing gets lost here
        """Whoever reads us gets all of it, however slow they are."""
        return True

    def forget(self, claim: str) -> None:
        """Nothing more comes; what waits is shown all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A worker for single jobs, with a name and a folder of its own. Made by `open_local`."""

    worker: str
    house: OpenEngine
    journal: SqliteJournal
    metrics: Metrics
    secrets: FileSecrets
    watch: Watch
    left: list[str] = field(default_factory=list)
    """The containers for whose removal nobody wanted to wait any longer."""

    async def run(self, job: Job, stacks: Stacks, policy: Policy, show: Show, interrupts: Interrupts) -> JobResult:
        """Run the job to its end; how it ended. Raises `EngineError` when the engine does not know the stack's image.

        What concerns when and how often a job starts (delay, retries …) is left out: this is one attempt, now.
        """
        try:
            return await self._tell(job, stacks, policy, show, interrupts)
        except BaseExceptionGroup as group:
            # A fault of one task is what it is; a group would pass by whoever tells faults.
            raise (_only(group) or group) from None

    async def _tell(self, job: Job, stacks: Stacks, policy: Policy, show: Show, interrupts: Interrupts) -> JobResult:
        stack, plan = await self._choose(job, stacks, replace(policy, egress=self.watch.gate.refusal))
        told = _Told(show)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(told.pass_on())
            try:
                timeline = Timeline(
                    events=told,
                    tasks=tasks,
                    now=_now,
                    submission=job,
                    worker=self.worker,
                    claim=new_ordered_id(_now()).replace("-", ""),
                    attempt=1 if isinstance(plan, Plan) else 0,
                    stack=stack,
                )
                if isinstance(plan, Plan):
                    result = await self._run(plan, timeline, told, interrupts)
                else:
                    timeline.tell(EventKind.REJECTED, reason=plan.reason)
                    result = _ended(job, plan)
                timeline.tell(EventKind.FINISHED, result=result)
                await timeline.told()
            finally:
                told.close()
        return result

    async def _choose(self, job: Job, stacks: Stacks, policy: Policy) -> tuple[Stack | None, Plan | Verdict]:
        """The stack and the plan, or why there is none: nobody else could run it, so what is passed on is refused."""
        stack = None
        try:
            check_request(job, policy)
            stack = await stacks.resolve(job.stack)
            if (job.network or stack.network) is Network.EGRESS:
                await self.watch.look_for(stack)
            return stack, make_plan(job, stack, policy)
        except (RejectedError, DeferredError) as error:
            return stack, _refusal(error)

    async def _run(self, plan: Plan, timeline: Timeline, told: _Told, interrupts: Interrupts) -> JobResult:
        attempt = Attempt(plan=plan, worker=self.worker, claim=timeline.claim, number=1)
        claimed = timeline.claimed = _now()
        record = ClaimRecord(
            claim=attempt.claim,
            key=plan.job.key,
            container_name=attempt.container_name,
            attempt=1,
            claimed=claimed,
            choices=Choices.of(plan),
        )
        await self.journal.claimed(record)
        run = Run(
            attempt=attempt,
            claimed=claimed,
            engine=self.house.engine,
            secrets=self.secrets,
            log_sink=told,
            journal=self.journal,
            observer=self.metrics,
            timeline=timeline,
            now=_now,
        )
        obeying = timeline.tasks.create_task(_obey(run, interrupts))
        try:
            return await run.execute()
        except (ImageMissing, EngineUnfit) as error:
            return _ended(plan.job, Verdict(outcome=Outcome.LOST, reason=str(error), blame=Blame.PLATFORM))
        except (RejectedError, DeferredError) as error:
            return _ended(plan.job, _refusal(error))
        finally:
            obeying.cancel()
            if not await _ended_in_time(self.house.engine.discard(attempt), interrupts.second):
                self.left.append(attempt.container_name)
                log.warning("the container %s is left to runner reap --expired", attempt.container_name)


@asynccontextmanager
async def open_local(settings: Settings) -> AsyncIterator[Local]:
    """A worker of its own beside the daemon; at the end nothing is left of it, unless `left` says what.

    Each has a folder `<state_dir>/exec/<worker>` whose lock says that it lives: what a killed one leaves is found and
    removed by the next one, and by `runner reap --expired`. Raises `EngineError` when the engine does not answer, and
    `ConfigError` when the folder cannot be written.
    """
    await clear_killed(settings)
    worker = _own_name(settings.worker.name)
    folder = settings.worker.state_dir / _FOLDER / worker
    _make(settings.worker.state_dir, folder)
    left: list[str] = []
    with WorkerLock(folder).hold():
        try:
            async with _open(settings, folder) as local:
                left = local.left
                await local.house.sweep.once(grace=timedelta(0))  # another process may have had our number
                yield local
        finally:
            if not left:
                _remove(settings.worker.state_dir, folder)


def local_folders(state_dir: Path) -> list[Path]:
    """The folders of the local workers that live or were killed, each with a journal of its own."""
    folder = state_dir / _FOLDER
    return [path for path in folder.iterdir() if not (path / _SWEPT).exists()] if folder.is_dir() else []


async def clear_killed(settings: Settings) -> int:
    """Remove what local workers left that were killed: how many containers that were. Raises `EngineError`."""
    removed = 0
    for folder in _killed(settings.worker.state_dir / _FOLDER):
        try:
            if not _may_open(folder):
                removed += await _clear_of_root(settings, folder)
                continue
            with WorkerLock(folder).hold():
                removed += await _sweep(settings, folder)
                _remove(settings.worker.state_dir, folder)
        except ConfigError:
            continue  # somebody else is at it
    return removed


async def _clear_of_root(settings: Settings, folder: Path) -> int:
    """Remove the containers of a worker that was root's, as the daemon's user. What is on disk is left to root."""
    swept = folder / _SWEPT
    if swept.exists():
        return 0
    with tempfile.TemporaryDirectory(prefix="runner-exec-") as state:
        removed = await _sweep(settings, Path(state) / folder.name)
    if in_memory := _in_memory(settings.worker.state_dir, folder):
        shutil.rmtree(in_memory, ignore_errors=True)  # nobody else counts that memory
    with suppress(OSError):
        swept.touch()
    return removed


async def _sweep(settings: Settings, folder: Path) -> int:
    """Remove the containers of the worker that is called like the folder."""
    async with _open(settings, folder) as local:
        found = len(await local.house.sweep.found())
        await local.house.sweep.once(grace=timedelta(0))
    return found


def _may_open(folder: Path) -> bool:
    lock = folder / _LOCK
    return os.access(lock, os.R_OK | os.W_OK) or not lock.exists()


def local_job(message: Mapping[str, Any], routing_key: str) -> Job:
    """The job in a message, read as a worker would. Raises `RejectedError` with what the worker would say."""
    now = _now()
    try:
        route = parse_route(routing_key)
    except ValueError as error:
        raise RejectedError(str(error)) from error
    envelope = Envelope(route=route, message_id=new_ordered_id(now))
    job = decode_job(json.dumps(dict(message)).encode(), envelope, now)
    if isinstance(job, Invalid):
        raise RejectedError(job.reason)
    return job


@asynccontextmanager
async def _open(settings: Settings, folder: Path) -> AsyncIterator[Local]:
    metrics, gate = Metrics(version=__version__, installed=lambda: ()), Gate(settings)
    async with (
        open_journal(folder, _now) as journal,
        open_images(settings.engine.url) as images,
        open_packages_of(settings, folder, metrics) as packages,
        open_engine(
            url=settings.engine.url,
            worker=folder.name,
            state_dir=folder,
            observer=metrics,
            in_memory=_in_memory(settings.worker.state_dir, folder),
            packages=packages,
            reserve=settings.capacity.disk_free,
            uids=settings.engine.uid_numbers,
            access=gate.access,
        ) as house,
    ):
        await packages.load(())
        await house.client.ping()
        yield Local(
            worker=folder.name,
            house=house,
            journal=journal,
            metrics=metrics,
            secrets=FileSecrets(settings.secrets.dir),
            watch=Watch(settings=settings, gate=gate, probes=house.probes, images=images),
        )


def _own_name(worker: str) -> str:
    suffix = f"-exec-{os.getpid()}"
    return worker[: _NAME_MAX - len(suffix)] + suffix


def _make(state_dir: Path, folder: Path) -> None:
    """Make the folder; what root makes here belongs to the daemon's user, who looks for what was left."""
    try:
        in_memory = _in_memory(state_dir, folder)
        for path in (state_dir, folder.parent, folder, *((in_memory.parent, in_memory) if in_memory else ())):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                owner = state_dir.stat()
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:
        raise ConfigError(
            f"worker.state_dir: {folder} cannot be made ({error.strerror}); run this as the daemon's user, "
            "or name another folder"
        ) from error


def _remove(state_dir: Path, folder: Path) -> None:
    for path in filter(None, (_in_memory(state_dir, folder), folder)):
        shutil.rmtree(path, ignore_errors=True)


def _in_memory(state_dir: Path, folder: Path) -> Path | None:
    """The other folder of a local worker, for what its job writes."""
    return place_in_memory(state_dir, _FOLDER, folder.name)


def _killed(folder: Path) -> list[Path]:
    """The folders of those that live no more."""
    latest, found = time.time() - _YOUNG.total_seconds(), []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # its owner has ended, and removed it
            if path.stat().st_mtime < latest and not WorkerLock(path).held():
                found.append(path)
    return found


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The only error in a group, however deep; None where there are several."""
    if len(group.exceptions) > 1:
        return None
    (error,) = group.exceptions
    return _only(error) if isinstance(error, BaseExceptionGroup) else error


async def _obey(run: Run, interrupts: Interrupts) -> None:
    await interrupts.first.wait()
    run.stop(StopReason.CANCELLED, "interrupted at the terminal")
    await interrupts.second.wait()
    run.stop(StopReason.CANCELLED, at_once=True)


async def _ended_in_time(removal: Coroutine[Any, Any, None], hurry: asyncio.Event) -> bool:
    """Wait for a removal, which takes as long as it takes, or no more than a moment after somebody is in a hurry."""
    removing, hurrying = asyncio.create_task(removal), asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait({removing, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        ended, _ = await asyncio.wait({removing}, timeout=_HURRY.total_seconds())
        if ended:
            await removing
        return bool(ended)
    finally:
        removing.cancel()
        hurrying.cancel()
        await asyncio.gather(removing, hurrying, return_exceptions=True)


def _refusal(error: RejectedError | DeferredError) -> Verdict:
    by_request = isinstance(error, RejectedError) and not error.operator
    blame = Blame.REQUEST if by_request else Blame.OPERATOR
    return Verdict(outcome=Outcome.REJECTED, reason=error.reason, blame=blame)


def _ended(job: Job, verdict: Verdict) -> JobResult:
    return JobResult(verdict=verdict, times=Times(published=job.published, ended=_now()))


def _now() -> datetime:
    return datetime.now(UTC)

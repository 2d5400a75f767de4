"""The stacks of this worker, as they are now: each a folder with a `stack.toml`, and an image of the engine."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from runner.errors import ConfigError, DeferredError, RejectedError
from runner.job import SecretRef, Stack, StackRef, is_revision
from runner.stacks import names
from runner.stacks.file import FILE, LogFlood, Sockets, StackFile, is_stack_name, read_stack_file
from runner.stacks.images import Image
from runner.stacks.revisions import Ledger, Record, State

log = logging.getLogger(__name__)

KEPT = timedelta(seconds=5)
"""For how long an image is not looked up again."""


class ImageLookup(Protocol):
    """What the catalog asks of the engine."""

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag or id; None if there is none. Raises `EngineGone` or `EngineError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A stack as the list shows it: what it is now, or the fault that keeps it from being used."""

    name: str
    description: str = ""
    stack: Stack | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of a file, and the state that it was in then."""

    stamp: tuple[int, int, int]
    file: StackFile | None
    faults: tuple[str, ...] = ()


class Catalog:
    """Finds the stack for a job. Whatever changes counts for the next job; a restart is never needed.

    `stack.toml` is that of this moment, also for a revision that was built with another one. `runtimes` are the OCI
    runtimes that stacks may name, and the first is that of those which name none. Implements the port `Stacks`.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageLookup,
        ledger: Ledger,
        *,
        runtimes: Sequence[str] = ("runc",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._images = images
        self._ledger = ledger
        self._runtimes = runtimes
        self._there: frozenset[str] | None = None
        self._clock = clock
        self._read: dict[str, _Read] = {}
        self._found: dict[tuple[str, str], tuple[float, Image]] = {}

    async def resolve(self, ref: StackRef) -> Stack:
        """The stack as it is now, or in the revision that the job pins.

        Raises `DeferredError` when this worker cannot offer it, `RejectedError` for a revision that failed its smoke
        test, `EngineGone` or `EngineError` when the engine cannot tell.
        """
        if not self._exists(ref.name):
            raise DeferredError(f'this worker has no stack "{ref.name}"')
        try:
            if ref.revision is None:
                return await self._current(ref.name)
            return await self._pinned(ref.name, ref.revision)
        except ConfigError as error:
            raise DeferredError(f'the stack "{ref.name}" cannot be used on this worker: {error.faults[0]}') from None

    def invalidate(self, name: str) -> None:
        """Look the stack's images up again: the engine said that one is gone."""
        self._found = {known: found for known, found in self._found.items() if known[0] != name}

    def engine_has(self, runtimes: frozenset[str]) -> None:
        """Learn which runtimes the engine has: stacks with another one are passed on, and none is before this."""
        self._there = runtimes

    def check(self, name: str) -> None:
        """Raise `ConfigError` with what keeps the stack's jobs from running here, whatever its image."""
        self._usable(name)

    def smoke(self, name: str) -> tuple[str, ...] | None:
        """The command that has to exit 0 before a new revision is used. Raises `ConfigError`."""
        return self.file(name).smoke

    def offer(self, name: str, image: Image, revision: str) -> Stack:
        """The stack with that image, whichever is current. Raises `ConfigError` when its file cannot be used."""
        return self._made(name, image, revision)

    def installed(self) -> Sequence[str]:
        """The names of all stacks that exist here, usable or not."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if self._exists(path.name))
        except OSError:
            return []

    async def list(self) -> Sequence[Listed]:
        """All stacks, each with what it is now or its fault. Raises `EngineGone` or `EngineError`."""
        return [await self._listed(name) for name in self.installed()]

    async def kept_warm(self) -> Sequence[tuple[Stack, int]]:
        """The stacks that can be used and of which containers are to wait for jobs, with how many.

        Raises `EngineGone` or `EngineError`.
        """
        found = []
        for name in self.installed():
            try:
                if (count := self.file(name).warm) > 0:
                    found.append((await self._current(name), count))
            except ConfigError:
                continue  # a job that names it is told
        return found

    async def _listed(self, name: str) -> Listed:
        self.invalidate(name)
        try:
            file = self.file(name)
        except ConfigError as error:
            return Listed(name=name, fault="; ".join(error.faults))
        try:
            return Listed(name=name, description=file.description, stack=await self._current(name, given=False))
        except ConfigError as error:
            return Listed(name=name, description=file.description, fault="; ".join(error.faults))

    def _exists(self, name: str) -> bool:
        return is_stack_name(name) and (self._folder / name / FILE).is_file()

    async def _current(self, name: str, *, given: bool = True) -> Stack:
        """The stack as it is for jobs that pin nothing. Raises `ConfigError` with what keeps it from being used.

        `given`: a job gets it.
        """
        self._usable(name)
        pointer = self._ledger.pointer(name)
        if pointer is None:
            image = await self._image(name, names.tagged(name, names.CURRENT))
            if image is None:
                raise ConfigError(self._missing(name))
            return self._made(name, image, own_revision(image))
        image = await self._proven(name, pointer.current, given=given)
        if image is None:
            raise ConfigError(f"revision {pointer.current} is gone; run: runner stacks build {name}")
        return self._made(name, image, pointer.current)

    def _missing(self, name: str) -> str:
        """Why a stack that has had no revision has no image."""
        wanted = self.file(name).image
        if wanted is None:
            return f"its image is not built; run: runner stacks build {name}"
        pin = self._ledger.pin(name)
        if pin is not None and pin.image == wanted and pin.fault is not None:
            return f"its image could not be had from the registry: {pin.fault}"
        return f"its image is not here yet; the daemon pulls it from stacks.registry, or: runner stacks pull {name}"

    async def _pinned(self, name: str, revision: str) -> Stack:
        """Raises `ConfigError`, `DeferredError` when this worker lacks the revision, or `RejectedError`."""
        self._usable(name)
        known = self._ledger.record(name, revision)
        if known is not None and known.state is State.FAILED:
            raise RejectedError(f"stack: {name}@{revision} failed its smoke test; pin another revision")
        image = await self._proven(name, revision)
        if image is None:
            raise DeferredError(f'this worker has no revision "{revision}" of the stack "{name}"')
        return self._made(name, image, revision)

    async def _proven(self, name: str, revision: str, *, given: bool = True) -> Image | None:
        """The image of a revision that jobs may get, marked as used if it is `given` to one; None if there is none.

        What has no record was tagged by hand, and counts as proven.
        """
        record = self._ledger.record(name, revision)
        if record is None:
            # Never from memory: nothing would tell that it was removed meanwhile.
            image = await self._images.inspect(names.tagged(name, revision))
        else:
            image = await self._image(name, record.image)
        if image is None:
            return None
        # In this order: `prune` retires a revision first and then looks for this mark, so that one sees the other.
        if given:
            self._ledger.use(name, revision)
        return image if _is_open(record, self._ledger.record(name, revision)) else None

    def _usable(self, name: str) -> StackFile:
        """The stack's file. Raises `ConfigError` with what keeps its jobs from running here."""
        file = self.file(name)
        runtime = self._runtime(file)
        if runtime not in self._runtimes:
            raise ConfigError(f'runtime: "{runtime}" is not among engine.runtimes; add it there')
        if self._there is not None and runtime not in self._there:
            raise ConfigError(f'runtime: the engine does not know "{runtime}"; add it to its runtimes')
        return file

    def _made(self, name: str, image: Image, revision: str) -> Stack:
        file = self._usable(name)
        return _stack(name, file, image, revision, self._runtime(file))

    def _runtime(self, file: StackFile) -> str:
        return file.runtime or self._runtimes[0]

    def file(self, name: str) -> StackFile:
        """The stack's file, read again if it has changed. Raises `ConfigError`."""
        path = self._folder / name / FILE
        try:
            stat = path.stat()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._read.get(name)
        if known is None or known.stamp != stamp:
            known = self._read[name] = _read(name, path, stamp)
        if known.file is None:
            raise ConfigError(*known.faults)
        return known.file

    async def _image(self, name: str, wanted: str) -> Image | None:
        """The stack's image of that tag or id; None if there is none."""
        now = self._clock()
        at, image = self._found.get((name, wanted), (0.0, None))
        if image is None or now - at >= KEPT.total_seconds():
            self._found.pop((name, wanted), None)
            image = await self._images.inspect(wanted)
            if image is not None:
                self._found[name, wanted] = (now, image)
        return image


def own_revision(image: Image) -> str:
    """The revision that an image says that it is; one that was not built by us has its own id for it."""
    told = image.labels.get(names.REVISION, "")
    return told if is_revision(told) else image.id.removeprefix("sha256:")[:12]


def _is_open(before: Record | None, now: Record | None) -> bool:
    """Whether jobs may get a revision of which this is known, and was a moment ago."""
    if before is None or now is None:
        return before is now
    return now.state is State.READY and now.image == before.image


def _read(name: str, path: Path, stamp: tuple[int, int, int]) -> _Read:
    try:
        return _Read(stamp, read_stack_file(path))
    except ConfigError as error:
        log.error("stack file is broken", extra={"stack": name, "faults": list(error.faults)})  # noqa: TRY400
        return _Read(stamp, None, error.faults)


def _stack(name: str, file: StackFile, image: Image, revision: str, runtime: str) -> Stack:
    """What file and image say together."""
    uid, gid = file.numeric_user or _named_user(name, file, image)
    if file.cap_add and uid:
        raise ConfigError('cap_add: the kernel gives them to root alone; set user = "0", or take it out')
    return Stack(
        name=name,
        revision=revision,
        image=image.id,
        command=file.command or (),
        uid=uid,
        gid=gid,
        network=file.network,
        allow=file.allow,
        env={**image.env, **file.env},
        limits=file.limits,
        read_only=file.read_only,
        cap_add=file.cap_add,
        devices=file.devices,
        secrets=tuple(SecretRef(name=secret.name, shared=secret.shared) for secret in file.secrets),
        runtime=runtime,
        log_flood_kills=file.log_flood is LogFlood.KILL,
        all_sockets=file.sockets is Sockets.ALL,
    )


def _named_user(name: str, file: StackFile, image: Image) -> tuple[int, int]:
    """The numbers that were found in the image when it was built; the engine could not mount a tmpfs for a name."""
    labels = image.labels
    if labels.get(names.USER) != file.user:
        raise ConfigError(f'user: "{file.user}" is not known of its image; run: runner stacks build {name}')
    return int(labels[names.UID]), int(labels[names.GID])

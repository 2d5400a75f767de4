"""The stacks of this worker, as they are now: each a folder with a `stack.toml`, and an image of the engine."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from runner.errors import ConfigError, DeferredError, RejectedError
from runner.job import Network, SecretRef, Stack, StackRef
from runner.stacks import names
from runner.stacks.file import FILE, LogFlood, StackFile, is_stack_name, read_stack_file
from runner.stacks.images import Image

log = logging.getLogger(__name__)

KEPT = timedelta(seconds=5)
"""For how long an image is not looked up again."""


class ImageLookup(Protocol):
    """What the catalog asks of the engine."""

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag; None if there is none. Raises `EngineGone` or `EngineError`."""


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
    """Finds the stack for a job. Files are read again when they change; a restart is never needed.

    `runtimes` are the OCI runtimes that stacks may name. Implements the port `Stacks`.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageLookup,
        *,
        runtimes: Collection[str] = ("runc",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._images = images
        self._runtimes = runtimes
        self._clock = clock
        self._read: dict[str, _Read] = {}
        self._found: dict[str, tuple[float, Image]] = {}

    async def resolve(self, ref: StackRef) -> Stack:
        """The stack as it is now.

        Raises `DeferredError` when this worker cannot offer it, `RejectedError` for a pinned revision (which this
        version does not know), `EngineGone` or `EngineError` when the engine cannot tell.
        """
        if ref.revision is not None:
            raise RejectedError(f"this version does not support a pinned revision; ask for {ref.name}")
        if not self._exists(ref.name):
            raise DeferredError(f'this worker has no stack "{ref.name}"')
        try:
            return await self._resolve(ref.name)
        except ConfigError as error:
            raise DeferredError(f'the stack "{ref.name}" cannot be used on this worker: {error.faults[0]}') from None

    def invalidate(self, name: str) -> None:
        """Look the stack's image up again: the engine said that it is gone."""
        self._found.pop(name, None)

    def installed(self) -> Sequence[str]:
        """The names of all stacks that exist here, usable or not."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if self._exists(path.name))
        except OSError:
            return []

    async def list(self) -> Sequence[Listed]:
        """All stacks, each with what it is now or its fault. Raises `EngineGone` or `EngineError`."""
        return [await self._listed(name) for name in self.installed()]

    async def _listed(self, name: str) -> Listed:
        self.invalidate(name)
        try:
            file = self._file(name)
        except ConfigError as error:
            return Listed(name=name, fault="; ".join(error.faults))
        try:
            return Listed(name=name, description=file.description, stack=await self._resolve(name))
        except ConfigError as error:
            return Listed(name=name, description=file.description, fault="; ".join(error.faults))

    def _exists(self, name: str) -> bool:
        return is_stack_name(name) and (self._folder / name / FILE).is_file()

    async def _resolve(self, name: str) -> Stack:
        """The stack; raises `ConfigError` with what keeps it from being used."""
        file = self._file(name)
        if file.runtime not in self._runtimes:
            raise ConfigError(f'runtime: "{file.runtime}" is not among engine.runtimes; add it there')
        _check_supported(file)
        return _stack(name, file, await self._image(name))

    def _file(self, name: str) -> StackFile:
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

    async def _image(self, name: str) -> Image:
        """The stack's current image. Raises `ConfigError` when there is none."""
        now = self._clock()
        at, image = self._found.get(name, (0.0, None))
        if image is None or now - at >= KEPT.total_seconds():
            self.invalidate(name)
            image = await self._images.inspect(names.tagged(name, names.CURRENT))
            if image is None:
                raise ConfigError(f"its image is not built; run: runner stacks build {name}")
            self._found[name] = (now, image)
        return image


def _read(name: str, path: Path, stamp: tuple[int, int, int]) -> _Read:
    try:
        return _Read(stamp, read_stack_file(path))
    except ConfigError as error:
        log.error("stack file is broken", extra={"stack": name, "faults": list(error.faults)})  # noqa: TRY400
        return _Read(stamp, None, error.faults)


def _stack(name: str, file: StackFile, image: Image) -> Stack:
    """What file and image say together. An image that was not built by us has its own id for a revision."""
    uid, gid = file.numeric_user or _named_user(name, file, image)
    return Stack(
        name=name,
        revision=image.labels.get(names.REVISION) or image.id.removeprefix("sha256:")[:12],
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
        runtime=file.runtime,
        log_flood_kills=file.log_flood is LogFlood.KILL,
    )


def _check_supported(file: StackFile) -> None:
    """Refuse what jobs would silently go without. Raises `ConfigError`."""
    wanted = {
        "secrets": bool(file.secrets),
        'network: "egress"': file.network is Network.EGRESS,
        "allow": bool(file.allow),
    }
    if missing := [key for key, asked in wanted.items() if asked]:
        raise ConfigError(f"{', '.join(missing)}: this version does not support it yet; take it out")


def _named_user(name: str, file: StackFile, image: Image) -> tuple[int, int]:
    """The numbers that were found in the image when it was built; the engine could not mount a tmpfs for a name."""
    labels = image.labels
    if labels.get(names.USER) != file.user:
        raise ConfigError(f'user: "{file.user}" is not known of its image; run: runner stacks build {name}')
    return int(labels[names.UID]), int(labels[names.GID])

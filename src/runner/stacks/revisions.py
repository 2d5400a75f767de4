"""Which revisions of a stack this machine has, what is known of each, and which one is current.

::

    <folder>/<stack>/pointer.json             current and previous
    <folder>/<stack>/revisions/<revision>     what is known of it, as JSON
    <folder>/<stack>/used/<revision>          an empty file: when a job was last given it
    <folder>/<stack>/pin.json                 what the stack was last filled from, if it comes from a registry

Every file is replaced as a whole, by a rename. Why it is so: docs/decisions/0007-one-pointer.md.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runner.errors import ConfigError, RunnerError

_POINTER = "pointer.json"
_PIN = "pin.json"
_REVISIONS = "revisions"
_USED = "used"
_LOOK_AGAIN = 0.1

M = TypeVar("M", bound=BaseModel)


class RevisionError(RunnerError):
    """That revision cannot be used; the operator chooses another, or builds it again."""


class State(StrEnum):
    """What may be done with a revision."""

    TESTING = "testing"
    """It was made, and has not passed its smoke test yet."""
    READY = "ready"
    FAILED = "failed"
    """It did not pass its smoke test. No job gets it."""
    RETIRED = "retired"
    """It is about to be removed."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pointer(_Kept):
    """What jobs get that pin no revision, and what they got before."""

    current: str
    previous: str | None = None


class Inputs(_Kept):
    """What a revision was made from: SHA-256 of the files, the ids of the images that FROM names."""

    context: str
    dockerfile: str
    stack_file: str
    bases: Mapping[str, str] = Field(default_factory=dict)
    user: str


class Smoke(_Kept):
    """How a smoke test ended."""

    command: tuple[str, ...]
    outcome: str
    reason: str
    seconds: float | None
    tail: tuple[str, ...] = ()


class Pin(_Kept):
    """Which image of a registry the stack was last filled from, for which user, or what `fault` kept it from that."""

    image: str
    user: str
    fault: str | None = None


class Record(_Kept):
    """What is known of a revision. `image` is the image's id; `pulled` where in a registry it came from."""

    revision: str
    image: str
    state: State
    built: datetime
    inputs: Inputs | None = None
    pulled: str | None = None
    smoke: Smoke | None = None


class Ledger:
    """Reads and writes all that. Methods that write raise `ConfigError` when the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stacks(self) -> Sequence[str]:
        """The stacks of which something is known, installed or not."""
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir()) if self._folder.is_dir() else []

    def pointer(self, stack: str) -> Pointer | None:
        """The stack's pointer; None if it has none. Raises `ConfigError` for one that cannot be read."""
        return _read(self._folder / stack / _POINTER, Pointer)

    def point(self, stack: str, pointer: Pointer) -> None:
        """Replace the stack's pointer."""
        self._write(self._folder / stack / _POINTER, pointer)

    def pin(self, stack: str) -> Pin | None:
        """What the stack was last filled from; None if it never was. Raises `ConfigError` for what cannot be read."""
        return _read(self._folder / stack / _PIN, Pin)

    def pinned(self, stack: str, pin: Pin) -> None:
        """Note how the stack was filled, or why it was not."""
        self._write(self._folder / stack / _PIN, pin)

    def record(self, stack: str, revision: str) -> Record | None:
        """What is known of the revision; None if nothing. Raises `ConfigError` for what cannot be read."""
        return _read(self._folder / stack / _REVISIONS / revision, Record)

    def records(self, stack: str) -> Sequence[Record]:
        """Those of all revisions of the stack, oldest first. What cannot be read is left out: see `faults`."""
        found = []
        for path in self._kept(stack):
            with suppress(ConfigError):
                found.append(_read(path, Record))
        return sorted(filter(None, found), key=lambda record: record.built)

    def faults(self, stack: str) -> Sequence[str]:
        """What is kept of the stack and cannot be read, a sentence each."""
        found: list[str] = []
        kept: list[tuple[Path, type[BaseModel]]] = [(self._folder / stack / _POINTER, Pointer)]
        for path, model in kept + [(path, Record) for path in self._kept(stack)]:
            try:
                _read(path, model)
            except ConfigError as error:
                found += error.faults
        return found

    def _kept(self, stack: str) -> Sequence[Path]:
        folder = self._folder / stack / _REVISIONS
        return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []

    def write(self, stack: str, record: Record) -> None:
        """Note what is known of a revision, in place of what was."""
        self._write(self._folder / stack / _REVISIONS / record.revision, record)

    def forget(self, stack: str, revision: str) -> None:
        """Nothing is known of the revision any more."""
        (self._folder / stack / _REVISIONS / revision).unlink(missing_ok=True)
        self.unmark(stack, revision)

    def use(self, stack: str, revision: str) -> None:
        """Note that a job is being given the revision now. What is being removed meanwhile, `record` tells afterwards.

        A mark that cannot be made is left out: it protects the revision from `prune`, and the job comes first.
        """
        mark = self._folder / stack / _USED / revision
        with suppress(OSError):
            self._make(mark.parent)
            descriptor = self._open(mark)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def used(self, stack: str, revision: str) -> float:
        """When a job was last given the revision (Unix time), 0 if never."""
        try:
            return (self._folder / stack / _USED / revision).stat().st_mtime
        except OSError:
            return 0.0

    def unmark(self, stack: str, revision: str) -> None:
        """Forget when a job was last given the revision."""
        (self._folder / stack / _USED / revision).unlink(missing_ok=True)

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Held for a moment, while what is known is read to be changed; it is waited for."""
        descriptor = self._open_lock(".lock")
        try:
            await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def removal(self) -> AsyncIterator[None]:
        """Held while an image is being removed, and by whoever takes one up that may be; it is waited for."""
        async with self._waited_for(".removal"):
            yield

    @asynccontextmanager
    async def alone(self, digest: str) -> AsyncIterator[None]:
        """Held while an image is pulled, by one process of this machine and one task in it; it is waited for."""
        async with self._waited_for(f".pull-{digest.replace(':', '-')}"):
            yield

    @asynccontextmanager
    async def _waited_for(self, name: str) -> AsyncIterator[None]:
        descriptor = self._open_lock(name)
        try:
            while not _locked(descriptor):  # noqa: ASYNC110 - the kernel tells nobody but a thread that blocks
                await asyncio.sleep(_LOOK_AGAIN)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        with self._faults():
            self._make(self._folder)
            return self._open(self._folder / name)

    def _write(self, path: Path, content: BaseModel) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        with self._faults():
            self._make(path.parent)
            try:
                with draft.open("x", encoding="utf-8") as file:
                    file.write(content.model_dump_json(indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                self._give(draft)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """Make a folder, down from `worker.state_dir`."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._give(folder)

    def _open(self, path: Path) -> int:
        """Open a file of ours, made if need be. The folder belongs to the daemon: root follows no link in it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._give(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _give(self, path: Path | int) -> None:
        """What root makes here belongs to the daemon, which has to read and mark it."""
        if os.geteuid() == 0:
            owner = self._folder.parent.stat()
            if isinstance(path, int):
                os.fchown(path, owner.st_uid, owner.st_gid)
            else:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"worker.state_dir: {self._folder} cannot be written ({error.strerror}); run this as the daemon's user"
            ) from error


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; it has to belong to the daemon's user") from None
    except ValidationError:
        raise ConfigError(f"{path}: is damaged; remove it, and build or use a revision again") from None

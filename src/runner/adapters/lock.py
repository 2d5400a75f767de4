"""The lock that says: this worker's state belongs to a process that lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import ConfigError

_LOCKS = Path("/proc/locks")


class WorkerLock:
    """`<state_dir>/lock`: held by `serve` for its life, and by `reap` while it removes what no `serve` owns.

    The kernel gives it back when its holder dies, however it dies.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock. Raises `ConfigError` when another process has it, or when the folder cannot be written."""
        descriptor = self._open()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise ConfigError(
                    f"worker.state_dir: {self._path.parent} is in use by the process {owner}; "
                    "end it first, or give this worker a folder of its own"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def held(self) -> bool:
        """Whether a process holds it now; told without trying, which could keep a daemon from starting."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return False
        holders = (line.split() for line in _LOCKS.read_text().splitlines())
        return any("FLOCK" in words and words[-3].rpartition(":")[2] == str(inode) for words in holders)

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"worker.state_dir: {self._path.parent} cannot be written ({error.strerror}); "
                "let the daemon's user own it, or name another folder"
            ) from error

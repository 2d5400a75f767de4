"""The lock that says: somebody is changing the networks and rules of this worker."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from runner.errors import HostError

_PATIENCE = timedelta(seconds=60)
_AGAIN = timedelta(milliseconds=100)


class NetworkLock:
    """`<state_dir>/network.lock`: held by each `network apply` and `remove`, the timer's too.

    So none meets half a change of another's. The kernel gives it back when its holder dies, however it dies.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "network.lock"

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lock, waiting for it. Raises `HostError` when it stays taken, or the folder cannot be written."""
        descriptor = self._open()
        try:
            await self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The folder is the daemon's, and we are root: a link there is not followed.
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"{self._path} cannot be written: {error.strerror}") from error

    async def _take(self, descriptor: int) -> None:
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                while True:
                    if _taken(descriptor):
                        return
                    await asyncio.sleep(_AGAIN.total_seconds())
        except TimeoutError:
            limit = f"{_PATIENCE.total_seconds():.0f} s"
            raise HostError(
                f"another runner network apply or remove has held {self._path} for {limit}; let it end"
            ) from None


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

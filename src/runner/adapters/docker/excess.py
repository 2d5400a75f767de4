"""What a job writes to disks that no file system bounds for it: its two files, and a container that it may write to."""

import asyncio
import os
from pathlib import Path

from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.files import JobFolder
from runner.errors import EngineError
from runner.job import Bytes, Limits, Stack
from runner.units import format_size

_FILE_MOST = Bytes(4 * 2**20)
"""Far more than the files may hold: a job whose result is only too long is to hear that instead."""


def free(disk: os.statvfs_result) -> Bytes:
    """What anybody may still write to a file system."""
    return Bytes(disk.f_bavail * disk.f_frsize)


class Excess:
    """Looks at one job's container. `reserve` is what has to stay free on the engine's disk."""

    def __init__(
        self, *, client: EngineClient, container: str, folder: JobFolder, stack: Stack, limits: Limits, reserve: Bytes
    ) -> None:
        self._client = client
        self._container = container
        self._folder = folder
        self._writable = not stack.read_only
        self._most = Bytes(limits.disk + limits.scratch)
        self._reserve = reserve
        self._root: Path | None = None

    @property
    def possible(self) -> bool:
        """Whether there may be too much of anything: all that one can tell at once, hundreds of times a second."""
        return self._writable or (
            any(size > _FILE_MOST for size in self._folder.taken().values()) and self._folder.on_disk
        )

    async def found(self) -> str | None:
        """What there is too much of, in words; None if nothing is, or nobody can tell for now."""
        for name, size in self._folder.taken().items():
            if size > _FILE_MOST and self._folder.on_disk:
                await asyncio.to_thread(self._folder.trim)  # its neighbours need it before the job is gone
                return f"/job/{name} took {format_size(size)} of its worker's disk, which is no place for large results"
        if not self._writable:
            return None
        try:
            return await self._in_layer()
        except (EngineError, OSError):
            return None

    async def _in_layer(self) -> str | None:
        size = await self._client.layer_size(self._container)
        if size > self._most:
            limit = format_size(self._most)
            return f"wrote {format_size(size)} into its container, more than limits.disk and limits.scratch ({limit})"
        # The engine does not count what is deleted and still open, nor how many files there are.
        if self._root is None:
            self._root = (await self._client.info()).root
        if (unused := free(os.statvfs(self._root))) < self._reserve:
            left = f"the engine's disk had {format_size(unused)} left, less than capacity.disk_free"
            return f"{left}, and its container may write there without a bound (read_only = false)"
        return None

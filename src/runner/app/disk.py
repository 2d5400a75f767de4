"""The disks that jobs and the daemon share: how much is free, and how much of it scratch may take."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runner.adapters.docker.engine import OpenEngine
from runner.adapters.docker.excess import free
from runner.adapters.docker.results import why_on_disk
from runner.errors import EngineError
from runner.job import Bytes
from runner.settings import Settings
from runner.units import format_size

log = logging.getLogger(__name__)

_FEWEST_FILES = 10_000
"""With fewer inodes left a disk is full; one that does not count them has no such bound."""


RESULTS_REMEDY = "install deploy/systemd/var-lib-runner-results.mount (docs/disk.md)"


def disk_of(folder: Path) -> os.statvfs_result:
    """The file system that a folder is on, or will be made on. Raises `OSError`."""
    return os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))


def total(disk: os.statvfs_result) -> Bytes:
    """Its size."""
    return Bytes(disk.f_blocks * disk.f_frsize)


def shortage(disk: os.statvfs_result, reserve: Bytes) -> str | None:
    """What there is too little of: bytes, or files."""
    if (left := free(disk)) < reserve:
        return f"{format_size(left)} are free, less than capacity.disk_free ({format_size(reserve)})"
    if disk.f_files and disk.f_favail < _FEWEST_FILES:
        return f"{disk.f_favail} more files are possible, fewer than {_FEWEST_FILES}"
    return None


def engine_is_here(url: str, root: Path) -> bool:
    """Whether the engine's own folder is one of this machine's, and may be looked at."""
    try:
        os.statvfs(root)
    except OSError:
        return False
    return urlsplit(url).scheme == "unix"


@dataclass(slots=True)
class Disks:
    """The disks under `worker.state_dir` and, once `look_for_engine` has found it, under the engine's own folder."""

    settings: Settings
    house: OpenEngine
    engine_root: Path | None = None

    async def look_for_engine(self) -> None:
        """Learn where the engine keeps its containers; where we cannot see that, its disk is not watched."""
        try:
            root = (await self.house.client.info()).root
        except EngineError as error:
            log.warning("the engine's disk is not watched", extra={"problem": str(error)})
            return
        if engine_is_here(self.settings.engine.url, root):
            self.engine_root = root
        else:
            log.info("the engine's disk is not on this machine, and is not watched")

    async def warn_of_scratch(self) -> None:
        """Say so where jobs may ask for scratch and none can be made; they are passed on."""
        if self.settings.limits.max.scratch and (fault := await self.house.scratch.fault()):
            log.error("no scratch disk can be made", extra={"problem": fault})

    def warn_of_results(self) -> None:
        """Say so where only a look once a second bounds what jobs write to their output and progress."""
        if problem := why_on_disk(self.settings.worker.state_dir):
            told = {"problem": problem, "remedy": RESULTS_REMEDY}
            log.warning("the files that jobs write results to are watched, not bounded", extra=told)

    def problem(self) -> str | None:
        """Why no job is to be taken for now."""
        reserve, state_dir = self.settings.capacity.disk_free, self.settings.worker.state_dir
        try:
            if lack := shortage(disk_of(state_dir), reserve):
                return f"on the disk of worker.state_dir {lack}"
            if self.engine_root and (lack := shortage(disk_of(self.engine_root), reserve)):
                return f"on the engine's disk ({self.engine_root}) {lack}"
        except OSError as error:
            return f"a disk cannot be looked at: {error}"
        return None

    def room(self) -> Bytes:
        """How much disk the scratch of all jobs may take together; what they have is taken from `free` already."""
        try:
            unused = free(disk_of(self.settings.worker.state_dir)) - self.settings.capacity.disk_free
        except OSError:
            unused = 0
        return Bytes(max(0, unused) + self.house.scratch.held)

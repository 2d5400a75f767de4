"""The disk that packages are put on, which others need, too."""

import os
from dataclasses import dataclass
from pathlib import Path

from runner.errors import DeferredError
from runner.units import format_size

_FEWEST_FILES = 10_000
"""With fewer inodes left a disk is full; one that does not count them has no such bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The disk under a folder; `reserve` has the bytes of it that are left free."""

    folder: Path
    reserve: int

    def check(self) -> None:
        """Raises `DeferredError` when no more may be written, `OSError` when that cannot be known."""
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self.reserve:
            reserve = format_size(self.reserve)
            raise DeferredError(
                f"the job's code would leave less than {reserve} of this worker's disk free (capacity.disk_free)"
            )
        if disk.f_files and disk.f_favail < _FEWEST_FILES:
            raise DeferredError("the job's code would leave too few files to this worker's disk")

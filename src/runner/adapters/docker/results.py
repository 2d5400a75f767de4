"""The place in memory for what jobs write to their output and progress, if this machine has one."""

import os
from collections.abc import Iterator
from pathlib import Path

_FOLDER = "results"
_MOUNTS = Path("/proc/self/mountinfo")
_FIELD_PLACE = 4


def place_in_memory(state_dir: Path, *names: str) -> Path | None:
    """A folder in that place; None where there is none that serves, and `why_on_disk` says so."""
    return None if why_on_disk(state_dir) else _place(state_dir).joinpath(*names)


def why_on_disk(state_dir: Path) -> str | None:
    """Why jobs write to the disk instead, where no memory limit bounds them; None if they do not."""
    place = _place(state_dir)
    kinds = list(_mounted_at(place))
    if not kinds or kinds[-1] != "tmpfs":
        return f"no tmpfs is mounted at {place}"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"the tmpfs at {place} cannot be written by this user"
    if os.statvfs(place).f_files:
        # A file's attributes count as inodes there, and any job may give some to its own.
        return f"the tmpfs at {place} has a bound to its inodes, which one job could use up for all"
    return None


def _place(state_dir: Path) -> Path:
    return state_dir.resolve() / _FOLDER


def _mounted_at(place: Path) -> Iterator[str]:
    """The kinds of the file systems that are mounted there, the one that is seen last; see proc(5)."""
    escaped = os.fsencode(place)
    for character in b"\\ \t\n":  # the backslash first
        escaped = escaped.replace(bytes([character]), b"\\%03o" % character)
    for line in _MOUNTS.read_bytes().split(b"\n"):
        before, _, after = line.partition(b" - ")
        if before.split(b" ")[_FIELD_PLACE:][:1] == [escaped]:
            yield after.split(b" ")[0].decode()

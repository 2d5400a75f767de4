"""What samples say: the median, and how sure it is. And what processes cost."""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

_RESAMPLES = 2000
_TICKS = os.sysconf("SC_CLK_TCK")
_ACCEPTS = "00010000"
"""The flag of a socket that listens, in `/proc/net/unix`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A median with the interval that holds it in 95 of 100 repetitions (bootstrap), and the tail."""

    samples: int
    median: float
    low: float
    high: float
    p95: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f} to {self.high:.1f}), p95 {self.p95:.1f}, n={self.samples}"


def figure(samples: Sequence[float]) -> Figure:
    """The figure for samples, of which there have to be two at least."""
    source = random.Random(1)
    medians = sorted(median(source.choices(samples, k=len(samples))) for _ in range(_RESAMPLES))
    return Figure(
        samples=len(samples),
        median=median(samples),
        low=medians[_RESAMPLES // 40],
        high=medians[-_RESAMPLES // 40],
        p95=quantiles(samples, n=20, method="inclusive")[-1],
    )


def tree(pid: int) -> list[int]:
    """A process and all that came from it, as they are now."""
    found, children = [pid], _children()
    for each in found:
        found.extend(children.get(each, []))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes, and their children that have ended, have used so far (proc(5), `stat`)."""
    return sum(_ticks(pid) for pid in pids) / _TICKS


def pss_bytes(pids: Iterable[int]) -> int:
    """The memory of these processes together, what they share counted once (proc(5), `smaps_rollup`)."""
    return sum(_pss(pid) for pid in pids)


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if fields := _fields(int(path.parent.name)):
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return children


def _fields(pid: int) -> list[str]:
    """From `state` on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ticks(pid: int) -> int:
    return sum(int(ticks) for ticks in _fields(pid)[11:15])


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def resident_bytes(pid: int) -> int:
    """The resident memory of one process (proc(5), `status`)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def listener(socket: Path) -> int | None:
    """The process that listens on a Unix socket; None when nobody is found, or we may not look."""
    inodes = {
        words[6]
        for words in map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:])
        if words[7:] == [str(socket)] and words[3] == _ACCEPTS
    }
    links = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(entry.readlink()) in links for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    return None

"""What the host's cgroup files tell of a container, for when its init cannot."""

from pathlib import Path

from runner.job import Usage

ROOT = Path("/sys/fs/cgroup")
_PLACES = ("system.slice/docker-{}.scope", "docker/{}")
"""By the engine's cgroup driver: systemd, or plain folders."""
_CPU_V1 = ("cpuacct", "cpu,cpuacct")


def usage(container: str, root: Path = ROOT) -> Usage:
    """CPU seconds, with those of the container's own start, and peak memory; None where there is no such file any more.

    The kernel removes a container's files with its last process. Version 2 tells no peak before Linux 5.19.
    """
    return Usage(cpu_seconds=_cpu_seconds(container, root), memory_peak_bytes=_memory_peak(container, root))


def _cpu_seconds(container: str, root: Path) -> float | None:
    for line in _read(container, root, "cpu.stat").splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    for controller in _CPU_V1:
        if text := _read(container, root / controller, "cpuacct.usage"):
            return int(text) / 1e9
    return None


def _memory_peak(container: str, root: Path) -> int | None:
    text = _read(container, root, "memory.peak") or _read(container, root / "memory", "memory.max_usage_in_bytes")
    return int(text) if text else None


def _read(container: str, root: Path, name: str) -> str:
    for place in _PLACES:
        try:
            return (root / place.format(container) / name).read_text()
        except OSError:
            continue
    return ""

"""The processes that stand between containerd and each container."""

import os
import signal
from pathlib import Path

from tests.e2e.daemon import eventually


def shim_of(container: str) -> int:
    """The pid of that container's shim."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"containerd-shim" in words[0] and container.encode() in words:
            return int(path.parent.name)
    raise AssertionError("the container has no shim")


async def stop_shim(pid: int) -> None:
    """Return when every thread of it stands still; the signal alone says nothing about when."""
    os.kill(pid, signal.SIGSTOP)

    async def still() -> bool:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    await eventually(still, "the shim stands still")

"""The processes that stand between containerd and each container."""

from pathlib import Path

from scripts.devservices.process import Process

_SHORT_LIVED = {b"start", b"delete"}


def shim_of(container: str) -> int:
    """The pid of that container's shim."""
    if (pid := _find(container)) is None:
        raise AssertionError("the container has no shim")
    return pid


def _find(container: str) -> int | None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        # It comes of a short-lived one of the same name, and so does its end.
        if b"containerd-shim" in words[0] and container.encode() in words and not _SHORT_LIVED & set(words):
            return int(path.parent.name)
    return None


async def stop_shim(pid: int) -> None:
    """Return when every thread of it stands still."""
    if (shim := Process.find(pid)) is None:
        raise AssertionError("the shim is gone")
    await shim.suspend()

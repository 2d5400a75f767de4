"""The processes that stand between containerd and each container."""

from pathlib import Path


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

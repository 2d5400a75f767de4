"""The real services that tests talk to.

Tests share one broker and one engine, by URL only. A test that breaks or configures a service starts its own:
`async with Broker(tmp_path / "broker", conf=["consumer_timeout = 60000"]) as broker: …`, likewise `Engine`.
"""

import asyncio
import fcntl
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiodocker
from scripts.devservices import Broker, Engine
from scripts.devservices.shared import borrowed

__all__ = ["Broker", "Endpoint", "Engine", "build_busybox", "build_image", "endpoint"]

BUSYBOX_TAG = "runner-tests/busybox:latest"

_BUILDING = Path(tempfile.gettempdir(), f"runner-tests-{os.getuid()}.lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A service that others use, too: it may be talked to, never stopped."""

    url: str


@asynccontextmanager
async def endpoint(variable: str, service: Broker | Engine) -> AsyncIterator[Endpoint]:
    """The service that the environment names, else this working copy's, started for the session unless it runs."""
    if url := os.environ.get(variable):
        yield Endpoint(url=url)
        return
    async with borrowed(service) as url:
        yield Endpoint(url=url)


async def build_busybox(url: str) -> str:
    """Build an image of nothing but busybox on the engine; returns its id, `sha256:…`."""
    return await build_image(url, _busybox_context(), BUSYBOX_TAG)


async def build_image(url: str, context: bytes, tag: str) -> str:
    """Build an image from a tar, under that tag; its id, which is the same for all who build the same on that engine.

    One at a time on this machine: of several builds at once none finds another one's in the cache, each makes an image
    with an id of its own, and the tags of the stacks, which all tests share, would go to and fro between them.
    """
    with await asyncio.to_thread(_alone):
        async with aiodocker.Docker(url=url) as docker:
            await docker.images.build(fileobj=io.BytesIO(context), encoding="identity", tag=tag)
            image = await docker.images.inspect(tag)
            return str(image["Id"])


def _alone() -> IO[str]:
    """A lock that nobody else has until it is closed."""
    lock = _BUILDING.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _busybox_context() -> bytes:
    busybox = shutil.which("busybox", path="/bin:/usr/bin") or "busybox"
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(busybox, "root/bin/busybox", filter=_ours)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"root/bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        _add_text(tar, "root/etc/passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        _add_text(tar, "root/etc/group", "root:x:0:\nnogroup:x:65534:\n")
        _add_text(tar, "Dockerfile", "FROM scratch\nCOPY root/ /\nENV PATH=/bin\n")
    return buffer.getvalue()


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(text.encode())
    tar.addfile(entry, io.BytesIO(text.encode()))


def _ours(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    # The same bytes on every run, so that the engine finds the image in its cache.
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755
    return entry

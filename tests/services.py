"""The real services that tests talk to.

Tests share one broker and one engine, by URL only. A test that breaks or configures a service starts its own:
`async with Broker(tmp_path / "broker", conf=["consumer_timeout = 60000"]) as broker: …`, likewise `Engine`.
"""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiodocker
from scripts.devservices import Broker, Engine
from scripts.devservices.shared import borrowed

__all__ = ["Broker", "Endpoint", "Engine", "build_busybox", "endpoint"]

BUSYBOX_TAG = "runner-tests/busybox:latest"


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
    async with aiodocker.Docker(url=url) as docker:
        context = io.BytesIO(_busybox_context())
        await docker.images.build(fileobj=context, encoding="identity", tag=BUSYBOX_TAG)
        image = await docker.images.inspect(BUSYBOX_TAG)
        return str(image["Id"])


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

"""A registry that serves small images over HTTP, as engines ask for them, and counts who asks.

Of the API (distribution, version 2) it has what a pull needs.
"""

import asyncio
import base64
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(slots=True)
class ImageRegistry:
    """Has what `put` made. A blob in `stalled` begins and does not go on; a `password` is that of `robot`."""

    address: str = ""
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    stalled: set[str] = field(default_factory=set)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, nobody gets a manifest."""
    password: str | None = None

    def put(self, version: str) -> tuple[str, str]:
        """Have an image with busybox and that version in `/version`; its digest, and that of its layer."""
        tar = _layer(version)
        layer = gzip.compress(tar, compresslevel=1, mtime=0)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
            }
        ).encode()
        for blob in (layer, config):
            self.blobs[digest_of(blob)] = blob
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": {"mediaType": _CONFIG, "size": len(config), "digest": digest_of(config)},
                "layers": [{"mediaType": _LAYER, "size": len(layer), "digest": digest_of(layer)}],
            }
        ).encode()
        self.manifests[digest_of(manifest)] = manifest
        return digest_of(manifest), digest_of(layer)

    async def version(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({})

    async def manifest(self, request: web.Request) -> web.Response:
        self._check(request)
        await self.open.wait()
        digest = request.match_info["digest"]
        if digest not in self.manifests:
            return web.json_response(
                {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}, status=404
            )
        return web.Response(
            body=self.manifests[digest], content_type=_MANIFEST, headers={"Docker-Content-Digest": digest}
        )

    async def blob(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        digest = request.match_info["digest"]
        self.asked[digest] += 1
        if digest not in self.blobs:
            raise web.HTTPNotFound
        if digest not in self.stalled:
            return web.Response(body=self.blobs[digest])
        response = web.StreamResponse(headers={"Content-Length": str(len(self.blobs[digest]))})
        await response.prepare(request)
        await response.write(self.blobs[digest][:1000])
        await asyncio.Event().wait()
        return response

    def _check(self, request: web.Request) -> None:
        if self.password is not None:
            wanted = base64.b64encode(f"robot:{self.password}".encode()).decode()
            if request.headers.get("Authorization") != f"Basic {wanted}":
                raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="images"'})


@asynccontextmanager
async def image_registry() -> AsyncIterator[ImageRegistry]:
    """A registry on 127.0.0.1, to which engines speak without TLS."""
    registry = ImageRegistry()
    registry.open.set()
    app = web.Application()
    app.router.add_get("/v2/", registry.version)
    app.router.add_get("/v2/{name:.+}/manifests/{digest}", registry.manifest)
    app.router.add_get("/v2/{name:.+}/blobs/{digest}", registry.blob)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    registry.address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


def digest_of(content: bytes) -> str:
    """As registries name content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _layer(version: str) -> bytes:
    busybox = shutil.which("busybox")
    assert busybox is not None
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        _add(tar, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        for applet in ("sh", "cat", "true", "false", "sleep"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        _add(tar, "version", version.encode(), 0o644)
        _add(tar, "etc/passwd", b"reader:x:1234:1235::/:/bin/sh\n", 0o644)
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))

"""Whether code packages can be had from where the operator allows it, for `runner check`."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from runner.adapters.packages.addresses import CheckedResolver, is_address
from runner.app.finding import Finding, Remedy
from runner.app.policy import sources_of
from runner.errors import RejectedError
from runner.settings import Settings
from runner.sources import Source

_NAME = "code"
_PATIENCE = 5.0


async def look_at_sources(settings: Settings) -> AsyncIterator[Finding]:
    """A finding for each folder of `code.allow`. Nothing is asked of a server but its name's address."""
    sources = sources_of(settings)
    if not sources:
        yield Finding(name=_NAME, detail="packages come in messages alone; code.allow names no other place")
    for source in sources:
        yield _folder(source) if source.scheme == "file" else await _server(source, settings)


def _folder(source: Source) -> Finding:
    path = Path(source.plain_path)
    if path.is_dir() and os.access(path, os.R_OK | os.X_OK):
        return Finding(name=_NAME, detail=str(source))
    detail = f"code.allow: {path} is no folder that this user can read; mount it, or take it out"
    return Finding(name=_NAME, detail=detail, remedy=Remedy.CONFIG)


async def _server(source: Source, settings: Settings) -> Finding:
    if is_address(source.host):
        return Finding(name=_NAME, detail=f"{source}, an address that was named itself")
    resolver = CheckedResolver(settings.network.private)
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await resolver.resolve(source.host, source.port or 0, socket.AF_UNSPEC)
    except RejectedError as error:
        detail = f"code.allow: {error.reason.removeprefix('code.url: ')}"
        return Finding(name=_NAME, detail=detail, remedy=Remedy.CONFIG)
    except OSError as error:
        detail = f"code.allow: {source.host} has no address ({error.strerror or error}); is the name right?"
        return Finding(name=_NAME, detail=detail, remedy=Remedy.SERVICE)
    return Finding(name=_NAME, detail=f"{source} at {', '.join(sorted({one['host'] for one in found}))}")

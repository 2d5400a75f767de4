"""Fetches a package's archive from where the operator allows it."""

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from runner import __version__
from runner.adapters.packages.addresses import CheckedResolver
from runner.adapters.packages.download import Download
from runner.adapters.packages.local import copy
from runner.adapters.packages.threads import Threads
from runner.errors import DeferredError, RejectedError
from runner.sources import Source, is_allowed, parse_source
from runner.units import format_duration

_CHUNK = 1 << 18
_HOPS_MAX = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 425, 429})
"""Refusals that are not the last word; those of 500 and above are not, either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server has, and after which pauses it is asked again."""

    connect: timedelta = timedelta(seconds=10)
    silence: timedelta = timedelta(seconds=30)
    total: timedelta = timedelta(minutes=10)
    pauses: tuple[timedelta, ...] = (timedelta(seconds=1), timedelta(seconds=3))


class _Unavailable(Exception):
    """The server may do better the next time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches from `folders` alone. `private` has the private ranges that names may lead to, `most` bounds a file."""

    folders: tuple[Source, ...]
    private: Collection[IPv4Network]
    most: int
    threads: Threads
    patience: Patience = Patience()

    async def fetch(self, url: str, sha256: str, path: Path) -> None:
        """Put the archive at `url` into a file.

        Raises `RejectedError` when it cannot be had, is too long, or is not the one that was promised; `DeferredError`
        when its server does not answer; `OSError` when our disk fails us.
        """
        source = parse_source(url)
        self._check(source, f"{source} is")
        if source.scheme == "file":
            with Download(path, source=source, sha256=sha256, most=self.most) as download:
                await self.threads.run(partial(copy, source, self.folders, download))
                download.finish()
            return
        try:
            async with asyncio.timeout(self.patience.total.total_seconds()):
                await self._persist(source, sha256, path)
        except TimeoutError:
            limit = format_duration(self.patience.total)
            raise DeferredError(f"the code at {source} was not here within {limit}") from None

    async def _persist(self, source: Source, sha256: str, path: Path) -> None:
        for pause in (*self.patience.pauses, None):
            try:
                with Download(path, source=source, sha256=sha256, most=self.most) as download:
                    await self._get(source, download)
                    download.finish()
            except (_Unavailable, aiohttp.ClientError) as error:
                if pause is None:
                    told = str(error) or type(error).__name__
                    raise DeferredError(f"the code at {source} cannot be fetched: {told}") from error
                await asyncio.sleep(pause.total_seconds())
            else:
                return

    async def _get(self, source: Source, download: Download) -> None:
        """Ask for it, and follow where we are sent, as long as that is allowed."""
        # Read anew each time: who is trusted changes while the daemon runs.
        trusted = await asyncio.to_thread(ssl.create_default_context)
        async with self._session(trusted) as session:
            for _ in range(_HOPS_MAX + 1):
                async with session.get(_address(source), allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        _check_status(source, response.status)
                        await self._receive(response, download)
                        return
                    source = self._sent_on(source, response.headers.get("Location", ""))
        raise RejectedError(f"code.url: it is sent on more than {_HOPS_MAX} times, the last time to {source}")

    def _session(self, trusted: ssl.SSLContext) -> aiohttp.ClientSession:
        patience = self.patience
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=CheckedResolver(self.private), use_dns_cache=False, ssl=trusted),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=patience.connect.total_seconds(), sock_read=patience.silence.total_seconds()
            ),
            # The checksum is that of the archive as it lies there.
            headers={"Accept-Encoding": "identity", "User-Agent": f"runner/{__version__}"},
            auto_decompress=False,
        )

    async def _receive(self, response: aiohttp.ClientResponse, download: Download) -> None:
        download.expect(response.content_length)
        async for chunk in response.content.iter_chunked(_CHUNK):
            await asyncio.to_thread(download.write, chunk)

    def _sent_on(self, source: Source, location: str) -> Source:
        try:
            target = parse_source(urljoin(str(_address(source)), location))
        except ValueError as error:
            raise RejectedError(f"code.url: {source} sends us on to an address that {error}") from None
        self._check(target, f"{source} sends us on to {target}, which is")
        if target.scheme == "file":
            raise RejectedError(f"code.url: {source} sends us on to {target}, a file of our own")
        return target

    def _check(self, source: Source, what: str) -> None:
        if not is_allowed(source, self.folders):
            raise RejectedError(f"code.url: {what} not where packages may come from (code.allow)")


def _address(source: Source) -> URL:
    """Made from the parts that were checked, so that nobody reads it in another way."""
    return URL.build(
        scheme=source.scheme,
        host=source.host,
        port=source.port,
        path=source.path,
        query_string=source.query,
        encoded=True,
    )


def _check_status(source: Source, status: int) -> None:
    if status == HTTPStatus.OK:
        return
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _LATER:
        raise _Unavailable(f"its server answers {status} ({phrase})")
    raise RejectedError(f"code.url: the server of {source} answers {status} ({phrase})")

"""Fetches a package's archive from where the operator allows it."""

import asyncio
import ssl
from collections.abc import Callable, Collection
from concurrent.futures import Executor
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
from runner.adapters.packages.room import Room
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
    """Fetches from `folders` alone. `private` has the private ranges that names may lead to, `most` bounds a file.

    `copies` read what lies in folders of this machine, which may be a server's that hangs; `files` are threads for our
    own disk.
    """

    folders: tuple[Source, ...]
    private: Collection[IPv4Network]
    most: int
    room: Room
    copies: Threads
    files: Executor
    patience: Patience = Patience()

    async def fetch(self, url: str, sha256: str, path: Path) -> None:
        """Put the archive at `url` into a file.

        Raises `RejectedError` when it cannot be had, is too long, or is not the one that was promised; `DeferredError`
        when its server does not answer, or our disk has no room for it; `OSError` when our disk fails us.
        """
        source = parse_source(url)
        self._check(source, f"{source} is")
        download = partial(Download, path, source=source, sha256=sha256, most=self.most, check_room=self.room.check)
        way = self._copy if source.scheme == "file" else self._persist
        try:
            async with asyncio.timeout(self.patience.total.total_seconds()):
                await way(source, download)
        except TimeoutError:
            limit = format_duration(self.patience.total)
            raise DeferredError(f"the code at {source} was not here within {limit}") from None

    async def _copy(self, source: Source, begin: Callable[[], Download]) -> None:
        folder = next(folder for folder in self.folders if folder.holds(source))
        with begin() as download:
            await self.copies.run(partial(copy, source, folder, download), owner=str(folder))
            download.finish()

    async def _persist(self, source: Source, begin: Callable[[], Download]) -> None:
        for pause in (*self.patience.pauses, None):
            try:
                with begin() as download:
                    await self._get(source, download)
                    download.finish()
            except (_Unavailable, aiohttp.ClientError) as error:
                if pause is None:
                    # What aiohttp raised has the url with its query, and is not to be shown by any traceback.
                    raise DeferredError(f"the code at {source} cannot be fetched: {_told(error)}") from None
                await asyncio.sleep(pause.total_seconds())
            else:
                return

    async def _get(self, source: Source, download: Download) -> None:
        """Ask for it, and follow where we are sent, as long as that is allowed."""
        # Read anew each time: who is trusted changes while the daemon runs.
        trusted = await asyncio.get_running_loop().run_in_executor(self.files, ssl.create_default_context)
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
                total=None,
                connect=patience.connect.total_seconds(),  # with the look-up of its name
                sock_read=patience.silence.total_seconds(),
            ),
            # The checksum is that of the archive as it lies there.
            headers={"Accept-Encoding": "identity", "User-Agent": f"runner/{__version__}"},
            auto_decompress=False,
        )

    async def _receive(self, response: aiohttp.ClientResponse, download: Download) -> None:
        download.expect(response.content_length)
        async for chunk in response.content.iter_chunked(_CHUNK):
            await asyncio.get_running_loop().run_in_executor(self.files, download.write, chunk)

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


def _told(error: _Unavailable | aiohttp.ClientError) -> str:
    """What went wrong, without what aiohttp says of the url: its query may be a secret."""
    if isinstance(error, aiohttp.ServerTimeoutError):
        return "its server did not answer in time"
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message or type(error).__name__
    shown = (_Unavailable, aiohttp.ClientOSError, aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)
    return (isinstance(error, shown) and str(error)) or type(error).__name__


def _check_status(source: Source, status: int) -> None:
    if status == HTTPStatus.OK:
        return
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _LATER:
        raise _Unavailable(f"its server answers {status} ({phrase})")
    raise RejectedError(f"code.url: the server of {source} answers {status} ({phrase})")

"""The code that jobs bring along: fetched once, unpacked once, kept for the next job of the same tenant."""

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from io import BytesIO
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from runner.adapters.packages.archive import unpack
from runner.adapters.packages.cache import Cache, Package
from runner.adapters.packages.fetch import Fetcher, Patience
from runner.adapters.packages.observer import Arrival, PackageObserver
from runner.adapters.packages.room import Room
from runner.adapters.packages.threads import Threads
from runner.adapters.packages.tree import Extent, GoOn
from runner.adapters.packages.turns import Turns
from runner.errors import DeferredError, RejectedError
from runner.job import InlineCode, Job, LinkedCode
from runner.ports import Unpacked
from runner.sources import Source
from runner.units import format_duration

log = logging.getLogger(__name__)

_UNPACK_MOST = timedelta(minutes=2)
_FLIGHTS, _FLIGHTS_EACH = 8, 4
"""So many packages are fetched at once, and so many of one tenant: each may take `max_bytes` twice while it comes."""
_FILE_THREADS = 4

Code = InlineCode | LinkedCode


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One package on its way, and the claims that wait for it."""

    task: asyncio.Task[Package]
    claims: set[str] = field(default_factory=set)


class PackageStore:
    """Implements `runner.ports.Packages`. Make one with `open_packages`."""

    def __init__(
        self, *, cache: Cache, fetcher: Fetcher, files: Executor, room: Room, most: int, observer: PackageObserver
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._files = files
        self._room = room
        self._threads = Threads()
        self._turns = Turns(most=_FLIGHTS, each=_FLIGHTS_EACH)
        self._most = most
        self._observer = observer
        self._flights: dict[tuple[str, Code], _Flight] = {}
        self._chores: set[asyncio.Task[Any]] = set()

    async def load(self, claims: Collection[str]) -> None:
        """Take over what our earlier life left; containers of these claims may still run. Raises `OSError`."""
        await asyncio.to_thread(self._cache.load, claims)
        self._tidy()

    async def hold(self, claim: str, job: Job) -> Unpacked:
        """A job's code; see `runner.ports.Packages`."""
        if job.code is None:
            raise AssertionError("a job without code needs no package")
        try:
            package, how = await self._package(claim, job.route.tenant, job.code)
            self._cache.hold(package, claim)
        except RejectedError:
            self._observer.package_arrived(Arrival.REJECTED)
            raise
        except DeferredError:
            self._observer.package_arrived(Arrival.DEFERRED)
            raise
        except OSError as error:
            self._observer.package_arrived(Arrival.DEFERRED)
            raise DeferredError(f"this worker cannot keep the job's code: {error.strerror or error}") from error
        self._observer.package_arrived(how)
        return Unpacked(folder=package.tree, entries=package.extent.entries)

    def release(self, claim: str) -> None:
        """The claim's container is gone; see `runner.ports.Packages`."""
        try:
            self._cache.release(claim)
        except OSError as error:
            self._observer.cleanup_failed()
            log.warning("a package was not let go of", extra={"claim": claim, "problem": str(error)})
        self._tidy()

    async def close(self) -> None:
        """End what is on its way; what was to be removed is left to the next start."""
        while self._chores:  # one that ends may leave something to be removed
            for chore in self._chores:
                chore.cancel()
            await asyncio.gather(*self._chores, return_exceptions=True)

    async def _package(self, claim: str, tenant: str, code: Code) -> tuple[Package, Arrival]:
        package = self._cache.find(tenant, _digest(code))
        if package is not None:
            return package, Arrival.CACHED
        flight = self._flights.get((tenant, code))
        if flight is None:
            flight = self._flights[tenant, code] = _Flight(task=self._own(self._fly(tenant, code)))
        flight.claims.add(claim)
        try:
            return await asyncio.shield(flight.task), Arrival.NEW
        finally:
            flight.claims.discard(claim)
            if not flight.claims:
                flight.task.cancel()  # done already, or nobody wants it any more
                self._end(tenant, code, flight)

    async def _fly(self, tenant: str, code: Code) -> Package:
        """Make a package, and keep it for all who wait before anything can throw it out."""
        flight = self._flights[tenant, code]
        try:
            # What came in the message takes no disk until it is unpacked, and need not wait for any server.
            async with nullcontext() if isinstance(code, InlineCode) else self._turns.turn(tenant):
                package = await self._make(tenant, code)
            for claim in flight.claims:
                self._cache.hold(package, claim)
        finally:
            self._end(tenant, code, flight)
        self._tidy()
        return package

    def _end(self, tenant: str, code: Code, flight: _Flight) -> None:
        if self._flights.get((tenant, code)) is flight:
            del self._flights[tenant, code]

    async def _make(self, tenant: str, code: Code) -> Package:
        began = asyncio.get_running_loop().time()
        folder = self._cache.work_folder()
        try:
            extent = await self._unpack(tenant, await self._archive(code, folder), folder)
            package = self._cache.add(folder, tenant, _digest(code), extent)
        finally:
            if folder.exists():
                self._own(self._remove(folder))
        seconds = asyncio.get_running_loop().time() - began
        facts = {"tenant": tenant, "sha256": _digest(code), "bytes": extent.size, "seconds": round(seconds, 3)}
        log.info("code package unpacked", extra=facts)
        return package

    async def _archive(self, code: Code, folder: Path) -> Path | bytes:
        """The archive: in a file, or where it is already."""
        if isinstance(code, InlineCode):
            return code.archive
        path = folder / "archive"
        await self._fetcher.fetch(code.url, code.sha256, path)
        return path

    async def _unpack(self, tenant: str, archive: Path | bytes, folder: Path) -> Extent:
        work = partial(_unpack, archive, self._cache.tree_of(folder), self._most, self._room)
        return await self._threads.run(work, owner=tenant)

    def _tidy(self) -> None:
        """Throw out what is too much, beside everything else."""
        try:
            for folder in self._cache.evict():
                self._own(self._remove(folder))
        except OSError as error:
            self._observer.cleanup_failed()
            log.warning("a package could not be thrown out", extra={"problem": str(error)})
        self._observer.packages_kept(self._cache.size)

    async def _remove(self, folder: Path) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._files, shutil.rmtree, folder)
        except OSError as error:
            self._observer.cleanup_failed()
            log.warning("a package could not be removed", extra={"path": str(folder), "problem": str(error)})

    def _own(self, chore: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it
        return task


def _digest(code: Code) -> str:
    return hashlib.sha256(code.archive).hexdigest() if isinstance(code, InlineCode) else code.sha256


def _unpack(archive: Path | bytes, tree: Path, most: int, room: Room, go_on: GoOn) -> Extent:
    # Begins with the work, in its thread: whoever has to wait for one is not to blame for that.
    end = time.monotonic() + _UNPACK_MOST.total_seconds()

    def check() -> None:
        go_on()
        room.check()
        if time.monotonic() > end:
            limit = format_duration(_UNPACK_MOST)
            raise RejectedError(f"code: it takes longer than {limit} to unpack; send less of it")

    if isinstance(archive, bytes):
        return unpack(BytesIO(archive), tree, most=most, go_on=check)
    with archive.open("rb") as file:
        extent = unpack(file, tree, most=most, go_on=check)
    archive.unlink()
    return extent


@asynccontextmanager
async def open_packages(
    *,
    folder: Path,
    sources: tuple[Source, ...],
    private: Collection[IPv4Network],
    max_bytes: int,
    cache_bytes: int,
    reserve: int,
    observer: PackageObserver,
    patience: Patience | None = None,
) -> AsyncIterator[PackageStore]:
    """The packages in a folder of the state folder, fetched from `sources`. `load` has to come first.

    `reserve` has the bytes of the disk that are left free.
    """
    files = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="package-files")
    room = Room(folder=folder, reserve=reserve)
    fetcher = Fetcher(
        folders=sources,
        private=private,
        most=max_bytes,
        room=room,
        copies=Threads(),
        files=files,
        patience=patience or Patience(),
    )
    cache = Cache(folder, most=cache_bytes)
    store = PackageStore(cache=cache, fetcher=fetcher, files=files, room=room, most=max_bytes, observer=observer)
    try:
        yield store
    finally:
        await store.close()
        files.shutdown(wait=False)

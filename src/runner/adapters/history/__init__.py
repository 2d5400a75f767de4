"""What this worker's jobs told, kept for whoever asks later: the last record of each, and its log.

It is a help, and nothing depends on it: it takes what it is given without a wait, writes in a thread of its own some
times a second, and drops rather than hold up a job. A disk that fails is a warning.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from runner.adapters.history.store import Kept, Store
from runner.codec import Notice
from runner.job import Bytes, EventKind, JobKey
from runner.ports import Batch, LogPosition

log = logging.getLogger(__name__)

T = TypeVar("T")

GATHER = 0.25
"""The longest that anything waits to be written, in seconds: what a killed daemon may lose of a log here."""
_BATCHES_MOST = 512
"""How many batches (of 64 KiB of text at most) wait for a slow disk; what is beyond is not kept."""
_EVENTS_MOST = 10_000
_LAST_WRITE = 5.0
_READ_AT_ONCE = 16
_FAULTS = (sqlite3.Error, OSError)

__all__ = ["History", "Kept", "open_history"]


class History:
    """Keeps and tells. Made by `open_history`; nothing of it raises because of the disk."""

    def __init__(self, thread: ThreadPoolExecutor, now: Callable[[], datetime]) -> None:
        self._thread = thread
        self._now = now
        self._store: Store | None = None
        self._pending: list[Notice | Batch] = []
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._failing = False
        self._stuck = False

    def note(self, notice: Notice) -> None:
        """Keep what an event says of its job."""
        if len(self._pending) < _EVENTS_MOST:
            self._pending.append(notice)
            self._news.set()
            if notice.kind is EventKind.FINISHED:
                self._hurry.set()

    def offer(self, batch: Batch) -> None:
        """Keep a batch of a log, unless it is only to be shown live."""
        if batch.seq is not None and len(self._pending) < _BATCHES_MOST:
            self._pending.append(batch)
            self._news.set()

    async def written(self, timeout: float) -> None:
        """Return when everything so far is in the file, or cannot be written, or after `timeout` seconds.

        While the disk does not answer, only the first one waits.
        """
        if self._stuck:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._news.set()
        self._hurry.set()
        _, late = await asyncio.wait((waiting,), timeout=timeout)
        self._stuck = bool(late)

    async def find(self, key: JobKey) -> list[Kept]:
        """What is kept of a job, oldest claim first."""
        return await self._ask(lambda store: store.find(key), [])

    async def recent(self, tenant: str | None, state: str | None, most: int) -> list[Kept]:
        """The claims that something was last heard of, newest first. `state` may be an outcome as well."""
        return await self._ask(lambda store: store.recent(tenant, state, most), [])

    async def position(self, claim: str) -> LogPosition | None:
        """How far a claim's log is kept; None when nothing is."""
        return await self._ask(lambda store: store.position(claim), None)

    async def log(self, claim: str) -> AsyncIterator[bytes]:
        """The batches of a claim's log, as they were published. Those that come meanwhile are given as well."""
        after = 0
        while batches := await self._batches(claim, after):
            for after, body in batches:  # noqa: B007 - where to go on
                yield body

    async def _batches(self, claim: str, after: int) -> list[tuple[int, bytes]]:
        return await self._ask(lambda store: store.batches(claim, after, _READ_AT_ONCE), [])

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._news.wait()
            try:
                async with asyncio.timeout(GATHER):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            await self.write()

    async def write(self) -> None:
        """Write everything that came so far."""
        pending, self._pending = self._pending, []
        waiting, self._waiting = self._waiting, []
        self._news.clear()
        self._hurry.clear()
        try:
            if pending:
                await self._ask(lambda store: store.write(pending, self._now()), None)
        finally:
            self._stuck = False
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    async def _ask(self, question: Callable[[Store], T], otherwise: T) -> T:
        """Have the thread do something with the file; `otherwise` is the answer when that fails."""
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._thread, lambda: question(self._opened()))
        except _FAULTS as error:
            if not self._failing:
                log.warning("the history cannot be used; jobs go on without it", extra={"fault": str(error)})
            self._failing = True
            return otherwise
        self._failing = False
        return answer

    def _opened(self) -> Store:
        if self._store is None:
            raise sqlite3.OperationalError("there is no file")
        return self._store

    async def open(self, path: Path, max_age: timedelta, max_bytes: Bytes) -> None:
        """Open the file."""

        def opening() -> None:
            self._store = Store(path, max_age, max_bytes)

        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, opening)
        except _FAULTS as error:
            log.warning("there is no history", extra={"path": str(path), "fault": str(error)})
            self._failing = True

    async def close(self) -> None:
        """Close the file."""
        await self._ask(lambda store: store.close(), None)


@asynccontextmanager
async def open_history(
    state_dir: Path, *, max_age: timedelta, max_bytes: Bytes, now: Callable[[], datetime]
) -> AsyncIterator[History]:
    """The worker's history in `state_dir`, which has to be there; kept for `max_age`, and at most `max_bytes` of it."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
    history = History(thread, now)
    await history.open(state_dir / "history.db", max_age, max_bytes)
    writing = asyncio.create_task(history.run())
    try:
        yield history
    finally:
        writing.cancel()
        await asyncio.wait((writing,))
        await _finish(history)
        thread.shutdown(wait=False)


async def _finish(history: History) -> None:
    try:
        async with asyncio.timeout(_LAST_WRITE):
            await history.write()
            await history.close()
    except TimeoutError:
        log.warning("the end of the history could not be written in time")

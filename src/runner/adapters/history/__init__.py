"""What this worker's jobs told, kept for whoever asks later: the last record of each, and its log.

It is a help, and nothing depends on it: it takes what it is given without a wait, writes in a thread of its own some
times a second, and drops rather than hold up a job. A disk that fails is a warning.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

from runner.adapters.history.store import Kept, Store
from runner.codec import Notice
from runner.job import Bytes, JobKey
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
        self._notices: list[Notice] = []
        self._batches: list[Batch] = []
        self._news = asyncio.Event()
        self._writing: asyncio.Future[Exception | None] | None = None
        self._failing = False
        self._stuck = False

    def note(self, notice: Notice) -> None:
        """Keep what an event says of its job."""
        if len(self._notices) < _EVENTS_MOST:
            self._notices.append(notice)
            self._news.set()

    def offer(self, batch: Batch) -> None:
        """Keep a batch of a log, unless it is only to be shown live."""
        if batch.seq is not None and len(self._batches) < _BATCHES_MOST:
            self._batches.append(batch)
            self._news.set()

    def hurry(self) -> None:
        """Write what came of the logs now; `written` waits for it. Events have time: a later one tells their job's."""
        if not self._stuck:
            batches, self._batches = self._batches, []
            self._write(batches)

    async def written(self, timeout: float) -> None:
        """Return when everything so far is in the file, or cannot be written, or after `timeout` seconds.

        While the disk does not answer, only the first one waits.
        """
        if self._stuck:
            return
        self._write_all()
        await self.hurried(timeout)

    async def hurried(self, timeout: float) -> None:
        """The same for what `hurry` has begun to write."""
        writing = self._writing
        if self._stuck or writing is None or writing.done():
            return
        _, late = await asyncio.wait((writing,), timeout=timeout)
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
        while batches := await self._kept(claim, after):
            for after, body in batches:  # noqa: B007 - where to go on
                yield body

    async def _kept(self, claim: str, after: int) -> list[tuple[int, bytes]]:
        return await self._ask(lambda store: store.batches(claim, after, _READ_AT_ONCE), [])

    async def run(self) -> NoReturn:
        """Write what comes, until cancelled."""
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER)
            await self.write()

    async def write(self) -> None:
        """Write everything that came so far, however long it takes."""
        self._news.clear()
        self._write_all()
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    def _write_all(self) -> None:
        notices, self._notices = self._notices, []
        batches, self._batches = self._batches, []
        self._write([*notices, *batches])

    def _write(self, told: Sequence[Notice | Batch]) -> None:
        """Have the thread write it, after all that it was given before."""
        if told:
            writing = asyncio.get_running_loop().run_in_executor(self._thread, self._keep, told, self._now())
            writing.add_done_callback(self._has_written)
            self._writing = writing

    def _keep(self, told: Sequence[Notice | Batch], now: datetime) -> Exception | None:
        """In the thread: what kept it from being written."""
        try:
            self._opened().write(told, now)
        except _FAULTS as error:
            return error
        return None

    def _has_written(self, writing: asyncio.Future[Exception | None]) -> None:
        self._stuck = False
        if not writing.cancelled():
            self._note_fault(writing.result())

    def _note_fault(self, fault: Exception | None) -> None:
        if fault is not None and not self._failing:
            log.warning("the history cannot be used; jobs go on without it", extra={"fault": str(fault)})
        self._failing = fault is not None

    async def _ask(self, question: Callable[[Store], T], otherwise: T) -> T:
        """Have the thread do something with the file; `otherwise` is the answer when that fails."""
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._thread, lambda: question(self._opened()))
        except _FAULTS as error:
            self._note_fault(error)
            return otherwise
        self._note_fault(None)
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

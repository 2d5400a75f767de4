"""One SQLite file and the thread that alone uses it.

What waits at the same time shares one transaction: twenty jobs that begin at once wait for the disk once, not twenty
times.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

log = logging.getLogger(__name__)

SOON = 0.1
"""The longest that a statement nobody waits for is put off, in seconds, unless it has more time."""

FAULTS = (sqlite3.Error, ValueError, OverflowError, MemoryError)
"""What a statement may raise: also for a text that is no UTF-8, a number of more than 64 bits, and values too large."""

Value = str | int | None
Rows = Sequence[sqlite3.Row]
Fault = sqlite3.Error | ValueError | OverflowError | MemoryError


@dataclass(frozen=True, slots=True)
class _Work:
    """A statement, and who waits for what it gives; nobody may."""

    statement: str
    values: tuple[Value, ...]
    answer: asyncio.Future[Rows] | None = None


class Database:
    """Made by `serve_database`. A statement that was given is carried out, whoever is cancelled meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Sequence[_Work]] = SimpleQueue()
        self._put_off: list[_Work] = []
        self._due: asyncio.TimerHandle | None = None
        self._over = False  # nothing more is taken
        self._closed = asyncio.Event()
        self._thread = Thread(target=self._serve, name="database", daemon=True)
        self._thread.start()

    async def run(self, statement: str, *values: Value) -> Rows:
        """What the statement gives; what it writes is safe on the disk. Raises one of `FAULTS`."""
        if self._over:
            raise _closed()
        answer: asyncio.Future[Rows] = self._loop.create_future()
        self._put_off.append(_Work(statement, values, answer))
        self._send()
        return await answer

    def run_soon(self, statement: str, *values: Value, within: float = SOON) -> None:
        """Carry out the statement together with the next one, or within so many seconds; a failure is only logged."""
        work = _Work(statement, values)
        if self._over:
            _tell([work], [_closed()])
            return
        self._put_off.append(work)
        due = self._loop.time() + within
        if self._due is not None and due < self._due.when():
            self._due.cancel()
            self._due = None
        if self._due is None:
            self._due = self._loop.call_at(due, self._send)

    async def close(self) -> None:
        """Carry out what was given, and close the file."""
        self._over = True
        self._send()
        self._queue.put(())
        await self._closed.wait()
        self._thread.join()  # it has nothing left to do

    def _send(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._put_off:
            self._queue.put(self._put_off)
            self._put_off = []

    def _serve(self) -> None:
        """The thread. Whatever ends it, nobody is left waiting."""
        group: list[_Work] = []
        try:
            with closing(self._connection):
                while group := self._next():
                    self._loop.call_soon_threadsafe(_tell, group, self._together(group))
        finally:
            self._loop.call_soon_threadsafe(self._end, group)

    def _next(self) -> list[_Work]:
        """All that waits at a time; nothing at the end."""
        group = list(self._queue.get())
        while group and not self._queue.empty():
            if not (more := self._queue.get()):
                self._queue.put(more)  # the end, once this is done
                break
            group += more
        return group

    def _end(self, group: list[_Work]) -> None:
        """The thread is gone: fail what it had in hand, and what it never came to."""
        self._over = True
        self._send()
        while not self._queue.empty():
            group += self._queue.get()
        _tell(group, [_closed() for _ in group])
        self._closed.set()

    def _together(self, group: Sequence[_Work]) -> Sequence[Rows | Fault]:
        if len(group) > 1:
            try:
                with self._transaction():
                    return [self._execute(work) for work in group]
            except FAULTS:
                pass  # one of them may be at fault, which is nothing to the others
        return [self._alone(work) for work in group]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:  # commits, or rolls back
            yield

    def _alone(self, work: _Work) -> Rows | Fault:
        try:
            return self._execute(work)
        except FAULTS as error:
            return error

    def _execute(self, work: _Work) -> Rows:
        return self._connection.execute(work.statement, work.values).fetchall()


def _tell(group: Sequence[_Work], outcomes: Sequence[Rows | Fault]) -> None:
    for work, outcome in zip(group, outcomes, strict=True):
        if work.answer is None:
            if isinstance(outcome, FAULTS):
                log.warning("something was not written down", extra={"what": work.statement, "fault": str(outcome)})
        elif work.answer.done():
            continue  # whoever asked was cancelled
        elif isinstance(outcome, FAULTS):
            work.answer.set_exception(outcome)
        else:
            work.answer.set_result(outcome)


def _closed() -> sqlite3.Error:
    return sqlite3.ProgrammingError("the database is closed")


@asynccontextmanager
async def serve_database(connection: sqlite3.Connection) -> AsyncIterator[Database]:
    """Give the connection, which was made without `check_same_thread` and `isolation_level`, a thread of its own."""
    database = Database(connection)
    try:
        yield database
    finally:
        await database.close()

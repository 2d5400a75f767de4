"""This worker's copy of the fleet's memory, in `<state_dir>/memory.db`.

The streams are the truth. What is here can be read from them again, so a file that is lost, damaged or of another
version is made anew, and a write that a power cut takes back is only read once more.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from runner.errors import ConfigError
from runner.job import JobKey

_T = TypeVar("_T")
_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRUNE_EVERY = timedelta(hours=1)
_REMEMBERED = 10_000
"""Up to so many cancelled jobs are known without a look into the file."""
_SCHEMA = """
    CREATE TABLE positions (
        book TEXT NOT NULL PRIMARY KEY,
        "offset" INTEGER NOT NULL,
        fingerprint TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cancelled (
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        reason TEXT NOT NULL,
        time INTEGER NOT NULL,      -- times are microseconds since 1970, UTC
        PRIMARY KEY (tenant, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX cancelled_time ON cancelled (time);
    CREATE TABLE claims (           -- those that won
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        run TEXT NOT NULL,
        time INTEGER NOT NULL,
        span INTEGER NOT NULL,      -- for how long the job is to be the only one, in microseconds
        PRIMARY KEY (tenant, id, run)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX claims_time ON claims (time);
"""

_IS_TAKEN = (
    "SELECT 1 FROM claims WHERE tenant = :tenant AND id = :id AND run != :run AND :time - time < max(span, :span)"
)


class Book(StrEnum):
    """What the fleet remembers, a stream and a table each."""

    CANCELLED = "cancelled"
    CLAIMS = "claims"


KEPT = {Book.CANCELLED: timedelta(days=14), Book.CLAIMS: timedelta(days=8)}
"""How long each book keeps what is written in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last message of a stream that was read. The fingerprint tells whether it is still the same stream."""

    offset: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """A job that is not to run any more, whoever has it."""

    key: JobKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueClaim:
    """A worker wants to start a job that is to be the only one of its id for `span`.

    `run` is the submission, however often it is started; `claim` is this taking of it.
    """

    key: JobKey
    run: str
    worker: str
    claim: str
    time: datetime
    span: timedelta


@dataclass(slots=True)
class Memory:
    """Made by `open_memory`. Every method is one transaction and raises `OSError` when the file cannot be used."""

    _database: sqlite3.Connection
    _thread: ThreadPoolExecutor
    _now: Callable[[], datetime]
    _cancelled: set[int] | None
    """Hashes of the keys of all cancelled jobs, and maybe of others; None while there are too many."""
    _pruned: datetime = field(default=_EPOCH)

    async def position(self, book: Book) -> Position | None:
        """How far the book's stream was read; None when it never was."""
        rows = await self._read('SELECT "offset", fingerprint FROM positions WHERE book = ?', (book.value,))
        return next((Position(offset=offset, fingerprint=fingerprint) for offset, fingerprint in rows), None)

    async def forget(self, book: Book) -> None:
        """Forget the book, to read its stream from the beginning."""

        def work(database: sqlite3.Connection) -> None:
            database.execute(f"DELETE FROM {book.value}")  # noqa: S608 - one of our own two words
            database.execute("DELETE FROM positions WHERE book = ?", (book.value,))

        await self._do(work)

    async def add_cancels(self, cancels: Sequence[Cancel], position: Position) -> None:
        """Write down what was read up to there. The first reason given for a job stays, the last time counts."""
        now = _to_number(self._now())
        rows = [(cancel.key.tenant, cancel.key.id, cancel.reason, now) for cancel in cancels]
        if self._cancelled is not None:  # before the file has it: what is asked meanwhile looks there
            self._cancelled |= {hash(cancel.key) for cancel in cancels}
            if len(self._cancelled) > _REMEMBERED:
                self._cancelled = None

        def work(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT INTO cancelled (tenant, id, reason, time) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET time = excluded.time",
                rows,
            )
            _move(database, Book.CANCELLED, position)

        await self._do(work)
        await self._prune()

    async def add_claims(self, claims: Sequence[UniqueClaim], position: Position) -> None:
        """Write down what was read up to there: of claims to the same job, the first one wins for its span.

        What wins depends on the order of the stream and on what it says alone, so all workers agree.
        """
        rows = [_values(claim.key, claim.run, claim.time, claim.span) for claim in claims]

        def work(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT OR IGNORE INTO claims (tenant, id, run, time, span)"
                f" SELECT :tenant, :id, :run, :time, :span WHERE NOT EXISTS ({_IS_TAKEN})",
                rows,
            )
            _move(database, Book.CLAIMS, position)

        await self._do(work)
        await self._prune()

    async def cancelled(self, key: JobKey) -> str | None:
        """Why the job is not to run any more; None when it may, which takes no look into the file for nearly all."""
        if self._cancelled is not None and hash(key) not in self._cancelled:
            return None
        since = _to_number(self._now() - KEPT[Book.CANCELLED])
        rows = await self._read(
            "SELECT reason FROM cancelled WHERE tenant = ? AND id = ? AND time > ?", (key.tenant, key.id, since)
        )
        return str(rows[0][0]) if rows else None

    async def has_won(self, key: JobKey, run: str) -> bool:
        """Whether this run of the job was the first one, once."""
        rows = await self._read(
            "SELECT 1 FROM claims WHERE tenant = ? AND id = ? AND run = ?", (key.tenant, key.id, run)
        )
        return bool(rows)

    async def is_taken(self, key: JobKey, run: str, span: timedelta) -> bool:
        """Whether another run of the job is the only one that may be, now."""
        return bool(await self._read(_IS_TAKEN, _values(key, run, self._now(), span)))

    async def _prune(self) -> None:
        now = self._now()
        if now - self._pruned < _PRUNE_EVERY:
            return
        self._pruned = now

        def work(database: sqlite3.Connection) -> None:
            for book, kept in KEPT.items():
                database.execute(
                    f"DELETE FROM {book.value} WHERE time <= ?",  # noqa: S608 - one of our own two words
                    (_to_number(now - kept),),
                )

        await self._do(work)

    async def _read(self, query: str, values: Sequence[str | int] | dict[str, str | int]) -> list[Any]:
        return await self._do(lambda database: database.execute(query, values).fetchall())

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run on the database's own thread, to its end even when the caller is cancelled meanwhile."""

        def transaction() -> _T:
            with self._database:
                return work(self._database)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
        except sqlite3.Error as error:
            raise OSError(f"the worker's copy of the fleet's memory cannot be used: {error}") from error


@asynccontextmanager
async def open_memory(state_dir: Path, now: Callable[[], datetime]) -> AsyncIterator[Memory]:
    """The copy in `state_dir`, which exists; an empty one where there is none that can be read.

    Raises `ConfigError` when it cannot be written.
    """
    path = state_dir / "memory.db"
    with ThreadPoolExecutor(1, thread_name_prefix="memory") as thread:
        loop = asyncio.get_running_loop()
        try:
            database, cancelled = await loop.run_in_executor(thread, _open, path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"worker.state_dir: {path} cannot be used: {error}") from error
        try:
            yield Memory(database, thread, now, cancelled)
        finally:
            await loop.run_in_executor(thread, database.close)


def _open(path: Path) -> tuple[sqlite3.Connection, set[int] | None]:
    """The database, and the hashes of the cancelled jobs' keys if they are not too many."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> tuple[sqlite3.Connection, set[int] | None]:
    # SQLite gives its other files the modes of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        _prepare(database)
        return database, _load(database)
    except BaseException:
        database.close()
        raise


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    # Without a sync at each write: a power cut takes back the last ones, whole.
    database.execute("PRAGMA synchronous = NORMAL")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    elif version != _VERSION:
        raise sqlite3.DatabaseError("written by another version")
    # Looks at each table, so that a damaged file is found out here.
    for table in ("positions", *Book):
        database.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()  # noqa: S608 - our own words


def _load(database: sqlite3.Connection) -> set[int] | None:
    rows = database.execute("SELECT tenant, id FROM cancelled LIMIT ?", (_REMEMBERED + 1,)).fetchall()
    known = {hash(JobKey(tenant=tenant, id=job_id)) for tenant, job_id in rows}
    return known if len(rows) <= _REMEMBERED else None


def _move(database: sqlite3.Connection, book: Book, position: Position) -> None:
    database.execute(
        'INSERT OR REPLACE INTO positions (book, "offset", fingerprint) VALUES (?, ?, ?)',
        (book.value, position.offset, position.fingerprint),
    )


def _values(key: JobKey, run: str, time: datetime, span: timedelta) -> dict[str, str | int]:
    return {
        "tenant": key.tenant,
        "id": key.id,
        "run": run,
        "time": _to_number(time),
        "span": span // timedelta(microseconds=1),
    }


def _to_number(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)

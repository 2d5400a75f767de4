"""The history's file, `<state_dir>/history.db`. Blocking: for one thread of its own.

One SQLite file and not a file for each claim: most jobs write a few lines, and then an inode, a folder's entry and a
place in an index that is held in memory would cost more than what is kept. Many jobs' lines go into one transaction.
"""

import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner.codec import Notice, encode_batch
from runner.job import Bytes, EventKind, JobKey
from runner.ports import Batch, LogPosition

VERSION = 1
"""Of the schema. A history of another version is put aside: it is a help, and nothing depends on it."""

_STATES = {
    EventKind.CLAIMED: "running",
    EventKind.STARTED: "running",
    EventKind.PROGRESS: "running",
    EventKind.STOPPING: "running",
    EventKind.LOST: "queued",
    EventKind.DEFERRED: "deferred",
    EventKind.RETRYING: "retrying",
    EventKind.FINISHED: "finished",
}
"""What state an event leaves a job in. The other kinds say nothing about a job that is to be kept."""

_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE claims (
    number INTEGER PRIMARY KEY,
    claim TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    updated INTEGER NOT NULL,           -- microseconds since 1970, UTC
    out INTEGER NOT NULL DEFAULT 0,     -- raw bytes of each stream up to the end of what is kept of the log
    err INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,   -- what the log takes here
    record TEXT                         -- what is known of the job, in the form of an event
) STRICT;
CREATE INDEX claims_job ON claims (tenant, id);
CREATE INDEX claims_updated ON claims (updated);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    claim INTEGER NOT NULL REFERENCES claims (number) ON DELETE CASCADE,
    body BLOB NOT NULL                  -- as it was published, deflated
) STRICT;
CREATE INDEX batches_claim ON batches (claim);
PRAGMA user_version = {VERSION};
COMMIT;
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRUNE_EVERY = timedelta(minutes=1)
_PRUNE_TO = 0.9
"""How much of `max_bytes` is left after something had to go, so that it is not each write that has to make room."""
_PRUNED_AT_ONCE = 500
_ROW_COST = 300
"""About the bytes that a claim takes beside its log and its record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of one claim. `record` has the fields of an event, `finished` verbatim; None if only a log came."""

    claim: str
    state: str
    updated: datetime
    log_bytes: int
    record: dict[str, Any] | None


class Store:
    """What the worker's jobs told. All of it raises `sqlite3.Error`."""

    def __init__(self, path: Path, max_age: timedelta, max_bytes: Bytes) -> None:
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._pruned = _EPOCH
        self._database = _open(path)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def write(self, told: Sequence[Notice | Batch], now: datetime) -> None:
        """Keep events and batches, each in their order, in one transaction; then forget what is too old or too much."""
        notices = [item for item in told if isinstance(item, Notice)]
        over = {notice.claim for notice in notices if notice.kind is EventKind.FINISHED}
        with self._transaction():
            for notice in notices:
                if notice.claim not in over or notice.kind is EventKind.FINISHED:  # which says all of the others
                    self._note(notice)
            for item in told:
                if isinstance(item, Batch):
                    self._keep(item, now)
        if now - self._pruned >= _PRUNE_EVERY:
            self._pruned = now
            self._forget_old(now)
        if self._used() > self._max_bytes:
            self._make_room()

    def find(self, key: JobKey) -> list[Kept]:
        """What is kept of a job, oldest claim first."""
        rows = self._database.execute(
            "SELECT claim, state, updated, bytes, record FROM claims WHERE tenant = ? AND id = ? ORDER BY number",
            (key.tenant, key.id),
        )
        return [_kept(row) for row in rows]

    def recent(self, tenant: str | None, state: str | None, most: int) -> list[Kept]:
        """The claims that something was last heard of, newest first. `state` may be an outcome as well."""
        rows = self._database.execute(
            "SELECT claim, state, updated, bytes, record FROM claims WHERE record IS NOT NULL"
            " AND (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR state = ?2 OR outcome = ?2)"
            " ORDER BY updated DESC LIMIT ?3",
            (tenant, state, most),
        )
        return [_kept(row) for row in rows]

    def batches(self, claim: str, after: int, most: int) -> list[tuple[int, bytes]]:
        """Up to `most` batches of a claim's log after the one of that number (0 is before the first), as published."""
        rows = self._database.execute(
            "SELECT batches.number, body FROM batches JOIN claims ON claims.number = batches.claim"
            " WHERE claims.claim = ? AND batches.number > ? ORDER BY batches.number LIMIT ?",
            (claim, after, most),
        )
        return [(row["number"], zlib.decompress(row["body"])) for row in rows]

    def position(self, claim: str) -> LogPosition | None:
        """How far a claim's log is kept."""
        row = self._database.execute("SELECT out, err FROM claims WHERE claim = ?", (claim,)).fetchone()
        return LogPosition(out=row["out"], err=row["err"]) if row is not None else None

    def _note(self, notice: Notice) -> None:
        state = _STATES.get(notice.kind)
        if state is None:
            return
        body = json.loads(notice.body)
        row = self._database.execute("SELECT state, record FROM claims WHERE claim = ?", (body["claim"],)).fetchone()
        if row is not None and row["state"] == "finished":
            return
        record = notice.body
        if notice.kind is not EventKind.FINISHED:
            earlier = json.loads(row["record"]) if row is not None and row["record"] is not None else None
            record = _to_json(_merged(earlier, body, notice.kind))
        values = (body["claim"], body["tenant"], body["id"], state, body["outcome"], _to_number(notice.time), record)
        self._database.execute(
            "INSERT INTO claims (claim, tenant, id, state, outcome, updated, record) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (claim) DO UPDATE SET state = excluded.state, outcome = excluded.outcome,"
            " updated = excluded.updated, record = excluded.record",
            values,
        )
        # A job that is passed on comes by again and again, as a new claim each time.
        self._database.execute(
            "DELETE FROM claims WHERE tenant = ? AND id = ? AND state = 'deferred' AND claim <> ?",
            (body["tenant"], body["id"], body["claim"]),
        )

    def _keep(self, batch: Batch, now: datetime) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO claims (claim, tenant, id, state, updated) VALUES (?, ?, ?, 'running', ?)",
            (batch.claim, batch.key.tenant, batch.key.id, _to_number(now)),
        )
        row = self._database.execute("SELECT number, out, err FROM claims WHERE claim = ?", (batch.claim,)).fetchone()
        if not batch.end and batch.until_out <= row["out"] and batch.until_err <= row["err"]:
            return  # an earlier life of the daemon told it
        body = zlib.compress(encode_batch(batch), 1)
        self._database.execute("INSERT INTO batches (claim, body) VALUES (?, ?)", (row["number"], body))
        self._database.execute(
            "UPDATE claims SET out = ?, err = ?, bytes = bytes + ? WHERE number = ?",
            (max(row["out"], batch.until_out), max(row["err"], batch.until_err), len(body), row["number"]),
        )

    def _used(self) -> int:
        """The bytes of the file that something stands in."""
        pages, free, size = (self._pragma(name) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def _forget_old(self, now: datetime) -> None:
        oldest = _to_number(now - self._max_age)
        while self._database.execute(
            "DELETE FROM claims WHERE number IN (SELECT number FROM claims WHERE updated < ? LIMIT ?)",
            (oldest, _PRUNED_AT_ONCE),
        ).rowcount:
            self._shrink()

    def _make_room(self) -> None:
        """Forget the oldest claims; those of jobs that run come last."""
        while (excess := self._used() - int(self._max_bytes * _PRUNE_TO)) > 0:
            rows = self._database.execute(
                "SELECT number, bytes + coalesce(length(record), 0) AS size FROM claims"
                " ORDER BY state = 'running', updated LIMIT ?",
                (_PRUNED_AT_ONCE,),
            ).fetchall()
            if not rows:
                return
            with self._transaction():
                for row in rows:
                    self._database.execute("DELETE FROM claims WHERE number = ?", (row["number"],))
                    excess -= row["size"] + _ROW_COST
                    if excess <= 0:
                        break
            self._shrink()

    def _shrink(self) -> None:
        self._database.execute("PRAGMA incremental_vacuum").fetchall()

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or rolls back
            yield


def _open(path: Path) -> sqlite3.Connection:
    """The database, made anew where there is none or one that cannot be used, which is put aside."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        path.replace(path.with_suffix(".unusable"))
        for name in ("-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.row_factory = sqlite3.Row
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and database.execute("PRAGMA schema_version").fetchone()[0] == 0:
        database.executescript(_SCHEMA)
    elif version != VERSION:
        raise sqlite3.DatabaseError(f"the history is of version {version}")
    # What is in the file survives the daemon's death. A loss of power may take the last moments, and no more.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA cache_size = -512")  # KiB, else 2,000: the kernel has the file in memory as well
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA journal_size_limit = 8388608")
    database.execute("SELECT count(*) FROM claims").fetchone()


def _merged(earlier: dict[str, Any] | None, body: dict[str, Any], kind: EventKind) -> dict[str, Any]:
    """What is known of a job after one more event: that event, and what only earlier ones told."""
    record = dict(body) if earlier is None else earlier | {name: told for name, told in body.items() if _told(told)}
    record["reason"] = body["reason"]
    times = dict(record["times"])
    if kind in (EventKind.CLAIMED, EventKind.STARTED):
        times[kind.value] = body["time"]
    return record | {"times": times}


def _told(value: object) -> bool:
    """Whether a field of an event says something; those that are objects do so in `finished` alone."""
    return value is not None and not isinstance(value, dict) and value != []


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _kept(row: sqlite3.Row) -> Kept:
    return Kept(
        claim=row["claim"],
        state=row["state"],
        updated=_EPOCH + timedelta(microseconds=row["updated"]),
        log_bytes=row["bytes"],
        record=json.loads(row["record"]) if row["record"] is not None else None,
    )


def _to_number(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)

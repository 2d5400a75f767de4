"""What this worker holds and ran, in `<state_dir>/journal.db`.

Each write is one statement, safe on disk when the call returns: the daemon may be killed between any two instructions,
and a cancelled call leaves nothing half done. `started`, `start_told`, `paid` and `logged` are put off, to be written
with whatever is next, and their failures are only logged: a life that finds them missing reads the start from the
container, and says once more, under the same `message_id`, what was told, or the lines that were offered.
"""

import asyncio
import os
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runner.adapters.database import FAULTS, Database, Rows, Value, serve_database
from runner.codec import Notice, decode_choices, encode_choices, encode_event
from runner.errors import ConfigError, JournalError
from runner.job import Job, JobKey, StopReason
from runner.ports import ClaimRecord, Event, LogPosition, OpenClaim

KEPT = timedelta(days=1)
"""How long a claim that ended is remembered."""

_FILE = "journal.db"
_PRUNE_EVERY = timedelta(hours=1)
_APPLICATION_ID = 0x52554E52  # "RUNR": tells our file from any other SQLite database
_MIGRATIONS = (
    """
    CREATE TABLE claims (
        claim TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        container_name TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        claimed INTEGER NOT NULL,   -- times are microseconds since 1970, UTC
        container TEXT,
        deadline INTEGER,
        ended INTEGER,
        finished INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX claims_open ON claims (claimed) WHERE ended IS NULL;
    CREATE INDEX claims_ended ON claims (ended) WHERE ended IS NOT NULL;
    CREATE INDEX claims_finished ON claims (tenant, id, ended) WHERE finished = 1;
    """,
    """
    ALTER TABLE claims ADD COLUMN choices TEXT;
    ALTER TABLE claims ADD COLUMN lives INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE claims ADD COLUMN stop TEXT;
    ALTER TABLE claims ADD COLUMN stop_detail TEXT NOT NULL DEFAULT '';
    ALTER TABLE claims ADD COLUMN logged_out INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE claims ADD COLUMN logged_err INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE claims ADD COLUMN logged_seq INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE owed (
        claim TEXT NOT NULL PRIMARY KEY,
        notice TEXT NOT NULL        -- an event that the broker has not confirmed yet, as codec.Notice in JSON
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE renewed (
        id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        at INTEGER NOT NULL         -- when the leases of all open claims were last known to be renewed
    ) STRICT;
    """,
    """
    ALTER TABLE claims ADD COLUMN told INTEGER NOT NULL DEFAULT 1;  -- the number of the event `claimed`
    """,
    """
    -- A claim that owes its last event is over: one statement, and one wait for the disk, for both.
    ALTER TABLE owed ADD COLUMN ended INTEGER;
    CREATE TRIGGER owed_ends_claim AFTER INSERT ON owed WHEN NEW.ended IS NOT NULL BEGIN
        UPDATE claims SET ended = NEW.ended, finished = 1 WHERE claim = NEW.claim;
    END;
    """,
    """
    ALTER TABLE claims ADD COLUMN waited TEXT;  -- the id of a container that waited and is the claim's
    """,
    """
    ALTER TABLE claims ADD COLUMN start_told INTEGER NOT NULL DEFAULT 0;
    """,
)
"""One script for each version of the schema; `user_version` counts those that were applied. Only ever add to it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITIONS_WITHIN = 0.5
"""Seconds for which the position of a log waits for those of others: each write to the disk takes a millisecond."""
_REMEMBERED = 10_000
"""So many of the jobs that were finished last are known without a look into the file."""


class SqliteJournal:
    """The port `Journal`, and what the sweep of an earlier life's leavings needs. Made by `open_journal`."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._pruned = _EPOCH
        self._finished: OrderedDict[int, int] = OrderedDict()  # hashes of keys, and when; the latest last
        self._whole_since = 0  # whatever was finished after this is among them, once they were loaded
        self._loaded = False

    async def claimed(self, record: ClaimRecord) -> None:
        """The claim, before anything is made for it. Raises `JournalError`, as all do that are not put off."""
        await self._run(
            "INSERT OR IGNORE INTO claims (claim, tenant, id, container_name, attempt, claimed, told, choices, waited)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            record.claim,
            record.key.tenant,
            record.key.id,
            record.container_name,
            record.attempt,
            _to_number(record.claimed),
            record.told,
            encode_choices(record.choices) if record.choices is not None else None,
            record.waited,
        )

    async def started(self, claim: str, container: str, deadline: datetime) -> None:
        """Write down which container runs the claim, and when the job has to be gone. A failure is only logged."""
        self._database.run_soon(
            "UPDATE claims SET container = ?, deadline = ? WHERE claim = ?", container, _to_number(deadline), claim
        )

    async def start_told(self, claim: str) -> None:
        """The events of the claim's start are confirmed. A failure is only logged."""
        self._database.run_soon("UPDATE claims SET start_told = 1 WHERE claim = ?", claim)

    async def stopping(self, claim: str, reason: StopReason, detail: str) -> None:
        """Write down that we end the job, and why."""
        await self._run("UPDATE claims SET stop = ?, stop_detail = ? WHERE claim = ?", reason.value, detail, claim)

    async def logged(self, claim: str, position: LogPosition) -> None:
        """Write down how far the job's log was offered. A failure is only logged."""
        self._database.run_soon(
            "UPDATE claims SET logged_out = ?, logged_err = ?, logged_seq = ? WHERE claim = ?",
            position.out,
            position.err,
            position.seq,
            claim,
            within=_POSITIONS_WITHIN,
        )

    async def adopted(self, claim: str) -> None:
        """A new life goes on with the claim."""
        await self._run("UPDATE claims SET lives = lives + 1 WHERE claim = ?", claim)

    async def forgotten(self, claim: str) -> None:
        """Nobody knows what became of the claim: another worker may tell, or its lease may still come back."""
        await self._run("DELETE FROM claims WHERE claim = ?", claim)

    async def ended(self, claim: str, *, finished: bool, owed: Event | None = None) -> None:
        """The claim is over. `finished`: the job is, too; then `owed` may be its last event, kept until `paid`."""
        now = self._now()
        if owed is not None:
            notice = encode_event(owed).to_json()
            if isinstance(owed.submission, Job):
                self._remember(owed.submission.key, _to_number(now))
            await self._run(
                "INSERT OR REPLACE INTO owed (claim, notice, ended) VALUES (?, ?, ?)", claim, notice, _to_number(now)
            )
        else:
            if finished:
                self._whole_since = max(self._whole_since, _to_number(now))  # whose claim it is nobody says
            await self._run(
                "UPDATE claims SET ended = ?, finished = ? WHERE claim = ?", _to_number(now), int(finished), claim
            )
        if now - self._pruned >= _PRUNE_EVERY:
            await self.prune()

    async def is_over(self, claim: str) -> bool:
        """Whether the claim is known to be over."""
        return bool(await self._run("SELECT 1 FROM claims WHERE claim = ? AND ended IS NOT NULL", claim))

    async def paid(self, claim: str) -> None:
        """The event that was owed is confirmed. Where that fails it is told again."""
        self._database.run_soon("DELETE FROM owed WHERE claim = ?", claim)

    async def owed_notices(self) -> Mapping[str, Notice]:
        """What an earlier life could not publish, by claim; those claims are over."""
        await self._run(
            "UPDATE claims SET ended = ?, finished = 1 WHERE ended IS NULL AND claim IN (SELECT claim FROM owed)",
            _to_number(self._now()),
        )
        rows = await self._run("SELECT claim, notice FROM owed ORDER BY claim")
        return {row["claim"]: Notice.from_json(row["notice"]) for row in rows}

    async def load(self) -> None:
        """Learn by heart the jobs that were finished last: `finished_lately` seldom has to look into the file then."""
        rows = await self._run(
            "SELECT tenant, id, ended FROM claims WHERE finished = 1 AND ended IS NOT NULL ORDER BY ended DESC LIMIT ?",
            _REMEMBERED,
        )
        for row in reversed(rows):
            self._remember(JobKey(tenant=row["tenant"], id=row["id"]), row["ended"])
        if len(rows) == _REMEMBERED:
            self._whole_since = max(self._whole_since, rows[-1]["ended"])
        self._loaded = True

    async def finished_lately(self, key: JobKey, within: timedelta) -> bool:
        """Whether this worker finished that job within that time (at most `KEPT`)."""
        since = _to_number(self._now() - within)
        if self._loaded and since > self._whole_since and hash(key) not in self._finished:
            return False
        rows = await self._run(
            "SELECT 1 FROM claims WHERE finished = 1 AND tenant = ? AND id = ? AND ended >= ? LIMIT 1",
            key.tenant,
            key.id,
            since,
        )
        return bool(rows)

    async def open_claims(self) -> tuple[OpenClaim, ...]:
        """The claims that were not ended, oldest first: at start, what an earlier life of this worker left."""
        rows = await self._run(
            "SELECT claim, tenant, id, container_name, attempt, claimed, container, deadline, choices, lives, stop,"
            " stop_detail, logged_out, logged_err, logged_seq, told, start_told, waited FROM claims"
            " WHERE ended IS NULL ORDER BY claimed, claim"
        )
        return tuple(_open_claim(row) for row in rows)

    async def renew(self) -> None:
        """Write down that the leases of all open claims have been renewed by now."""
        await self._run("INSERT OR REPLACE INTO renewed (id, at) VALUES (1, ?)", _to_number(self._now()))

    async def renewed(self) -> datetime:
        """When the leases were last renewed; long ago if they never were."""
        rows = await self._run("SELECT at FROM renewed")
        return _to_time(rows[0]["at"]) if rows else _EPOCH

    async def ended_lately(self, within: timedelta) -> frozenset[str]:
        """The containers whose claims ended within that time."""
        since = _to_number(self._now() - within)
        return frozenset(
            row["container_name"]
            for row in await self._run("SELECT container_name FROM claims WHERE ended >= ?", since)
        )

    async def names(self) -> Mapping[str, str]:
        """The names due to containers that waited, by id, whether or not they have them already."""
        rows = await self._run("SELECT waited, container_name FROM claims WHERE waited IS NOT NULL")
        return {row["waited"]: row["container_name"] for row in rows}

    async def prune(self) -> None:
        """Forget the claims that ended longer than `KEPT` ago."""
        self._pruned = self._now()
        await self._run("DELETE FROM claims WHERE ended < ?", _to_number(self._pruned - KEPT))

    def _remember(self, key: JobKey, ended: int) -> None:
        """Only by its hash: where two keys share one, the file tells."""
        self._finished[hash(key)] = ended
        self._finished.move_to_end(hash(key))
        if len(self._finished) > _REMEMBERED:
            _, oldest = self._finished.popitem(last=False)
            self._whole_since = max(self._whole_since, oldest)

    async def _run(self, statement: str, *values: Value) -> Rows:
        try:
            return await self._database.run(statement, *values)
        except FAULTS as error:
            raise JournalError(f"the journal failed: {error}") from error


def journal_exists(state_dir: Path) -> bool:
    """Whether this worker ever had a journal; opening it makes one."""
    return (state_dir / _FILE).exists()


@asynccontextmanager
async def open_journal(state_dir: Path, now: Callable[[], datetime]) -> AsyncIterator[SqliteJournal]:
    """The worker's journal, made where there is none.

    Raises `ConfigError` when the folder cannot be written, or when what is there is damaged, from a newer version, or
    not ours.
    """
    path = state_dir / _FILE
    with _faults_of(path):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    with _faults_of(path):
        connection = await asyncio.to_thread(_open, path)
    async with serve_database(connection) as database:
        journal = SqliteJournal(database, now)
        await journal.prune()
        yield journal


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path) -> None:
    """Have a file there; SQLite gives its other files the owner and the modes of this one.

    What root makes belongs to whom the folder belongs to, the daemon's user: `prune` reads it. Root follows no link
    which that user could have put there.
    """
    root = os.geteuid() == 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_NOFOLLOW if root else 0), 0o600)
    try:
        if root:
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.row_factory = sqlite3.Row
    version = int(_pragma(database, "user_version"))
    ours = _pragma(database, "application_id") == str(_APPLICATION_ID)
    new = _pragma(database, "schema_version") == "0"
    if not (ours or new):
        raise ConfigError(f"worker.state_dir: {path} belongs to another program; name another folder")
    if version > len(_MIGRATIONS):
        raise ConfigError(
            f"worker.state_dir: {path} was written by a newer version of this program; install that one again, "
            "or name another folder"
        )
    if (fault := _pragma(database, "quick_check(1)")) != "ok":
        raise sqlite3.DatabaseError(fault)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA cache_size = -512")  # KiB, else 2,000: the kernel has the file in memory as well
    for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
        database.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; {script}"
            f"PRAGMA user_version = {number}; COMMIT;"
        )


def _pragma(database: sqlite3.Connection, name: str) -> str:
    return str(database.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turns what can be wrong with the file into a sentence for the operator."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"worker.state_dir: {path.parent} cannot be written ({error.strerror}); "
            "let the daemon's user own it, or name another folder"
        ) from error
    except sqlite3.OperationalError as error:
        raise ConfigError(f"worker.state_dir: {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"worker.state_dir: {path} is damaged or no journal ({error}); move it away, and a new one is made"
        ) from error


def _open_claim(row: sqlite3.Row) -> OpenClaim:
    record = ClaimRecord(
        claim=row["claim"],
        key=JobKey(tenant=row["tenant"], id=row["id"]),
        container_name=row["container_name"],
        attempt=row["attempt"],
        claimed=_to_time(row["claimed"]),
        told=row["told"],
        choices=decode_choices(row["choices"]) if row["choices"] is not None else None,
        waited=row["waited"],
    )
    return OpenClaim(
        record=record,
        lives=row["lives"],
        container=row["container"],
        deadline=_to_time(row["deadline"]) if row["deadline"] is not None else None,
        start_told=bool(row["start_told"]),
        stop=StopReason(row["stop"]) if row["stop"] is not None else None,
        stop_detail=row["stop_detail"],
        logged=LogPosition(out=row["logged_out"], err=row["logged_err"], seq=row["logged_seq"]),
    )


def _to_number(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _to_time(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)

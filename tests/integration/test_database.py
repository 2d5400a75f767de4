"""The thread that alone uses a database: what shares a transaction, and what is nothing to the others."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runner.adapters.database import SOON, Database, serve_database


@asynccontextmanager
async def opened(path: Path, told: list[str] | None = None) -> AsyncIterator[Database]:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT NOT NULL PRIMARY KEY)")
    if told is not None:
        connection.set_trace_callback(told.append)
    async with serve_database(connection) as database:
        yield database


def notes(path: Path) -> set[str]:
    """What another process would find."""
    with sqlite3.connect(path) as connection:
        return {row[0] for row in connection.execute("SELECT text FROM notes")}


async def note(database: Database, text: str) -> None:
    await database.run("INSERT INTO notes VALUES (?)", text)


async def test_what_waits_at_the_same_time_shares_a_transaction(tmp_path: Path) -> None:
    told: list[str] = []
    async with opened(tmp_path / "db", told) as database:
        await database.run("SELECT 1")
        told.clear()
        # All of them are given before the loop, or the thread, can do anything about the first.
        with_one_wait = asyncio.gather(*(note(database, str(number)) for number in range(20)))
        blocked = sqlite3.connect(tmp_path / "db", isolation_level=None)
        blocked.execute("BEGIN IMMEDIATE")  # what comes first waits here, and all the others behind it
        await asyncio.sleep(0)
        blocked.rollback()
        blocked.close()
        await with_one_wait
    assert notes(tmp_path / "db") == {str(number) for number in range(20)}
    assert 1 <= told.count("COMMIT") <= 2
    alone = told[: told.index("BEGIN IMMEDIATE")]
    assert sum(statement.startswith("INSERT") for statement in alone) <= 1


async def test_a_statement_that_fails_is_nothing_to_those_beside_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        await note(database, "there")
        outcomes = await asyncio.gather(
            note(database, "before"), note(database, "there"), note(database, "after"), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [type(None), sqlite3.IntegrityError, type(None)]
    assert notes(tmp_path / "db") == {"there", "before", "after"}


async def test_what_nobody_waits_for_goes_with_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        database.run_soon("INSERT INTO notes VALUES ('soon')")
        await note(database, "now")
        assert notes(tmp_path / "db") == {"soon", "now"}


async def test_what_nobody_waits_for_is_written_without_a_next_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database, asyncio.timeout(30):
        database.run_soon("INSERT INTO notes VALUES ('soon')")
        while notes(tmp_path / "db") != {"soon"}:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("within", [(3600.0, SOON), (SOON, 3600.0)], ids=["the second", "the first"])
async def test_the_one_that_has_least_time_takes_the_others_along(tmp_path: Path, within: tuple[float, float]) -> None:
    async with opened(tmp_path / "db") as database, asyncio.timeout(30):
        for number, seconds in enumerate(within):
            database.run_soon("INSERT INTO notes VALUES (?)", str(number), within=seconds)
        while notes(tmp_path / "db") != {"0", "1"}:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_what_nobody_waits_for_is_written_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        database.run_soon("INSERT INTO notes VALUES ('soon')")
    assert notes(tmp_path / "db") == {"soon"}


async def test_what_nobody_waits_for_is_logged_when_it_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path / "db") as database:
        await note(database, "there")
        database.run_soon("INSERT INTO notes VALUES ('there')")
        await note(database, "another")
    assert [record.message for record in caplog.records] == ["something was not written down"]


async def test_a_cancelled_caller_has_its_statement_carried_out(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        asking = asyncio.create_task(note(database, "given"))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        await note(database, "next")
    assert notes(tmp_path / "db") == {"given", "next"}


async def test_a_disk_that_hangs_holds_up_nobody_but_those_who_wait_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as database:
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(note(database, "late"))
        began = time.monotonic()
        database.run_soon("INSERT INTO notes VALUES ('soon')")
        await asyncio.sleep(0)
        assert time.monotonic() - began < 4  # whoever waited for the lock would do so for 5 s
        assert not waiting.done()
        other.rollback()
        other.close()
        async with asyncio.timeout(30):
            await waiting
    assert notes(tmp_path / "db") == {"late", "soon"}


@pytest.mark.parametrize(
    ("value", "fault"), [("\ud800", UnicodeEncodeError), (2**63, OverflowError)], ids=["a lone surrogate", "65 bits"]
)
async def test_a_value_that_cannot_be_written_is_nothing_to_those_beside_it(
    tmp_path: Path, value: str | int, fault: type[Exception]
) -> None:
    async with asyncio.timeout(30), opened(tmp_path / "db") as database:
        insert = "INSERT INTO notes VALUES (?)"
        with pytest.raises(fault):
            await database.run(insert, value)
        outcomes = await asyncio.gather(
            note(database, "before"), database.run(insert, value), note(database, "after"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), fault, type(None)]
    assert notes(tmp_path / "db") == {"before", "after"}


async def test_a_database_that_was_closed_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(30):
        async with opened(tmp_path / "db") as database:
            pass
        with pytest.raises(sqlite3.ProgrammingError, match="the database is closed"):
            await note(database, "late")
        database.run_soon("INSERT INTO notes VALUES ('soon')")
    assert [record.message for record in caplog.records] == ["something was not written down"]


class Broken(sqlite3.Connection):
    """Fails as nobody foresaw, once it is asked for the statement `break`."""

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if sql == "break":
            raise RuntimeError(sql)
        return super().execute(sql, *values)  # type: ignore[arg-type]


async def test_nobody_waits_for_a_thread_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_by: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: ended_by.append(args.exc_type))
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None, check_same_thread=False, factory=Broken)
    async with asyncio.timeout(30), serve_database(connection) as database:
        outcomes = await asyncio.gather(*(database.run("break") for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [sqlite3.ProgrammingError] * 3
        with pytest.raises(sqlite3.ProgrammingError):
            await database.run("SELECT 1")
    assert ended_by == [RuntimeError]

"""The worker's copy of the fleet's memory, on a real disk."""

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.adapters.amqp.memory import Book, Cancel, Memory, Position, UniqueClaim, open_memory
from runner.errors import ConfigError
from runner.job import JobKey

KEY = JobKey(tenant="acme", id="one")
HOUR = timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def memory(state_dir: Path, clock: Clock) -> AsyncIterator[Memory]:
    async with open_memory(state_dir, clock) as opened:
        yield opened


def at(offset: int) -> Position:
    return Position(offset=offset, fingerprint=f"print of {offset}")


def claim(run: str, time: datetime, span: timedelta = HOUR, key: JobKey = KEY) -> UniqueClaim:
    return UniqueClaim(key=key, run=run, worker="w", claim=f"claim of {run}", time=time, span=span)


def rows(state_dir: Path, table: str) -> int:
    with sqlite3.connect(state_dir / "memory.db") as database:
        (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - a test's own word
    database.close()
    return int(count)


async def test_nothing_is_remembered_at_first(memory: Memory) -> None:
    assert await memory.cancelled(KEY) is None
    assert await memory.position(Book.CANCELLED) is None
    assert not await memory.has_won(KEY, "r1")


async def test_a_cancel_and_how_far_was_read_outlive_the_process(state_dir: Path, clock: Clock) -> None:
    async with open_memory(state_dir, clock) as first:
        await first.add_cancels([Cancel(key=KEY, reason="typo")], at(7))
    async with open_memory(state_dir, clock) as second:
        assert await second.cancelled(KEY) == "typo"
        assert await second.position(Book.CANCELLED) == at(7)
        assert await second.position(Book.CLAIMS) is None


@pytest.mark.parametrize("other", [JobKey(tenant="acme", id="two"), JobKey(tenant="other", id="one")])
async def test_a_cancel_is_for_one_job_of_one_tenant(memory: Memory, other: JobKey) -> None:
    await memory.add_cancels([Cancel(key=KEY, reason="")], at(1))

    assert await memory.cancelled(KEY) == ""
    assert await memory.cancelled(other) is None


async def test_the_first_reason_stays_and_the_last_time_counts(memory: Memory, clock: Clock) -> None:
    await memory.add_cancels([Cancel(key=KEY, reason="first")], at(1))
    clock.now += timedelta(days=10)
    await memory.add_cancels([Cancel(key=KEY, reason="second")], at(2))
    clock.now += timedelta(days=10)

    assert await memory.cancelled(KEY) == "first"


async def test_a_cancel_is_forgotten_after_a_fortnight(memory: Memory, clock: Clock, state_dir: Path) -> None:
    await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
    clock.now += timedelta(days=14) - timedelta(seconds=1)
    assert await memory.cancelled(KEY) == "typo"
    clock.now += timedelta(seconds=1)
    assert await memory.cancelled(KEY) is None
    await memory.add_cancels([], at(2))
    assert rows(state_dir, "cancelled") == 0


async def test_of_more_cancels_than_are_known_by_heart_none_is_forgotten(state_dir: Path, clock: Clock) -> None:
    def key(number: int) -> JobKey:
        return JobKey(tenant="acme", id=f"j{number}")

    async with open_memory(state_dir, clock) as memory:
        await memory.add_cancels([Cancel(key=key(number), reason="all") for number in range(9_999)], at(1))
        assert await memory.cancelled(key(20_000)) is None
        await memory.add_cancels([Cancel(key=key(number), reason="more") for number in range(9_999, 10_002)], at(2))
        assert [await memory.cancelled(key(number)) for number in (0, 10_001, 20_000)] == ["all", "more", None]
    async with open_memory(state_dir, clock) as memory:
        assert [await memory.cancelled(key(number)) for number in (0, 10_001, 20_000)] == ["all", "more", None]


async def test_the_first_claim_wins(memory: Memory, clock: Clock) -> None:
    await memory.add_claims([claim("r1", clock.now), claim("r2", clock.now)], at(1))

    assert await memory.has_won(KEY, "r1")
    assert not await memory.has_won(KEY, "r2")
    assert await memory.is_taken(KEY, "r3", HOUR)
    assert not await memory.is_taken(KEY, "r1", HOUR)


async def test_a_claim_wins_again_once_the_first_one_has_run_out(memory: Memory, clock: Clock) -> None:
    later = clock.now + HOUR
    await memory.add_claims([claim("r1", clock.now), claim("r2", later - timedelta(microseconds=1))], at(1))
    await memory.add_claims([claim("r3", later)], at(2))

    assert not await memory.has_won(KEY, "r2")
    assert await memory.has_won(KEY, "r3")
    assert await memory.has_won(KEY, "r1")


@pytest.mark.parametrize(("first", "second"), [(HOUR, HOUR / 6), (HOUR / 6, HOUR)])
async def test_the_longer_span_of_two_claims_counts(
    memory: Memory, clock: Clock, first: timedelta, second: timedelta
) -> None:
    await memory.add_claims([claim("r1", clock.now, first), claim("r2", clock.now + HOUR / 2, second)], at(1))

    assert not await memory.has_won(KEY, "r2")


async def test_a_claim_that_lost_keeps_nobody_out(memory: Memory, clock: Clock) -> None:
    times = [clock.now, clock.now + HOUR * 0.9, clock.now + HOUR * 1.1]
    await memory.add_claims([claim(f"r{n}", time) for n, time in enumerate(times)], at(1))

    assert [await memory.has_won(KEY, f"r{n}") for n in range(3)] == [True, False, True]


async def test_a_claim_that_was_published_twice_counts_once(memory: Memory, clock: Clock) -> None:
    await memory.add_claims([claim("r1", clock.now), claim("r1", clock.now)], at(1))
    await memory.add_claims([claim("r1", clock.now + 2 * HOUR)], at(2))

    assert await memory.has_won(KEY, "r1")
    assert not await memory.is_taken(KEY, "r1", HOUR)


async def test_a_clock_that_is_behind_wins_nothing(memory: Memory, clock: Clock) -> None:
    await memory.add_claims([claim("r1", clock.now), claim("r2", clock.now - timedelta(minutes=5))], at(1))

    assert not await memory.has_won(KEY, "r2")


async def test_claims_are_forgotten_after_eight_days(memory: Memory, clock: Clock, state_dir: Path) -> None:
    await memory.add_claims([claim("r1", clock.now, timedelta(days=7))], at(1))
    clock.now += timedelta(days=7)
    await memory.add_claims([claim("r2", clock.now, timedelta(days=7))], at(2))
    assert rows(state_dir, "claims") == 2
    clock.now += timedelta(days=1)
    await memory.add_claims([], at(3))

    assert rows(state_dir, "claims") == 1
    assert await memory.has_won(KEY, "r2")


async def test_forgetting_one_book_keeps_the_other(memory: Memory, clock: Clock) -> None:
    await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
    await memory.add_claims([claim("r1", clock.now)], at(2))
    await memory.forget(Book.CLAIMS)

    assert await memory.position(Book.CLAIMS) is None
    assert not await memory.has_won(KEY, "r1")
    assert await memory.position(Book.CANCELLED) == at(1)
    assert await memory.cancelled(KEY) == "typo"


@pytest.mark.parametrize("damage", [b"this is no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
async def test_a_damaged_copy_is_made_anew(state_dir: Path, clock: Clock, damage: bytes) -> None:
    (state_dir / "memory.db").write_bytes(damage)

    async with open_memory(state_dir, clock) as memory:
        assert await memory.position(Book.CANCELLED) is None
        await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
        assert await memory.cancelled(KEY) == "typo"


async def test_a_copy_that_is_damaged_in_its_middle_is_made_anew(state_dir: Path, clock: Clock) -> None:
    path = state_dir / "memory.db"
    async with open_memory(state_dir, clock) as memory:
        keys = [JobKey(tenant="acme", id=f"j{number}") for number in range(5_000)]
        await memory.add_cancels([Cancel(key=key, reason="typo") for key in keys], at(1))
    whole = path.read_bytes()
    middle = len(whole) // 4
    path.write_bytes(whole[:middle] + b"\xff" * (2 * middle) + whole[3 * middle :])

    async with open_memory(state_dir, clock) as memory:
        assert await memory.position(Book.CANCELLED) is None
        await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(2))
        assert await memory.cancelled(KEY) == "typo"


async def test_a_copy_of_another_version_is_made_anew(state_dir: Path, clock: Clock) -> None:
    async with open_memory(state_dir, clock) as memory:
        await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
    with sqlite3.connect(state_dir / "memory.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    async with open_memory(state_dir, clock) as memory:
        assert await memory.position(Book.CANCELLED) is None
        assert await memory.cancelled(KEY) is None


async def test_a_folder_that_cannot_hold_the_copy_is_the_operators_to_mend(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfigError, match=r"worker\.state_dir"):
        async with open_memory(tmp_path / "missing", clock):
            pass


async def test_a_write_that_fails_is_told_and_changes_nothing(state_dir: Path, clock: Clock) -> None:
    async with open_memory(state_dir, clock) as memory:
        await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
        with sqlite3.connect(state_dir / "memory.db") as database:
            database.execute("DROP TABLE positions")
        database.close()
        with pytest.raises(OSError, match="memory"):
            await memory.add_cancels([Cancel(key=JobKey(tenant="acme", id="two"), reason="")], at(2))
        assert await memory.cancelled(JobKey(tenant="acme", id="two")) is None


async def test_only_its_owner_can_read_it(state_dir: Path, clock: Clock) -> None:
    async with open_memory(state_dir, clock) as memory:
        await memory.add_cancels([Cancel(key=KEY, reason="typo")], at(1))
        modes = {path.name: path.stat().st_mode & 0o777 for path in state_dir.glob("memory.db*")}

    assert set(modes.values()) == {0o600}

"""The journal as a file: what survives, what is refused, and what it costs."""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.attempts import make_attempt

from runner.adapters.journal import KEPT, open_journal
from runner.adapters.lock import WorkerLock
from runner.errors import ConfigError
from runner.job import Choices, EventKind, JobKey, Limits, Stack, StopReason
from runner.ports import ClaimRecord, Event, LogPosition, OpenClaim

KEY = JobKey(tenant="acme", id="one")
START = datetime(2030, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)

ENDLESS_WRITER = """
import asyncio, itertools, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from runner.adapters.journal import open_journal
from runner.job import JobKey
from runner.ports import ClaimRecord, OpenClaim

async def main():
    now = lambda: datetime.now(UTC)
    async with open_journal(Path(sys.argv[1]), now) as journal:
        for number in itertools.count():
            claim = f"{sys.argv[2]}-{number}"
            key = JobKey(tenant="acme", id=claim)
            await journal.claimed(
                ClaimRecord(claim=claim, key=key, container_name=claim, attempt=1, claimed=now())
            )
            print("claimed", claim, flush=True)
            if number % 2:
                await journal.ended(claim, finished=True)
                print("finished", claim, flush=True)

asyncio.run(main())
"""


def now() -> datetime:
    return START


def record(claim: str, claimed: datetime = START) -> ClaimRecord:
    return ClaimRecord(claim=claim, key=KEY, container_name=f"runner-w-{claim}", attempt=2, claimed=claimed)


async def test_what_was_written_is_there_in_the_next_life(state_dir: Path) -> None:
    deadline = START + timedelta(minutes=10)
    async with open_journal(state_dir, now) as journal:
        await journal.claimed(record("late", START + timedelta(seconds=1)))
        await journal.claimed(replace(record("early"), waited="e" * 64))
        await journal.started("early", "f" * 64, deadline)
        await journal.claimed(record("over"))
        await journal.ended("over", finished=True)

    async with open_journal(state_dir, now) as journal:
        assert await journal.open_claims() == (
            OpenClaim(record=replace(record("early"), waited="e" * 64), lives=0, container="f" * 64, deadline=deadline),
            OpenClaim(record=record("late", START + timedelta(seconds=1)), lives=0),
        )
        assert await journal.names() == {"e" * 64: "runner-w-early"}
        assert await journal.finished_lately(KEY, timedelta(minutes=10))


async def test_what_a_later_life_needs_to_go_on_is_there(state_dir: Path) -> None:
    stack = Stack(name="busybox", revision="1", image="sha256:" + 64 * "0", env={"A": "b"})
    choices = Choices(stack=stack, command=("sleep", "9"), limits=Limits(timeout=timedelta(minutes=3)))
    planned = replace(record("c1"), choices=choices)
    async with open_journal(state_dir, now) as journal:
        await journal.claimed(planned)
        await journal.stopping("c1", StopReason.CANCELLED, "enough")
        await journal.logged("c1", LogPosition(out=1, err=2, seq=3))
        await journal.adopted("c1")
        await journal.renew()

    async with open_journal(state_dir, now) as journal:
        [claim] = await journal.open_claims()
        assert claim == OpenClaim(
            record=planned,
            lives=1,
            stop=StopReason.CANCELLED,
            stop_detail="enough",
            logged=LogPosition(out=1, err=2, seq=3),
        )
        assert await journal.renewed() == START


async def test_of_more_jobs_than_are_known_by_heart_none_is_forgotten(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.adapters.journal._REMEMBERED", 3)
    keys = [JobKey(tenant="acme", id=f"j{number}") for number in range(6)]
    time = START

    async def known() -> list[bool]:
        return [await journal.finished_lately(key, timedelta(minutes=10)) for key in keys]

    async with open_journal(state_dir, lambda: time) as journal:
        for key in keys[:5]:
            time += timedelta(minutes=1)
            await journal.claimed(replace(record(key.id, time), key=key))
            await journal.ended(key.id, finished=True, owed=last_event(key, time))
        assert await known() == [True, True, True, True, True, False]
        time += timedelta(minutes=7, seconds=30)
        assert await known() == [False, False, True, True, True, False]
    async with open_journal(state_dir, lambda: time) as journal:
        assert await known() == [False, False, True, True, True, False]  # as in the file, which nobody has read yet
        assert not journal._finished
        await journal.load()
        assert len(journal._finished) == 3
        assert await known() == [False, False, True, True, True, False]
        time += timedelta(minutes=10)
        assert await known() == 6 * [False]


def last_event(key: JobKey, time: datetime) -> Event:
    job = replace(make_attempt("true").plan.job, key=key)
    return Event(kind=EventKind.FINISHED, submission=job, worker="w", claim=key.id, seq=3, attempt=1, time=time)


async def test_what_ended_lately_is_known_by_its_container(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal:
        assert await journal.renewed() == datetime(1970, 1, 1, tzinfo=UTC)
        for claim in ("open", "over"):
            await journal.claimed(record(claim))
        await journal.ended("over", finished=True)
    async with open_journal(state_dir, lambda: START + timedelta(minutes=5)) as journal:
        assert await journal.ended_lately(timedelta(minutes=5)) == {"runner-w-over"}
        assert await journal.ended_lately(timedelta(minutes=4)) == frozenset()


async def test_nothing_is_lost_when_the_daemon_is_killed_in_the_middle_of_writing(state_dir: Path) -> None:
    """Three lives in a row write as fast as they can, and are killed at some moment."""
    claimed: set[str] = set()
    finished: set[str] = set()
    for life, lines in enumerate((50, 131, 212)):
        async with asyncio.timeout(120):
            for line in await lines_until_killed(state_dir, f"life{life}", lines):
                word, claim = line.split()
                (claimed if word == "claimed" else finished).add(claim)

        async with open_journal(state_dir, lambda: datetime.now(UTC)) as journal:
            still_open = {claim.record.claim for claim in await journal.open_claims()}
            lost = [
                claim
                for claim in finished
                if not await journal.finished_lately(JobKey(tenant="acme", id=claim), timedelta(hours=1))
            ]
        assert lost == []
        assert still_open >= {claim for claim in claimed if int(claim.split("-")[1]) % 2 == 0}
        assert not still_open & finished


async def lines_until_killed(state_dir: Path, life: str, count: int) -> list[str]:
    """What the writer said, up to its death: it is killed after `count` lines, and goes on until the kill arrives."""
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENDLESS_WRITER, str(state_dir), life), stdout=asyncio.subprocess.PIPE
    )
    try:
        if writer.stdout is None:
            raise AssertionError
        lines = [(await writer.stdout.readline()).decode() for _ in range(count)]
    finally:
        writer.send_signal(signal.SIGKILL)
    rest = (await writer.stdout.read()).decode()
    await writer.wait()
    return [*lines, *(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))]


async def test_claims_that_ended_long_ago_are_forgotten_and_open_ones_never(state_dir: Path) -> None:
    time = START
    async with open_journal(state_dir, lambda: time) as journal:
        await journal.claimed(record("open"))
        await journal.claimed(record("over"))
        await journal.ended("over", finished=True)
        time += KEPT
        await journal.prune()
        assert await journal.finished_lately(KEY, KEPT)

        time += timedelta(hours=1)
        await journal.claimed(record("last"))
        await journal.ended("last", finished=False)

        assert not await journal.finished_lately(KEY, 2 * KEPT)
        assert [claim.record.claim for claim in await journal.open_claims()] == ["open"]


async def test_many_claims_at_once(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal, asyncio.TaskGroup() as tasks:
        for number in range(200):
            tasks.create_task(journal.claimed(record(f"c{number}")))
    async with open_journal(state_dir, now) as journal:
        assert len(await journal.open_claims()) == 200


async def test_a_cancelled_write_leaves_the_journal_usable(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal:
        for number in range(50):
            writing = asyncio.create_task(journal.claimed(record(f"c{number}")))
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        await journal.claimed(record("last"))

        assert "last" in {claim.record.claim for claim in await journal.open_claims()}


async def test_only_the_daemons_user_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    async with open_journal(folder, now) as journal:
        await journal.claimed(record("c1"))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


async def test_every_write_is_flushed_to_disk(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal:
        settings = [(await journal._run(f"PRAGMA {name}"))[0][0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


async def refusal(state_dir: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        async with open_journal(state_dir, now):
            pass
    return str(refused.value)


async def test_a_damaged_file_is_refused(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal:
        for number in range(500):
            await journal.claimed(record(f"c{number}"))
    path = state_dir / "journal.db"
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
    path.write_bytes(data)

    assert "damaged" in await refusal(state_dir)


async def test_a_file_of_another_kind_is_refused(state_dir: Path) -> None:
    (state_dir / "journal.db").write_text("Dear diary, " * 1000)

    assert "damaged or no journal" in await refusal(state_dir)


async def test_the_database_of_another_program_is_refused_and_left_alone(state_dir: Path) -> None:
    path = state_dir / "journal.db"
    other = sqlite3.connect(path)
    other.executescript("CREATE TABLE recipes (name TEXT); PRAGMA user_version = 1")
    other.close()
    before = path.read_bytes()

    assert "belongs to another program" in await refusal(state_dir)
    assert path.read_bytes() == before


async def test_a_newer_journal_is_refused(state_dir: Path) -> None:
    async with open_journal(state_dir, now) as journal:
        await journal._run("PRAGMA user_version = 99")

    assert "newer version" in await refusal(state_dir)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    message = await refusal(tmp_path / "file" / "state")
    assert message.startswith("worker.state_dir: ")
    assert "cannot be written" in message


def refused_by(lock: WorkerLock) -> bool:
    try:
        with lock.hold():
            return False
    except ConfigError as error:
        return f"in use by the process {os.getpid()}" in str(error)


def test_one_holder_at_a_time_has_the_lock(state_dir: Path) -> None:
    lock, other = WorkerLock(state_dir), WorkerLock(state_dir)

    with lock.hold():
        assert refused_by(other)
        assert refused_by(other)
    with other.hold():
        assert refused_by(lock)


async def test_the_lock_dies_with_its_holder(state_dir: Path) -> None:
    program = (
        "import sys, pathlib; from runner.adapters.lock import WorkerLock\n"
        "with WorkerLock(pathlib.Path(sys.argv[1])).hold(): print('held', flush=True); sys.stdin.read()"
    )
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(state_dir)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        if holder.stdout is None:
            raise AssertionError
        async with asyncio.timeout(30):
            assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), WorkerLock(state_dir).hold():
            pass
    finally:
        holder.kill()
        await holder.wait()

    assert not refused_by(WorkerLock(state_dir))


def test_a_lock_in_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"worker\.state_dir"), WorkerLock(tmp_path / "file").hold():
        pass

"""The history on a real disk: what it keeps, for how long, and what it does when the disk does not play along."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.adapters.history import History, open_history
from runner.adapters.history.store import Store
from runner.codec import Notice, encode_batch
from runner.job import Bytes, EventKind, JobKey, Line, Stream
from runner.ports import Batch, LogPosition

KEY = JobKey(tenant="acme", id="one")
START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(
    folder: Path, clock: Clock, *, max_age: timedelta = 7 * DAY, max_bytes: int = 2**30
) -> AbstractAsyncContextManager[History]:
    return open_history(folder, max_age=max_age, max_bytes=Bytes(max_bytes), now=clock)


@pytest.fixture
async def history(state_dir: Path, clock: Clock) -> AsyncIterator[History]:
    async with opened(state_dir, clock) as history:
        yield history


def notice(kind: EventKind, *, claim: str = "c1", key: JobKey = KEY, at: datetime = START, **fields: object) -> Notice:
    body: dict[str, object] = {
        "v": 1,
        "event": kind.value,
        "id": key.id,
        "tenant": key.tenant,
        "claim": claim,
        "time": at.isoformat(),
        "container": None,
        "progress": None,
        "outcome": None,
        "reason": None,
        "times": {"published": "P", "claimed": None, "started": None, "ended": None},
        "usage": {"cpu_seconds": None},
        "tail": [],
    }
    return Notice(
        key=f"{key.tenant}.{key.id}.{kind}",
        message_id=f"{key}/{claim}",
        kind=kind,
        tenant=key.tenant,
        time=at,
        body=json.dumps(body | fields),
    )


def batch(number: int, text: str, *, start: int, claim: str = "c1", key: JobKey = KEY, end: bool = False) -> Batch:
    return Batch(
        key=key,
        claim=claim,
        seq=number,
        out=start,
        err=0,
        until_out=start + len(text) + 1,
        lines=[Line(time=START, stream=Stream.OUT, text=text)],
        end=end,
    )


async def written(history: History) -> None:
    async with asyncio.timeout(60):
        await history.written(60)


async def log_of(history: History, claim: str = "c1") -> list[bytes]:
    return [body async for body in history.log(claim)]


async def test_a_finished_job_is_kept_as_it_was_told(history: History) -> None:
    history.note(notice(EventKind.CLAIMED))
    last = notice(EventKind.FINISHED, outcome="failed", reason="exited with 3", usage={"cpu_seconds": 0.5})
    history.note(last)
    await written(history)
    (kept,) = await history.find(KEY)
    assert (kept.claim, kept.state, kept.record) == ("c1", "finished", json.loads(last.body))


async def test_a_running_job_is_known_by_all_that_it_told_so_far(history: History) -> None:
    for event in (
        notice(EventKind.CLAIMED),
        notice(EventKind.STARTED, at=START + timedelta(seconds=1), container="abc"),
        notice(EventKind.PROGRESS, at=START + timedelta(seconds=2), progress=50),
    ):
        history.note(event)
        await written(history)
    (kept,) = await history.find(KEY)
    assert kept.state == "running"
    assert kept.record is not None
    assert (kept.record["event"], kept.record["container"], kept.record["progress"]) == ("progress", "abc", 50)
    assert kept.record["times"] == {
        "published": "P",
        "claimed": "2030-01-01T00:00:00+00:00",
        "started": "2030-01-01T00:00:01+00:00",
        "ended": None,
    }


async def test_nothing_that_comes_late_changes_a_finished_job(history: History) -> None:
    history.note(notice(EventKind.FINISHED, outcome="succeeded"))
    history.note(notice(EventKind.PROGRESS, progress=99))
    history.note(notice(EventKind.DUPLICATE, claim="c2"))
    await written(history)
    (kept,) = await history.find(KEY)
    assert (kept.state, (kept.record or {})["event"]) == ("finished", "finished")


async def test_only_the_last_time_that_a_job_was_passed_on_is_kept(history: History) -> None:
    for number in range(3):
        history.note(notice(EventKind.DEFERRED, claim=f"c{number}", reason="no such stack"))
    await written(history)
    assert [kept.claim for kept in await history.find(KEY)] == ["c2"]
    history.note(notice(EventKind.CLAIMED, claim="c3"))
    await written(history)
    assert [kept.claim for kept in await history.find(KEY)] == ["c3"]


async def test_each_attempt_is_kept(history: History) -> None:
    history.note(notice(EventKind.RETRYING, claim="c1", outcome="failed"))
    history.note(notice(EventKind.FINISHED, claim="c2", outcome="succeeded"))
    await written(history)
    assert [(kept.claim, kept.state) for kept in await history.find(KEY)] == [("c1", "retrying"), ("c2", "finished")]
    assert await history.find(JobKey(tenant="other", id="one")) == []


async def test_a_log_is_kept_in_order_without_what_is_only_shown_live(history: History) -> None:
    first, second = batch(1, "ä", start=0), batch(2, "two", start=2, end=True)
    live = Batch(key=KEY, claim="c1", seq=None, out=2, err=0, until_out=9, lines=[])
    for one in (first, live, second):
        history.offer(one)
    history.offer(batch(1, "other", start=0, claim="c2"))
    await written(history)
    assert await log_of(history) == [encode_batch(first), encode_batch(second)]
    assert await history.position("c1") == LogPosition(out=6)
    assert await history.position("c9") is None


async def test_a_long_log_is_read_whole(history: History) -> None:
    batches = [batch(number, "x" * 100, start=101 * (number - 1)) for number in range(1, 101)]
    for one in batches:
        history.offer(one)
    await written(history)
    assert await log_of(history) == [encode_batch(one) for one in batches]


async def test_what_an_earlier_life_told_is_kept_once(state_dir: Path, clock: Clock) -> None:
    async with opened(state_dir, clock) as history:
        history.offer(batch(1, "one", start=0))
        history.offer(batch(2, "two", start=4))
    async with opened(state_dir, clock) as history:
        assert await history.position("c1") == LogPosition(out=8)
        history.offer(batch(2, "two", start=4))
        history.offer(batch(3, "three", start=8, end=True))
        await written(history)
        texts = [json.loads(body)["lines"][0]["m"] for body in await log_of(history)]
    assert texts == ["one", "two", "three"]


async def test_the_latest_jobs_come_first_and_can_be_chosen(history: History) -> None:
    for number, (tenant, outcome) in enumerate([("acme", "succeeded"), ("acme", "failed"), ("other", "failed")]):
        key, at = JobKey(tenant=tenant, id=f"j{number}"), START + timedelta(seconds=number)
        history.note(notice(EventKind.FINISHED, claim=f"c{number}", key=key, at=at, outcome=outcome))
    history.note(notice(EventKind.CLAIMED, claim="c3", key=JobKey(tenant="acme", id="j3"), at=START + DAY))
    await written(history)

    async def ids(tenant: str | None = None, state: str | None = None, most: int = 10) -> list[str]:
        return [(kept.record or {})["id"] for kept in await history.recent(tenant, state, most)]

    assert await ids() == ["j3", "j2", "j1", "j0"]
    assert await ids(most=2) == ["j3", "j2"]
    assert await ids(tenant="acme", state="finished") == ["j1", "j0"]
    assert await ids(state="failed") == ["j2", "j1"]


async def test_what_is_too_old_is_forgotten(state_dir: Path, clock: Clock) -> None:
    async with opened(state_dir, clock, max_age=DAY) as history:
        history.note(notice(EventKind.FINISHED))
        history.offer(batch(1, "one", start=0))
        clock.now = START + timedelta(hours=25)
        history.note(notice(EventKind.FINISHED, claim="c2", at=clock.now))
        await written(history)
        assert [kept.claim for kept in await history.find(KEY)] == ["c2"]
        assert await log_of(history) == []


async def test_it_never_grows_beyond_its_bounds_and_keeps_the_newest(state_dir: Path, clock: Clock) -> None:
    most = 2 * 2**20
    async with opened(state_dir, clock, max_bytes=most) as history:
        for number in range(200):
            text = os.urandom(25_000).hex()  # which cannot be deflated to less than a half
            clock.now += timedelta(seconds=1)
            claim = f"c{number}"
            history.offer(batch(1, text, start=0, claim=claim))
            history.note(notice(EventKind.FINISHED, claim=claim, at=clock.now))
            await written(history)
        kept = [one.claim for one in await history.find(KEY)]
        assert len(await log_of(history, "c199")) == 1
    assert 20 < len(kept) < 100
    assert kept == [f"c{number}" for number in range(200 - len(kept), 200)]
    assert (state_dir / "history.db").stat().st_size < most * 1.1


async def test_a_job_that_runs_is_forgotten_last(state_dir: Path, clock: Clock) -> None:
    async with opened(state_dir, clock, max_bytes=400_000) as history:
        history.note(notice(EventKind.CLAIMED, claim="running"))
        for number in range(20):
            history.offer(batch(1, os.urandom(25_000).hex(), start=0, claim=f"c{number}"))
            history.note(notice(EventKind.FINISHED, claim=f"c{number}", at=START + DAY))
            await written(history)
        assert "running" in [kept.claim for kept in await history.find(KEY)]


_DOOMED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from runner.adapters.history import open_history
from runner.job import Bytes, JobKey, Line, Stream
from runner.ports import Batch

NOW = datetime(2030, 1, 1, tzinfo=UTC)

def batch(number):
    lines = [Line(time=NOW, stream=Stream.OUT, text=str(number))]
    key = JobKey(tenant="acme", id="one")
    return Batch(key=key, claim="c1", seq=number, out=number, err=0, until_out=number + 1, lines=lines)

async def main():
    async with open_history(Path(sys.argv[1]), max_age=timedelta(days=7), max_bytes=Bytes(2**30), now=lambda: NOW) as h:
        for number in range(100):
            h.offer(batch(number))
        await h.written(20)
        for number in range(100, 110):
            h.offer(batch(number))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_written_survives_kill_9(state_dir: Path, clock: Clock) -> None:
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _DOOMED, str(state_dir)], check=False)
    assert done.returncode == -9
    async with opened(state_dir, clock) as history:
        assert [json.loads(body)["seq"] for body in await log_of(history)] == list(range(100))


@pytest.mark.parametrize("damage", ["garbage", "another version"])
async def test_a_file_that_cannot_be_used_is_put_aside(state_dir: Path, clock: Clock, damage: str) -> None:
    path = state_dir / "history.db"
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 1000)
    else:
        database = sqlite3.connect(path)
        database.executescript("CREATE TABLE other (x); PRAGMA user_version = 99;")
        database.close()
    async with opened(state_dir, clock) as history:
        history.note(notice(EventKind.FINISHED))
        await written(history)
        assert len(await history.find(KEY)) == 1
    assert (state_dir / "history.unusable").exists()


_FULL = """
import asyncio, resource, signal, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from runner.adapters.history import open_history
from runner.job import Bytes, JobKey, Line, Stream
from runner.ports import Batch

NOW = datetime(2030, 1, 1, tzinfo=UTC)

async def main():
    async with open_history(Path(sys.argv[1]), max_age=timedelta(days=7), max_bytes=Bytes(2**30), now=lambda: NOW) as h:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for number in range(50):
            lines = [Line(time=NOW, stream=Stream.OUT, text=__import__("os").urandom(10_000).hex())]
            key = JobKey(tenant="acme", id="one")
            h.offer(Batch(key=key, claim="c1", seq=number, out=number, err=0, until_out=number + 1, lines=lines))
            await h.written(20)
        print("went on")

asyncio.run(main())
"""


async def test_a_disk_that_is_full_is_a_warning(state_dir: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _FULL, str(state_dir)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "went on\n"
    assert done.stderr.count("the history cannot be used") == 1


async def test_a_log_is_written_without_the_events_beside_it(history: History) -> None:
    history.note(notice(EventKind.CLAIMED))
    history.offer(batch(1, "one", start=0))
    history.hurry()
    await history.hurried(20)
    (kept,) = await history.find(KEY)
    assert (kept.log_bytes > 0, kept.record) == (True, None)
    history.note(last := notice(EventKind.FINISHED, outcome="succeeded"))
    await written(history)
    (kept,) = await history.find(KEY)
    assert (kept.state, kept.record) == ("finished", json.loads(last.body))


async def test_without_a_folder_there_is_no_history_and_no_error(state_dir: Path, clock: Clock) -> None:
    async with opened(state_dir / "missing", clock) as history:
        history.note(notice(EventKind.FINISHED))
        await written(history)
        assert await history.find(KEY) == []


async def test_memory_is_bounded_while_nothing_can_be_written(history: History) -> None:
    # The loop does not turn meanwhile, and so nothing is written.
    for number in range(5000):
        history.offer(batch(number, "x", start=2 * number))
    await written(history)
    assert len(await log_of(history)) == 512


async def test_only_the_first_waits_for_a_disk_that_does_not_answer(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    write = Store.write

    def hold(store: Store, told: Sequence[Notice | Batch], now: datetime) -> None:
        held.wait(20)
        write(store, told, now)

    monkeypatch.setattr(Store, "write", hold)
    history.offer(batch(1, "one", start=0))
    begun = asyncio.get_running_loop().time()
    await history.written(0.2)
    await asyncio.gather(*(history.written(20) for _ in range(10)))
    assert asyncio.get_running_loop().time() - begun < 10
    held.set()
    history.note(notice(EventKind.FINISHED))
    assert await log_of(history) != []
    await written(history)
    assert len(await history.find(KEY)) == 1

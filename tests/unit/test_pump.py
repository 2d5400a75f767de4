"""What a job writes is on its way before anybody else has had a turn, if it is the first that it writes."""

import asyncio

import pytest
from tests.fake_journal import FakeJournal
from tests.fakes import Clock, FakeLogSink, FakeObserver

from runner import logs
from runner.job import Bytes, JobKey, Stream
from runner.logs import BATCH_BYTES, JobLog
from runner.ports import LogPosition
from runner.pump import LogPump

KEY = JobKey(tenant="acme", id="job-1")


def pump(sink: FakeLogSink, known: LogPosition | None = None) -> LogPump:
    clock = Clock()
    return LogPump(
        key=KEY,
        claim="c1",
        log=JobLog(KEY, "c1", Bytes(4096)),
        sink=sink,
        journal=FakeJournal(clock),
        observer=FakeObserver(),
        now=clock,
        known=known or LogPosition(),
    )


async def test_a_first_line_is_offered_by_whoever_wrote_it() -> None:
    sink = FakeLogSink()
    pump(sink).write(Stream.OUT, b"one\n")
    assert [[line.text for line in batch.lines] for batch in sink.batches] == [["one"]]


@pytest.mark.parametrize("first", [b"on", b"one\ntw"], ids=["half-a-line", "a-line-and-a-half"])
async def test_what_may_go_on_is_not_cut_for_it(first: bytes) -> None:
    sink = FakeLogSink()
    pump(sink).write(Stream.OUT, first)
    assert sink.batches == []


async def test_later_lines_wait_for_the_pump() -> None:
    sink = FakeLogSink()
    later = pump(sink)
    for line in (b"one\n", b"two\n"):
        later.write(Stream.OUT, line)
    assert [line.text for batch in sink.batches for line in batch.lines] == ["one"]


async def test_what_an_earlier_life_has_offered_is_not_offered_again() -> None:
    sink = FakeLogSink()
    pump(sink, LogPosition(out=4, seq=1)).write(Stream.OUT, b"one\n")
    assert sink.batches == []


async def test_it_looks_early_only_for_what_is_due_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BATCH_SECONDS", 300.0)  # this machine may be slow
    sink = FakeLogSink()
    later = pump(sink)
    later.log = JobLog(KEY, "c1", Bytes(4 * BATCH_BYTES))
    running = asyncio.create_task(later.run())
    try:
        later.write(Stream.OUT, b"one\n")
        later.write(Stream.OUT, b"tw")
        await turns()
        assert len(sink.batches) == 1
        later.write(Stream.OUT, b"o")
        assert not later._written.is_set()
        later.write(Stream.OUT, BATCH_BYTES * b"x")
        await turns()
        assert len(sink.batches) == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_position_is_on_record_once_the_log_is_safe_up_to_it_and_only_once() -> None:
    sink = FakeLogSink()
    noting = pump(sink)
    positions = list[LogPosition]()

    async def logged(_claim: str, position: LogPosition) -> None:
        positions.append(position)

    noting.journal.logged = logged  # type: ignore[method-assign, assignment]
    sink.stuck = True
    noting.write(Stream.OUT, b"one\n")
    await noting.note_position()
    assert positions == []
    sink.stuck = False
    for _ in range(2):
        await noting.note_position()
    assert positions == [LogPosition(out=4, err=0, seq=1)]


async def turns() -> None:
    """Let the others have some turns of the event loop, in much less time than a batch waits."""
    for _ in range(10):
        await asyncio.sleep(0)

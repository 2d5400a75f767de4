"""The log of one claim: nothing is lost, cut wrongly or counted wrongly, and memory is bounded."""

import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.job import Bytes, JobKey, Line, LogStats, Stream
from runner.logs import (
    BATCH_BYTES,
    BATCH_LINES,
    BATCH_SECONDS,
    GATHER_SECONDS,
    LINE_BYTES,
    LIVE_BYTES_AT_ONCE,
    LIVE_BYTES_PER_SECOND,
    TAIL_TEXT,
    JobLog,
)
from runner.ports import Batch

KEY = JobKey(tenant="acme", id="one")
START = datetime(2030, 1, 1, tzinfo=UTC)
MIB = 2**20

Write = tuple[Stream, bytes, float]


def new_log(cap: int = 4 * MIB) -> JobLog:
    return JobLog(KEY, "claim", Bytes(cap))


class Writer:
    """Writes into a log at times of its own, and takes what is due at once, as the executor does."""

    def __init__(self, log: JobLog) -> None:
        self.log = log
        self.now = 100.0
        self.batches: list[Batch] = []
        self.raw = {Stream.OUT: bytearray(), Stream.ERR: bytearray()}

    @property
    def at(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def write(self, stream: Stream, data: bytes, *, after: float = 0.0) -> None:
        self.now += after
        self.raw[stream] += data
        self.log.write(stream, data, at=self.at, now=self.now)
        self.take()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take()

    def take(self) -> None:
        while (due := self.log.due) is not None and due <= self.now:
            self.batches += taken(self.log, self.now)

    def finish(self) -> None:
        self.batches += self.log.finish(self.at)

    @property
    def kept(self) -> list[Batch]:
        return [batch for batch in self.batches if batch.seq is not None]

    @property
    def live(self) -> list[Batch]:
        return [batch for batch in self.batches if batch.seq is None]


def taken(log: JobLog, now: float) -> list[Batch]:
    """All that is due."""
    batches = []
    while (batch := log.take(now)) is not None:
        batches.append(batch)
    return batches


def written(writes: Iterable[Write], cap: int = 4 * MIB) -> Writer:
    writer = Writer(new_log(cap))
    for stream, data, after in writes:
        writer.write(stream, data, after=after)
    writer.finish()
    return writer


def text(lines: Iterable[Line], stream: Stream) -> str:
    return "".join(line.text + ("" if line.partial else "\n") for line in lines if line.stream is stream)


def all_lines(batches: Iterable[Batch]) -> list[Line]:
    return [line for batch in batches for line in batch.lines]


some_bytes = st.one_of(
    st.binary(max_size=60),
    st.text("añ漢🙂\n\r", max_size=60).map(lambda value: value.encode()),
    st.sampled_from(
        [b"\n" * 50, b"x" * 20_000, "漢".encode() * 9_000, b"\xf0\x9f", b"\x99\x82", b"\r\n", b"\xe2\x82\n", b""]
    ),
)
streams = st.sampled_from([Stream.OUT, Stream.ERR])
many_writes = st.lists(st.tuples(streams, some_bytes, st.sampled_from([0.0, 0.001, 0.05, 0.2])), max_size=40)


@settings(max_examples=25, deadline=None)
@given(many_writes)
def test_nothing_is_lost_or_changed_under_the_cap_whatever_the_chunks(writes: list[Write]) -> None:
    writer = written(writes)

    lines = all_lines(writer.kept)
    for stream in (Stream.OUT, Stream.ERR):
        assert text(lines, stream) == writer.raw[stream].decode("utf-8", "replace")
    assert writer.log.stats(complete=True) == LogStats(
        stdout_bytes=len(writer.raw[Stream.OUT]), stderr_bytes=len(writer.raw[Stream.ERR]), complete=True
    )


@settings(max_examples=25, deadline=None)
@given(many_writes)
def test_what_lies_between_two_offsets_is_what_the_batch_says(writes: list[Write]) -> None:
    writer = written(writes)

    for stream in (Stream.OUT, Stream.ERR):
        ends = [*(offset(batch, stream) for batch in writer.kept[1:]), len(writer.raw[stream])]
        for batch, end in zip(writer.kept, ends, strict=True):
            raw = writer.raw[stream][offset(batch, stream) : end]
            assert raw.decode("utf-8", "replace") == text(batch.lines, stream)


def offset(batch: Batch, stream: Stream) -> int:
    return batch.out if stream is Stream.OUT else batch.err


ascii_writes = st.lists(
    st.tuples(
        streams,
        st.sampled_from([b"a", b"\n", b"bc\n", b"d" * 700, b"e\n" * 300, (b"f" * 79 + b"\n") * 500, b"g" * 40_000]),
        st.sampled_from([0.0, 0.001, 0.05, 0.2]),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None)
@given(ascii_writes, st.integers(0, 60_000))
def test_head_and_omitted_and_tail_make_the_whole(writes: list[Write], cap: int) -> None:
    writer = written(writes, cap)
    lines = all_lines(writer.kept)
    stats = writer.log.stats(complete=False)
    gaps = [index for index, line in enumerate(lines) if line.stream is Stream.SYS]

    assert len(gaps) == (1 if stats.omitted_bytes else 0)
    split = gaps[0] if gaps else len(lines)
    omitted = b""
    for stream, raw in writer.raw.items():
        head, tail = text(lines[:split], stream).encode(), text(lines[split:], stream).encode()
        assert raw.startswith(head)
        assert raw.endswith(tail)
        assert not gaps or len(head) <= cap // 2
        omitted += raw[len(head) : len(raw) - len(tail)]
    assert (stats.omitted_bytes, stats.omitted_lines) == (len(omitted), omitted.count(b"\n"))
    if gaps:
        assert lines[split].text == f"… {stats.omitted_lines} lines, {stats.omitted_bytes} bytes omitted …"


@settings(max_examples=25, deadline=None)
@given(ascii_writes, st.integers(0, 60_000))
def test_live_batches_are_true_and_have_no_gaps_inside(writes: list[Write], cap: int) -> None:
    writer = written(writes, cap)

    for batch in writer.live:
        for stream, raw in writer.raw.items():
            assert raw[offset(batch, stream) :].startswith(text(batch.lines, stream).encode())


@settings(max_examples=25, deadline=None)
@given(many_writes, st.integers(0, 60_000))
def test_batches_are_numbered_from_one_and_the_last_alone_is_the_end(writes: list[Write], cap: int) -> None:
    kept = written(writes, cap).kept

    assert [batch.seq for batch in kept] == list(range(1, len(kept) + 1))
    assert [batch.end for batch in kept] == [False] * (len(kept) - 1) + [True]


def test_exactly_the_cap_is_kept_without_a_gap() -> None:
    writer = written([(Stream.OUT, b"0123456789", 0.0)] * 10, cap=100)

    assert text(all_lines(writer.kept), Stream.OUT) == "0123456789" * 10
    assert not writer.log.stats(complete=True).omitted_bytes


def test_one_byte_over_the_cap_leaves_one_byte_out() -> None:
    writer = written([(Stream.OUT, b"a" * 50 + b"X" + b"b" * 50, 0.0)], cap=100)

    lines = [(line.stream, line.text, line.partial) for line in all_lines(writer.kept)]
    assert lines == [
        (Stream.OUT, "a" * 50, True),
        (Stream.SYS, "… 0 lines, 1 bytes omitted …", False),
        (Stream.OUT, "b" * 50, True),
    ]
    assert writer.kept[-1].out == 51


def test_the_tail_begins_with_a_whole_line() -> None:
    line = b"a line of forty characters, as most are\n"
    writer = written([(Stream.OUT, line * 1000, 0.0)], cap=10_010)

    after_gap = [part.text for part in writer.kept[-1].lines][1:]
    assert set(after_gap) == {line.decode().rstrip()}


def test_the_tail_begins_with_a_whole_character() -> None:
    writer = written([(Stream.OUT, "漢".encode() * 1000, 0.0)], cap=1000)

    assert set(text(writer.kept[-1].lines, Stream.OUT)) == {"漢"}


def test_a_character_cut_by_the_first_half_is_not_harmed() -> None:
    writer = written([(Stream.ERR, "漢".encode() * 33, 0.0)], cap=100)

    assert text(all_lines(writer.kept), Stream.ERR) == "漢" * 33


def test_the_first_batch_is_due_at_once_and_no_two_within_100_ms() -> None:
    log = new_log()
    log.write(Stream.OUT, b"one\n", at=START, now=5.0)
    assert due(log) == 5.0
    assert [line.text for batch in taken(log, 5.0) for line in batch.lines] == ["one"]

    log.write(Stream.OUT, b"two\n", at=START, now=5.02)
    log.write(Stream.OUT, b"three\n", at=START, now=5.05)
    assert due(log) == 5.0 + BATCH_SECONDS
    assert taken(log, 5.05) == []
    assert [line.text for batch in taken(log, 5.1) for line in batch.lines] == ["two", "three"]
    assert due(log) is None


def test_a_line_after_a_pause_waits_only_for_those_of_its_moment() -> None:
    log = new_log()
    log.write(Stream.OUT, b"one\n", at=START, now=5.0)
    taken(log, 5.0)
    log.write(Stream.OUT, b"two\nthr", at=START, now=6.0)
    assert due(log) == 6.0 + GATHER_SECONDS
    log.write(Stream.ERR, b"beside\n", at=START, now=6.005)
    (batch,) = taken(log, 6.01)
    assert [(line.text, line.partial) for line in batch.lines] == [("two", False), ("beside", False)]

    assert due(log) == 6.01 + BATCH_SECONDS
    log.write(Stream.OUT, b"ee\n", at=START, now=6.02)
    (batch,) = taken(log, 6.01 + BATCH_SECONDS)
    assert [(line.text, line.partial) for line in batch.lines] == [("three", False)]
    assert due(log) is None


def test_a_line_that_may_go_on_waits_100_ms() -> None:
    log = new_log()
    log.write(Stream.OUT, b"one\n", at=START, now=5.0)
    taken(log, 5.0)
    log.write(Stream.OUT, b"two", at=START, now=6.0)
    assert due(log) == 6.0 + BATCH_SECONDS
    (batch,) = taken(log, 6.0 + BATCH_SECONDS)
    assert [(line.text, line.partial) for line in batch.lines] == [("two", True)]


def due(log: JobLog) -> float | None:
    return log.due


def test_a_full_batch_is_due_at_once() -> None:
    writer = Writer(new_log())
    writer.write(Stream.OUT, b"first\n")
    writer.write(Stream.OUT, b"x" * 79 + b"\n", after=1.0)
    assert len(writer.batches) == 1

    writer.write(Stream.OUT, (b"x" * 79 + b"\n") * 1000)

    assert len(writer.batches) == 2
    assert BATCH_BYTES <= len(text(writer.batches[1].lines, Stream.OUT)) <= BATCH_BYTES + 8192


def test_empty_lines_fill_a_batch_by_their_number() -> None:
    writer = written([(Stream.OUT, b"\n" * 40_000, 0.0)])

    assert max(len(batch.lines) for batch in writer.batches) < 2 * BATCH_LINES
    assert text(all_lines(writer.kept), Stream.OUT) == "\n" * 40_000


def test_an_unfinished_line_is_sent_and_continued() -> None:
    writer = Writer(new_log())
    writer.write(Stream.OUT, b"Are you ")
    writer.write(Stream.OUT, b"sure? ", after=0.2)
    writer.wait(0.1)
    writer.write(Stream.OUT, b"yes\n", after=0.2)
    writer.finish()

    lines = [(line.text, line.partial) for line in all_lines(writer.batches)]
    assert lines == [("Are you ", True), ("sure? ", True), ("yes", False)]


def test_a_long_line_comes_in_parts() -> None:
    data = b"x" * (2 * LINE_BYTES + 10)
    lines = all_lines(written([(Stream.OUT, data + b"\n" + b"y" * LINE_BYTES + b"\n", 0.0)]).kept)

    assert [(len(line.text), line.partial) for line in lines] == [
        (LINE_BYTES, True),
        (LINE_BYTES, True),
        (10, False),
        (LINE_BYTES, False),
    ]


def test_carriage_returns_are_left_alone() -> None:
    lines = all_lines(written([(Stream.OUT, b"10 %\r20 %\r\ndone\r\n", 0.0)]).kept)

    assert [line.text for line in lines] == ["10 %\r20 %\r", "done\r"]


def test_lines_of_both_streams_come_in_the_order_in_which_they_ended() -> None:
    writes = [
        (Stream.OUT, b"begun first, ", 0.0),
        (Stream.ERR, b"ended first\n", 0.001),
        (Stream.OUT, b"ended second\n", 0.001),
        (Stream.ERR, b"third\n", 0.001),
    ]
    log = new_log()
    for index, (stream, data, _) in enumerate(writes):
        log.write(stream, data, at=START + timedelta(seconds=index), now=float(index) / 1000)
    (batch,) = log.finish(START)

    shown = [(line.stream, line.text, (line.time - START).seconds) for line in batch.lines]
    assert shown == [
        (Stream.ERR, "ended first", 1),
        (Stream.OUT, "begun first, ended second", 2),
        (Stream.ERR, "third", 3),
    ]


def test_what_is_beyond_the_first_half_is_shown_live_at_a_bounded_rate() -> None:
    writer = Writer(new_log(MIB))
    writer.write(Stream.OUT, b"x" * (MIB // 2))
    line = b"y" * 79 + b"\n"
    for _ in range(1000):
        writer.write(Stream.OUT, line * 100, after=0.01)

    shown = sum(len(text(batch.lines, Stream.OUT)) for batch in writer.live)
    assert 0.8 * LIVE_BYTES_PER_SECOND * 10 < shown <= LIVE_BYTES_PER_SECOND * 10 + LIVE_BYTES_AT_ONCE
    assert {line.text for line in all_lines(writer.live)} == {"y" * 79}
    assert 80 <= len(writer.live) <= 100


def test_a_slow_writer_is_shown_live_without_gaps() -> None:
    writer = Writer(new_log(1000))
    writer.write(Stream.OUT, b"x" * 499 + b"\n")
    for number in range(200):
        writer.write(Stream.OUT, f"step {number}\n".encode(), after=0.25)
    writer.wait(0.1)

    assert [line.text for line in all_lines(writer.live)] == [f"step {number}" for number in range(200)]


def test_lines_of_the_second_half_keep_their_times() -> None:
    writer = Writer(new_log(1000))
    writer.write(Stream.OUT, b"x" * 499 + b"\n")
    for number in range(30):
        writer.write(Stream.ERR if number % 2 else Stream.OUT, f"{number}\n".encode(), after=1.0)
    writer.finish()

    times = {line.text: (line.time - START).total_seconds() for line in writer.kept[-1].lines}
    assert times == {str(number): 101.0 + number for number in range(30)}


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    log = new_log(100)
    log.write(Stream.OUT, b"x" * 50, at=START, now=0.0)
    log.write(Stream.OUT, b"before\n", at=START, now=1.0)
    log.write(Stream.OUT, b"after\n", at=START - timedelta(days=3), now=2.0)

    times = [(line.text, line.time) for line in all_lines(log.finish(START))]
    assert times[1:] == [("before", START), ("after", START - timedelta(days=3))]


def test_what_nobody_takes_yet_waits_and_is_not_lost() -> None:
    log, raw = new_log(), b"".join(b"%d\n" % number for number in range(200_000))
    tracemalloc.start()
    try:
        for start in range(0, len(raw), 4096):
            log.write(Stream.OUT, raw[start : start + 4096], at=START, now=start / 1000)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert held < 1.5 * len(raw)
    batches = [*taken(log, 10_000.0), *log.finish(START)]
    assert text(all_lines(batches), Stream.OUT) == raw.decode()
    assert max(len(batch.lines) for batch in batches) < 2 * BATCH_LINES


def memory_held(chunks: Iterable[tuple[Stream, bytes]], cap: int) -> int:
    now = 0.0
    tracemalloc.start()
    try:
        log = new_log(cap)
        for stream, data in chunks:
            now += 0.02  # too far apart to share a mark
            log.write(stream, data, at=START + timedelta(seconds=now), now=now)
            taken(log, now)
        taken(log, now + 1)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("by_turns", "data", "count"),
    [
        pytest.param(False, b"x" * 79 + b"\n", 2_000, id="a line at a time"),
        pytest.param(False, b"\n" * 32_000, 4, id="empty lines"),
        pytest.param(False, b"x" * 32_000, 20, id="no newline"),
        pytest.param(True, b"x", 6_000, id="bytes by turns"),
    ],
)
def test_memory_is_bounded(by_turns: bool, data: bytes, count: int) -> None:  # noqa: FBT001
    """Half the cap, its index, what Python allocates ahead, and a block that is half gone."""
    half = 32 * 1024
    head = (Stream.OUT, b"x" * half)

    held = memory_held(
        [head, *((Stream.ERR if by_turns and number % 2 else Stream.OUT, data) for number in range(count))], 2 * half
    )

    assert held < 1.4 * half + 160 * 1024


def test_very_short_writes_by_turns_keep_less_and_say_so() -> None:
    writer = Writer(new_log(8 * 1024))
    for number in range(10_000):
        writer.write((Stream.OUT, Stream.ERR)[number % 2], b"x", after=0.02)
    writer.finish()

    lines = all_lines(writer.kept)
    kept = sum(len(line.text) for line in lines if line.stream is not Stream.SYS)
    assert kept + writer.log.stats(complete=True).omitted_bytes == 10_000
    assert 4 * 1024 + 1024 <= kept < 8 * 1024


def test_the_tail_is_the_last_20_lines_each_in_one_piece() -> None:
    writer = Writer(new_log())
    for number in range(100):
        writer.write(Stream.OUT, f"number {number}".encode(), after=0.2)
        writer.wait(0.2)
        writer.write(Stream.OUT, b", done\n", after=0.2)
    writer.write(Stream.ERR, b"no newline here", after=1.0)
    writer.finish()

    expected = [f"number {number}, done" for number in range(81, 100)] + ["no newline here"]
    assert [line.text for line in writer.log.tail()] == expected
    assert [line.partial for line in writer.log.tail()] == [False] * 19 + [True]


def test_the_tail_joins_each_stream_with_itself() -> None:
    writer = Writer(new_log())
    for stream, data in [(Stream.OUT, b"a"), (Stream.ERR, b"1"), (Stream.OUT, b"b\n"), (Stream.ERR, b"2\n")]:
        writer.write(stream, data, after=0.2)
        writer.wait(0.2)
    writer.finish()

    assert [(line.stream, line.text) for line in writer.log.tail()] == [(Stream.OUT, "ab"), (Stream.ERR, "12")]


def test_the_tail_comes_from_the_end_of_a_long_log_and_is_bounded() -> None:
    writer = Writer(new_log(MIB))
    for number in range(3000):
        writer.write(Stream.OUT, f"{number} ".encode() + b"x" * 10_000 + b"\n", after=0.01)
    writer.finish()

    tail = writer.log.tail()
    assert [line.text.split()[0] for line in tail] == [str(number) for number in range(2980, 3000)]
    assert {len(line.text) for line in tail} == {TAIL_TEXT}


def test_the_tail_does_not_join_across_the_gap() -> None:
    writer = written([(Stream.OUT, b"a" * 50 + b"X" * 10 + b"b" * 50, 0.0)], cap=100)

    assert [line.text for line in writer.log.tail()] == ["a" * 50, "… 0 lines, 10 bytes omitted …", "b" * 50]


@pytest.mark.parametrize("cap", [0, 1, 2])
def test_a_cap_of_nothing_still_tells_the_truth(cap: int) -> None:
    writer = written([(Stream.OUT, b"lost\n" * 10, 0.0)], cap)

    assert writer.log.stats(complete=True).stdout_bytes == 50
    assert writer.log.stats(complete=True).omitted_bytes == 50 - cap
    assert writer.kept[-1].end


def test_a_silent_job_has_one_empty_batch_that_ends_its_log() -> None:
    (batch,) = written([]).batches

    assert batch == Batch(key=KEY, claim="claim", seq=1, out=0, err=0, lines=[], end=True)

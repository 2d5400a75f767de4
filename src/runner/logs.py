"""What a job wrote, cut into lines and batches, in memory that is bounded whatever it writes.

The first half of the cap is kept raw until somebody takes it, and only then cut into lines. What follows is kept raw in
a ring as large as the other half, and a bounded part of it is shown live. Nothing is decoded before it is shown, so a
flood costs little more than counting its newlines.
"""

import codecs
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from runner.job import Bytes, JobKey, Line, LogStats, Stream
from runner.ports import Batch

BATCH_BYTES = 64 * 1024
"""Raw text that fills a batch."""
BATCH_LINES = 8192
"""Lines that fill a batch: short ones are many times larger on the wire than raw."""
BATCH_SECONDS = 0.1
"""The longest that text waits for its batch, and the shortest time between two that are not full."""
GATHER_SECONDS = 0.01
"""How long a line waits for others where no batch has gone out lately."""
LINE_BYTES = 16 * 1024
"""Longer lines come in parts."""
LIVE_BYTES_PER_SECOND = 64 * 1024
LIVE_BYTES_AT_ONCE = 16 * 1024
"""How much is shown live of what is beyond the first half, in the long run and after a pause."""
TAIL_LINES = 20
TAIL_TEXT = 4096
"""How many lines `JobLog.tail` has, and how many characters of each."""

_PIECE = 8 * 1024  # what is cut at once: even if all of it is newlines, it cannot overfill a batch by much
_LIVE_LEAST = 4096  # after a gap, wait until it is worth to show something again
_BLOCK_BYTES = 64 * 1024
_BLOCK_MARKS = 4096
_BYTES_PER_MARK = 32  # a mark takes 8 bytes: the ring's index is at most a quarter of its text, and 8 KiB
_MARKS_AT_LEAST = 1024
_NEWLINE = ord("\n")
_UTF8_LATER_BYTES = bytes(range(0x80, 0xC0))
_LONGEST_CHARACTER = 4
_JOIN = timedelta(milliseconds=10)  # writes to one stream within this time share a mark, and so a time
_BLOCK_TIME = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Raw text as it was written."""

    stream: Stream
    data: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class _Cut:
    """Lines, and how many raw bytes of each stream came before them, and before the next."""

    out: int
    err: int
    lines: list[Line]
    until_out: int
    until_err: int


class _Cutter:
    """Cuts raw text into lines. A line counts where it ends: the order of the streams is that of their newlines."""

    def __init__(self, out: int = 0, err: int = 0) -> None:
        self._read = {Stream.OUT: out, Stream.ERR: err}
        self._rest = {Stream.OUT: b"", Stream.ERR: b""}
        self._touched: dict[Stream, datetime] = {}
        self._lines: list[Line] = []
        self._start = (out, err)

    def position(self, stream: Stream) -> int:
        """Raw bytes of the stream up to the last one that was cut into a line."""
        return self._read[stream] - len(self._rest[stream])

    def rest(self, stream: Stream) -> bytes:
        """Raw text that waits for its newline, or for the rest of a character."""
        return self._rest[stream]

    @property
    def full(self) -> bool:
        """Whether what was cut makes a whole batch."""
        size = self.position(Stream.OUT) + self.position(Stream.ERR) - sum(self._start)
        return size >= BATCH_BYTES or len(self._lines) >= BATCH_LINES

    def feed(self, piece: _Piece) -> None:
        stream, at = piece.stream, piece.at
        self._read[stream] += len(piece.data)
        *whole, rest = (self._rest[stream] + piece.data).split(b"\n")
        for raw in whole:
            last = self._parts(stream, raw, at) if len(raw) > LINE_BYTES else raw
            self._lines.append(Line(time=at, stream=stream, text=last.decode("utf-8", "replace")))
        self._rest[stream] = self._parts(stream, rest, at) if len(rest) > LINE_BYTES else rest
        self._touched[stream] = at

    def note(self, line: Line) -> None:
        """Put a line of our own among the others."""
        self._lines.append(line)

    def cut(self) -> _Cut:
        """Take the lines that are whole."""
        until = (self.position(Stream.OUT), self.position(Stream.ERR))
        taken = _Cut(*self._start, self._lines, *until)
        self._start = until
        self._lines = []
        return taken

    def flush(self, *, final: bool = False) -> _Cut:
        """Take everything, except the beginning of a character that may still be completed (unless `final`)."""
        for stream, at in sorted(self._touched.items(), key=lambda item: item[1]):
            self._rest[stream] = self._part(stream, self._rest[stream], at, final=final)
        return self.cut()

    def _parts(self, stream: Stream, raw: bytes, at: datetime) -> bytes:
        while len(raw) > LINE_BYTES:
            raw = self._part(stream, raw[:LINE_BYTES], at) + raw[LINE_BYTES:]
        return raw

    def _part(self, stream: Stream, raw: bytes, at: datetime, *, final: bool = False) -> bytes:
        text, used = codecs.utf_8_decode(raw, "replace", final)
        if text:
            self._lines.append(Line(time=at, stream=stream, text=text, partial=True))
        return raw[used:]


class _Block:
    """Up to 64 KiB of a ring: raw text, and for each write a mark of its time, length and stream in eight bytes."""

    def __init__(self, start: datetime) -> None:
        self.start = start
        self.data = bytearray()
        self.marks: array[int] = array("Q")
        self.first = 0  # the first mark that is still wanted, and where its text begins
        self.offset = 0

    def takes(self, at: datetime) -> bool:
        """Whether there is room for text of that time. A mark counts the time from the block's start."""
        return (
            len(self.data) < _BLOCK_BYTES
            and len(self.marks) < _BLOCK_MARKS
            and timedelta(0) <= at - self.start < _BLOCK_TIME
        )

    def last(self) -> tuple[datetime, int, Stream]:
        return self._unpack(self.marks[-1])

    def oldest(self) -> tuple[datetime, int, Stream]:
        return self._unpack(self.marks[self.first])

    def put_mark(self, at: datetime, length: int, stream: Stream) -> None:
        self.marks.append(self._pack(at, length, stream))

    def set_mark(self, index: int, at: datetime, length: int, stream: Stream) -> None:
        self.marks[index] = self._pack(at, length, stream)

    def pieces(self) -> Iterator[_Piece]:
        offset = self.offset
        for mark in self.marks[self.first :]:
            at, length, stream = self._unpack(mark)
            yield _Piece(stream, bytes(self.data[offset : offset + length]), at)
            offset += length

    def _pack(self, at: datetime, length: int, stream: Stream) -> int:
        return (at - self.start) // _MICROSECOND << 24 | length << 1 | (stream is Stream.ERR)

    def _unpack(self, mark: int) -> tuple[datetime, int, Stream]:
        at = self.start + timedelta(microseconds=mark >> 24)
        return at, mark >> 1 & 0x7FFFFF, Stream.ERR if mark & 1 else Stream.OUT


class _Spool:
    """Raw text in the order of its writing. An adjacent write of the same stream shares its mark."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []  # at most some hundreds: an empty deque takes 600 bytes, of every job
        self._marks = 0
        self.sizes = {Stream.OUT: 0, Stream.ERR: 0}

    @property
    def size(self) -> int:
        """All that is here, in bytes."""
        return sum(self.sizes.values())

    def push(self, piece: _Piece) -> None:
        if not self._blocks or not self._blocks[-1].takes(piece.at):
            self._blocks.append(_Block(piece.at))
        block = self._blocks[-1]
        block.data += piece.data
        self.sizes[piece.stream] += len(piece.data)
        self._mark(block, piece)

    def pop(self) -> _Piece | None:
        """Take out the oldest text, a little of it; None when there is none."""
        if not self._blocks:
            return None
        block = self._blocks[0]
        at, length, stream = block.oldest()
        taken = min(length, _PIECE)
        data = bytes(block.data[block.offset : block.offset + taken])
        self._drop(block, taken)
        return _Piece(stream, data, at)

    def drain(self) -> Iterator[_Piece]:
        """Give everything back, oldest first, freeing it on the way. The sizes stay."""
        while self._blocks:
            yield from self._blocks.pop(0).pieces()

    def _mark(self, block: _Block, piece: _Piece) -> None:
        if len(block.marks) > block.first:
            at, length, stream = block.last()
            if stream is piece.stream and abs(piece.at - at) < _JOIN:
                block.set_mark(-1, at, length + len(piece.data), stream)
                return
        block.put_mark(piece.at, len(piece.data), piece.stream)
        self._marks += 1

    def _drop(self, block: _Block, count: int) -> None:
        """Forget so many bytes of the oldest write."""
        at, length, stream = block.oldest()
        self.sizes[stream] -= count
        block.offset += count
        if count < length:
            block.set_mark(block.first, at, length - count, stream)
            return
        block.first += 1
        self._marks -= 1
        if block.first == len(block.marks):
            self._blocks.pop(0)


class _Ring(_Spool):
    """The last `limit` bytes that were written, raw, and a count of those before them.

    Very short writes that alternate between the streams reach the bound of the index first: then fewer are kept.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._mark_limit = limit // _BYTES_PER_MARK + _MARKS_AT_LEAST
        self._slack = min(limit // 8, LINE_BYTES)
        self.omitted_bytes = 0
        self.omitted_lines = 0

    def push(self, piece: _Piece) -> None:
        super().push(piece)
        self._evict()

    def _evict(self) -> None:
        while (excess := self.size - self._limit) > 0 or self._marks > self._mark_limit:
            block = self._blocks[0]
            _, length, _ = block.oldest()
            drop = length if excess >= length or self._marks > self._mark_limit else self._align(block, excess, length)
            self.omitted_lines += block.data.count(b"\n", block.offset, block.offset + drop)
            self.omitted_bytes += drop
            self._drop(block, drop)

    def _align(self, block: _Block, drop: int, length: int) -> int:
        """Drop a little more, so that what is left begins with a line, or at least with a character."""
        start, end = block.offset + drop, block.offset + length
        if block.data[start - 1] == _NEWLINE:
            return drop
        newline = block.data.find(_NEWLINE, start, min(end, start + self._slack))
        if newline >= 0:
            return newline + 1 - block.offset
        character = block.data[start : min(end, start + 3)]
        return drop + len(character) - len(character.lstrip(_UTF8_LATER_BYTES))


class _Live:
    """The part that is shown of what is beyond the first half. A batch has no gaps in it; there may be some between."""

    def __init__(self, out: int = 0, err: int = 0) -> None:
        self._cutter = _Cutter(out, err)
        self._gap = False
        self._tokens = float(LIVE_BYTES_AT_ONCE)
        self._filled: float | None = None
        self.since: float | None = None

    def write(self, piece: _Piece, position: dict[Stream, int], now: float) -> None:
        """`position` says how many raw bytes of each stream came before `piece`."""
        self._fill(now)
        data, lead = piece.data, 0
        if self._gap:
            if self.since is not None or self._tokens < min(len(data), _LIVE_LEAST):
                return
            lead = data.find(b"\n") + 1
            starts = {**position, piece.stream: position[piece.stream] + lead}
            self._cutter = _Cutter(starts[Stream.OUT], starts[Stream.ERR])
        shown = data[lead : lead + int(self._tokens)]
        self._gap = len(shown) < len(data) - lead
        if self._gap:
            shown = shown[: shown.rfind(b"\n") + 1] or shown
        self._tokens -= len(shown)
        self._cutter.feed(replace(piece, data=shown))
        self.since = now if self.since is None else self.since

    def _fill(self, now: float) -> None:
        passed = now - self._filled if self._filled is not None else 0.0
        self._tokens = min(LIVE_BYTES_AT_ONCE, self._tokens + passed * LIVE_BYTES_PER_SECOND)
        self._filled = now

    def take(self) -> _Cut:
        self.since = None
        return self._cutter.flush()


class _Tail:
    """The last lines of a log, each in one piece."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def add(self, lines: list[Line]) -> None:
        # A batch has few partial lines, so that its last 40 have more than 20 whole ones.
        for line in lines[-2 * TAIL_LINES :]:
            self._add(line)
        del self._lines[:-TAIL_LINES]

    def _add(self, line: Line) -> None:
        for index in range(len(self._lines) - 1, -1, -1):
            earlier = self._lines[index]
            if earlier.stream is Stream.SYS:
                break
            if earlier.stream is line.stream:
                if not earlier.partial:
                    break
                text = (earlier.text + line.text)[:TAIL_TEXT]
                self._lines[index] = replace(earlier, text=text, partial=line.partial)
                return
        self._lines.append(replace(line, text=line.text[:TAIL_TEXT]))

    def lines(self) -> tuple[Line, ...]:
        return tuple(self._lines)


class JobLog:
    """The log of one claim. `at` is the wall time of what is written, `now` a monotonic one in seconds.

    Its owner calls `write` for all output, `take` when `due` has come and there is somewhere to put a batch, and at the
    end `finish` once: what is not taken waits here, raw. Batches are numbered from `seq` + 1; those to be shown live
    have no number.
    """

    def __init__(self, key: JobKey, claim: str, cap: Bytes, *, seq: int = 0) -> None:
        self._key = key
        self._claim = claim
        self._first_seq = self._seq = seq
        self._cap = cap
        self._room = cap // 2
        self._spool = _Spool()
        self._head = _Cutter()
        self._head_since: float | None = None
        self._head_sent = float("-inf")
        self._head_whole = False  # a line that is whole waits
        self._ends = {Stream.OUT: b"", Stream.ERR: b""}
        self._ring = _Ring(cap - cap // 2)
        self._live = _Live()
        self._written = {Stream.OUT: 0, Stream.ERR: 0}
        self._tail = _Tail()

    def write(self, stream: Stream, data: bytes, *, at: datetime, now: float) -> None:
        """Take raw output of any length, as it came."""
        head = data[: self._room]
        for start in range(0, len(head), _BLOCK_BYTES):
            self._write_head(_Piece(stream, head[start : start + _BLOCK_BYTES], at), now)
        for start in range(len(head), len(data), _BLOCK_BYTES):
            self._write_beyond(_Piece(stream, data[start : start + _BLOCK_BYTES], at), now)

    def _write_head(self, piece: _Piece, now: float) -> None:
        self._spool.push(piece)
        self._written[piece.stream] += len(piece.data)
        self._ends[piece.stream] = (self._ends[piece.stream] + piece.data)[-_LONGEST_CHARACTER:]
        self._room -= len(piece.data)
        self._head_whole = self._head_whole or b"\n" in piece.data
        if self._head_since is None:
            self._head_since = now
        if not self._room:
            self._leave_head(piece.at, now)

    def _leave_head(self, at: datetime, now: float) -> None:
        """A character that is not whole yet begins the second half."""
        rests = [_Piece(stream, rest, at) for stream, end in self._ends.items() if (rest := _unfinished(end))]
        for piece in rests:
            self._written[piece.stream] -= len(piece.data)
        self._ring = _Ring(self._cap - sum(self._written.values()))
        self._live = _Live(self._written[Stream.OUT], self._written[Stream.ERR])
        for piece in rests:
            self._write_beyond(piece, now)

    def _write_beyond(self, piece: _Piece, now: float) -> None:
        self._live.write(piece, self._written, now)
        self._ring.push(piece)
        self._written[piece.stream] += len(piece.data)

    @property
    def due(self) -> float | None:
        """When `take` has something to give, in the time of `now`; None while nothing waits."""
        if self._spool.size >= BATCH_BYTES or (self._spool.size and not self._room):
            return float("-inf")
        if self._head_since is not None:
            return self._head_due(self._head_since)
        return self._live.since + BATCH_SECONDS if self._live.since is not None else None

    def take(self, now: float) -> Batch | None:
        """The next batch that is due by `now`, if there is one."""
        batch = self._take_head(now)
        if batch is None and self._live.since is not None and self._live.since + BATCH_SECONDS <= now:
            cut = self._live.take()
            batch = self._batch(cut, numbered=False) if cut.lines else None
        return batch

    def finish(self, at: datetime) -> Iterator[Batch]:
        """All that is left, ending with a batch that says so. Nothing may be written after it; use it up, and once."""
        while self._fill_head():
            yield self._batch(self._head.cut())
        cutter = self._head
        if not self._room:
            if (cut := self._head.flush()).lines:
                yield self._batch(cut)
            cutter = self._second_half(at)
        for piece in self._ring.drain():
            for start in range(0, len(piece.data), _PIECE):
                cutter.feed(replace(piece, data=piece.data[start : start + _PIECE]))
                if cutter.full:
                    yield self._batch(cutter.cut())
        yield self._batch(cutter.flush(final=True), end=True)

    def _second_half(self, at: datetime) -> _Cutter:
        out, err = (self._written[stream] - self._ring.sizes[stream] for stream in (Stream.OUT, Stream.ERR))
        cutter = _Cutter(out, err)
        if self._ring.omitted_bytes:
            text = f"… {self._ring.omitted_lines} lines, {self._ring.omitted_bytes} bytes omitted …"
            cutter.note(Line(time=at, stream=Stream.SYS, text=text))
        return cutter

    def stats(self, *, complete: bool) -> LogStats:
        """How much was written, and how much of it was left out (so far). `complete` is the caller's to know."""
        return LogStats(
            stdout_bytes=self._written[Stream.OUT],
            stderr_bytes=self._written[Stream.ERR],
            omitted_bytes=self._ring.omitted_bytes,
            omitted_lines=self._ring.omitted_lines,
            complete=complete,
        )

    def tail(self) -> tuple[Line, ...]:
        """The last lines of what `finish` has given, each joined from its parts and cut to `TAIL_TEXT` characters."""
        return self._tail.lines()

    def _head_due(self, since: float) -> float:
        """When what waits goes out. The first batch does at once; a line that may still go on waits longest."""
        if self._seq == self._first_seq:
            return since
        if not self._head_whole:
            return since + BATCH_SECONDS
        return min(max(since + GATHER_SECONDS, self._head_sent + BATCH_SECONDS), since + BATCH_SECONDS)

    def _take_head(self, now: float) -> Batch | None:
        since = self._head_since
        late = since is not None and (self._head_due(since) <= now or not self._room)
        if not late and self._spool.size < BATCH_BYTES:
            return None
        full = self._fill_head()
        if not full and (since is None or not late):
            return None  # it ends in a line that may still go on
        if full or (since is not None and self._whole_only(since, now)):
            cut = self._head.cut()
            waits = self._spool.size or any(map(self._head.rest, self._written))
            self._head_since = now if waits else None
        else:
            cut = self._head.flush()
            self._head_since = None
        self._head_whole = bool(self._spool.size)
        self._head_sent = now
        return self._batch(cut) if cut.lines else None

    def _whole_only(self, since: float, now: float) -> bool:
        """Whether a line that is not whole yet is to wait for the rest of it."""
        return bool(self._room) and self._head_whole and self._seq > self._first_seq and now < since + BATCH_SECONDS

    def _fill_head(self) -> bool:
        """Cut what waits until it makes a whole batch; false when there is not enough."""
        while not self._head.full:
            piece = self._spool.pop()
            if piece is None:
                return False
            self._head.feed(piece)
        return True

    def _batch(self, cut: _Cut, *, numbered: bool = True, end: bool = False) -> Batch:
        if numbered:
            self._seq += 1
            self._tail.add(cut.lines)
        return Batch(
            key=self._key,
            claim=self._claim,
            seq=self._seq if numbered else None,
            out=cut.out,
            err=cut.err,
            until_out=cut.until_out,
            until_err=cut.until_err,
            lines=cut.lines,
            end=end,
        )


def _unfinished(end: bytes) -> bytes:
    """The beginning of a character that the text ends with, if it does."""
    _, used = codecs.utf_8_decode(end, "replace", False)
    return end[used:]

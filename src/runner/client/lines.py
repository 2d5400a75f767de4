"""The batches of a log as lines, each shown once.

A worker that was restarted cuts the log anew from a place that it had sent before, so that a batch may repeat a part of
others: what counts is where each line's raw bytes stand in its stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from runner.client.messages import LogBatch
from runner.job import Line, Stream

_GAP = "… a part of the log is missing here: it came faster than it could be read …"
_REPLACED = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class _Shown:
    """What was shown of one stream: everything before `kept`, and what was shown live beyond it, as ranges."""

    kept: int = 0
    live: list[tuple[int, int]] = field(default_factory=list)

    def rest(self, line: Line, start: int, end: int) -> Line | None:
        """What of the line was not shown yet; None if nothing."""
        if end <= self.kept or any(first <= start and end <= last for first, last in self.live):
            return None
        if start >= self.kept:
            return line
        return replace(line, text=line.text.encode()[self.kept - start :].decode(errors="ignore"))

    def note_live(self, start: int, end: int) -> None:
        first = self.live.pop()[0] if self.live and self.live[-1][1] == start else start
        self.live.append((first, end))


@dataclass(slots=True)
class _Claim:
    """What was shown of one claim's log, and the number of the batch that comes next."""

    next: int | None = None
    streams: dict[Stream, _Shown] = field(default_factory=lambda: {Stream.OUT: _Shown(), Stream.ERR: _Shown()})


class LineReader:
    """Reads the batches of one job, which may have several claims. `live` also shows what may be left out later."""

    def __init__(self, *, live: bool = False) -> None:
        self._live = live
        self._claims: dict[str, _Claim] = {}

    def read(self, batch: LogBatch) -> Iterator[Line]:
        """What of the batch was not shown yet, after a word of our own where batches are missing."""
        claim = self._claims.setdefault(batch.claim, _Claim())
        if batch.seq is None:
            if self._live:
                yield from self._read(claim, batch)
            return
        if claim.next is not None and batch.seq > claim.next:
            yield Line(time=datetime.now(UTC), stream=Stream.SYS, text=_GAP)
        claim.next = max(claim.next or 0, batch.seq + 1)
        yield from self._read(claim, batch)

    def _read(self, claim: _Claim, batch: LogBatch) -> Iterator[Line]:
        # Where the text replaces raw bytes, nobody knows how many: a line's place is taken for late, and what was shown
        # for short, so that in doubt something is shown twice and nothing is left out.
        place = {Stream.OUT: batch.out, Stream.ERR: batch.err}
        reached = dict(place)
        for line in batch.lines:
            shown = claim.streams.get(line.stream)
            if shown is None:
                yield line
                continue
            start, first = place[line.stream], reached[line.stream]
            end = place[line.stream] = start + _length(line.text) + (not line.partial)
            last = reached[line.stream] = first + _length(line.text.replace(_REPLACED, "?")) + (not line.partial)
            rest = shown.rest(line, start, end)
            if batch.seq is None:
                shown.note_live(first, last)
            else:
                shown.kept = max(shown.kept, last)
            if rest is not None:
                yield rest


def _length(text: str) -> int:
    return len(text.encode(errors="replace"))

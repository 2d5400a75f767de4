"""The batches of a log as lines, each shown once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from runner.client.messages import LogBatch
from runner.job import Line, Stream

_GAP = "… a part of the log is missing here: it came faster than it could be read …"
_REPLACED = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class _Claim:
    """What was shown of one claim's log: the next number, and the raw ranges of what was shown live."""

    next: int | None = None
    live: dict[Stream, list[tuple[int, int]]] = field(default_factory=lambda: {Stream.OUT: [], Stream.ERR: []})


class LineReader:
    """Reads the batches of one job, which may have several claims. `live` also shows what may be left out later."""

    def __init__(self, *, live: bool = False) -> None:
        self._live = live
        self._claims: dict[str, _Claim] = {}

    def read(self, batch: LogBatch) -> Iterator[Line]:
        """The batch's lines without those that were shown, after a word of our own where batches are missing."""
        claim = self._claims.setdefault(batch.claim, _Claim())
        if batch.seq is None:
            return self._shown_live(claim, batch) if self._live else iter(())
        gap = claim.next is not None and batch.seq > claim.next
        claim.next = max(claim.next or 0, batch.seq + 1)
        return self._kept(claim, batch, gap=gap)

    def _shown_live(self, claim: _Claim, batch: LogBatch) -> Iterator[Line]:
        for line, start, _ in _placed(batch):
            ranges = claim.live.get(line.stream)
            # Short rather than long: in doubt a line is shown twice and not left out.
            end = start + len(line.text.replace(_REPLACED, "?").encode()) + (not line.partial)
            if ranges is not None:
                first = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
                ranges.append((first, end))
            yield line

    def _kept(self, claim: _Claim, batch: LogBatch, *, gap: bool) -> Iterator[Line]:
        lines = _placed(batch)
        if gap:
            yield Line(time=datetime.now(UTC), stream=Stream.SYS, text=_GAP)
        for line, start, end in lines:
            if not any(first <= start and end <= last for first, last in claim.live.get(line.stream, ())):
                yield line


def _placed(batch: LogBatch) -> Iterator[tuple[Line, int, int]]:
    """Each line with the place of its raw bytes in its stream (more or less, where they were no text)."""
    position = {Stream.OUT: batch.out, Stream.ERR: batch.err, Stream.SYS: 0}
    for line in batch.lines:
        start = position[line.stream]
        end = start + len(line.text.encode(errors="replace")) + (not line.partial)
        position[line.stream] = end
        yield line, start, end

"""Brings a job's output to whoever follows it: cut into batches, offered as they fall due, the last one confirmed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from runner.flag import Flag
from runner.job import JobKey, Line, LogStats, Stream
from runner.logs import JobLog
from runner.noting import note
from runner.ports import Batch, Journal, LogPosition, LogSink, Observer

_CONFIRM = 5.0
"""Seconds that the rest of a log may take to be confirmed before the result goes out without it."""
_STRIDE = 8
"""How many of the last batches are on their way at once."""
SEQ_OF_A_LIFE = 100_000
"""Batches of a log that goes on in another life are counted on from this much later: the last ones were not noted."""


@dataclass(slots=True, kw_only=True)
class LogPump:
    """The log of one attempt, and its way out. `known` is how far an earlier life has offered it."""

    key: JobKey
    claim: str
    log: JobLog
    sink: LogSink
    journal: Journal
    observer: Observer
    now: Callable[[], datetime]
    known: LogPosition = field(default_factory=LogPosition)
    _fresh: bool = field(init=False)
    _replayed: dict[Stream, int] = field(init=False)
    _written: Flag = field(default_factory=Flag)
    _offered: list[LogPosition] = field(default_factory=list)
    _looks_at: float = float("inf")  # when `run` looks at the log next: waking it for each write of a flood costs more

    def __post_init__(self) -> None:
        """What is known will be written again."""
        self._fresh = self.known == LogPosition()
        self._replayed = {Stream.OUT: self.known.out, Stream.ERR: self.known.err}

    def write(self, stream: Stream, data: bytes) -> None:
        """Put text without secrets in the log."""
        if data and (known := self._replayed[stream]) > 0:
            # Our earlier life has offered this much; a cut at its end lets `_offer` tell what is new.
            data, again = data[known:], data[:known]
            self._replayed[stream] -= len(again)
            self._write(stream, again)
            if not any(self._replayed.values()):
                while (batch := self.log.take(float("inf"))) is not None:
                    self._offer(batch)
        if data:
            self._write(stream, data)

    async def run(self) -> NoReturn:
        """Offer the batches as they fall due and find room, until cancelled; `finish` cuts the last one."""
        loop = asyncio.get_running_loop()
        while True:
            self._looks_at = float("inf")
            await self._written.wait()
            self._written.clear()
            while (due := self.log.due) is not None:
                await self._until(due)
                await self.sink.room(self.claim)
                if (batch := self.log.take(loop.time())) is not None:
                    self._offer(batch)

    async def note_position(self) -> None:
        """Put on record how far the log is safe, if it got further, so that a later life can go on from there."""
        if not self._offered:
            return
        safe, sure = None, self.sink.confirmed(self.claim)
        while self._offered and self._offered[0].seq <= sure:
            safe = self._offered.pop(0)
        if safe is not None:
            await note("a log's position", self.claim, self.journal.logged(self.claim, safe))

    async def finish(self) -> bool:
        """Offer what is left, a little at a time, so that no memory fills up; false when any of the log was lost."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _CONFIRM
        for number, batch in enumerate(self.log.finish(self.now()), start=1):
            self._offer(batch)
            await asyncio.sleep(0)  # a batch may hold thousands of lines, and others want the loop, too
            if number % _STRIDE == 0:
                await self.sink.flush(self.key, self.claim, give_up - loop.time())
        delivered = await self.sink.flush(self.key, self.claim, give_up - loop.time())
        self.sink.forget(self.claim)
        return delivered

    def stats(self, *, complete: bool) -> LogStats:
        """How much was written, and how much of it was left out."""
        return self.log.stats(complete=complete)

    def tail(self) -> tuple[Line, ...]:
        """The last lines of a log that was finished."""
        return self.log.tail()

    def _write(self, stream: Stream, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self.log.write(stream, data, at=self.now(), now=now)
        self.observer.output(stream, len(data))
        if self._fresh and data.endswith(b"\n"):
            self._offer_first(now)
        if (due := self.log.due) is not None and due < self._looks_at:
            self._written.set()

    def _offer_first(self, now: float) -> None:
        """The first line waits for nobody, not even for those who tell of the start."""
        if (batch := self.log.take(now)) is not None:
            self._offer(batch)

    def _offer(self, batch: Batch) -> None:
        """Offer a batch, unless our earlier life has offered all of it."""
        self._fresh = False
        if not batch.end and batch.until_out <= self.known.out and batch.until_err <= self.known.err:
            return
        if batch.seq is not None:
            self.known = LogPosition(out=batch.until_out, err=batch.until_err, seq=batch.seq)
            self._offered.append(self.known)
        self.sink.offer(batch)

    async def _until(self, due: float) -> None:
        """Wait until the log's next batch is due; what is written meanwhile may make it due earlier."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0:
            self._looks_at = due
            try:
                async with asyncio.timeout(left):
                    await self._written.wait()
            except TimeoutError:
                return
            self._written.clear()
            due = min(due, self.log.due or due)

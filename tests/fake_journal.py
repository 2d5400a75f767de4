"""A journal in memory. It passes the same suite as the real one."""

from collections.abc import Callable
from datetime import datetime, timedelta

from runner.job import JobKey, StopReason
from runner.ports import ClaimRecord, Event, LogPosition


class FakeJournal:
    """The port `Journal`, forgotten with the process. Tests may read its fields."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.open: dict[str, ClaimRecord] = {}
        self.containers: dict[str, tuple[str, datetime]] = {}
        self.told: set[str] = set()
        self.over: dict[str, tuple[ClaimRecord, datetime, bool]] = {}
        self.stops: dict[str, tuple[StopReason, str]] = {}
        self.positions: dict[str, LogPosition] = {}
        self.lives: dict[str, int] = {}
        self.owed: dict[str, Event] = {}

    async def claimed(self, record: ClaimRecord) -> None:
        if record.claim not in self.over:
            self.open.setdefault(record.claim, record)

    async def started(self, claim: str, container: str, deadline: datetime) -> None:
        if claim in self.open:
            self.containers[claim] = (container, deadline)

    async def start_told(self, claim: str) -> None:
        if claim in self.open:
            self.told.add(claim)

    async def stopping(self, claim: str, reason: StopReason, detail: str) -> None:
        self.stops[claim] = (reason, detail)

    async def logged(self, claim: str, position: LogPosition) -> None:
        self.positions[claim] = position

    async def adopted(self, claim: str) -> None:
        self.lives[claim] = self.lives.get(claim, 0) + 1

    async def ended(self, claim: str, *, finished: bool, owed: Event | None = None) -> None:
        if owed is not None:
            self.owed[claim] = owed
        record = self.open.pop(claim, None)
        if record is not None:
            self.over[claim] = (record, self._now(), finished)

    async def paid(self, claim: str) -> None:
        self.owed.pop(claim, None)

    async def forgotten(self, claim: str) -> None:
        self.open.pop(claim, None)

    async def is_over(self, claim: str) -> bool:
        return claim in self.over

    async def finished_lately(self, key: JobKey, within: timedelta) -> bool:
        since = self._now() - within
        return any(finished and record.key == key and at >= since for record, at, finished in self.over.values())

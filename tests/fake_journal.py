"""A journal in memory. It passes the same suite as the real one."""

from collections.abc import Callable
from datetime import datetime, timedelta

from runner.job import JobKey
from runner.ports import ClaimRecord


class FakeJournal:
    """The port `Journal`, forgotten with the process. Tests may read its fields."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.open: dict[str, ClaimRecord] = {}
        self.containers: dict[str, tuple[str, datetime]] = {}
        self.over: dict[str, tuple[ClaimRecord, datetime, bool]] = {}

    async def claimed(self, record: ClaimRecord) -> None:
        if record.claim not in self.over:
            self.open.setdefault(record.claim, record)

    async def started(self, claim: str, container: str, deadline: datetime) -> None:
        if claim in self.open:
            self.containers[claim] = (container, deadline)

    async def ended(self, claim: str, *, finished: bool) -> None:
        record = self.open.pop(claim, None)
        if record is not None:
            self.over[claim] = (record, self._now(), finished)

    async def is_over(self, claim: str) -> bool:
        return claim in self.over

    async def finished_lately(self, key: JobKey, within: timedelta) -> bool:
        since = self._now() - within
        return any(finished and record.key == key and at >= since for record, at, finished in self.over.values())

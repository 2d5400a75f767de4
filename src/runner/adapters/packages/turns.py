"""Whose turn it is where many want what only a few can have."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from runner.errors import DeferredError
from runner.units import format_duration

_WAIT_MOST = timedelta(minutes=10)


class Turns:
    """Lets `most` go on at once, and `each` of one owner, so that nobody's many keep all others from theirs."""

    def __init__(self, *, most: int, each: int, wait: timedelta = _WAIT_MOST) -> None:
        self._most = most
        self._each = each
        self._wait = wait
        self._going: Counter[str] = Counter()
        self._changed = asyncio.Event()

    async def take(self, owner: str) -> None:
        """Wait for a turn, which `give_back` ends. Raises `DeferredError` when none comes."""
        try:
            async with asyncio.timeout(self._wait.total_seconds()):
                while self._going.total() >= self._most or self._going[owner] >= self._each:
                    await self._changed.wait()
        except TimeoutError:
            limit = format_duration(self._wait)
            raise DeferredError(f"this worker was busy with the code of other jobs for {limit}") from None
        self._going[owner] += 1

    def give_back(self, owner: str) -> None:
        """One that was taken is over."""
        self._going[owner] -= 1
        self._going += Counter()  # forgets those that have none
        self._changed.set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """A turn for as long as the block. Raises `DeferredError` when none comes."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

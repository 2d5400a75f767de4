"""Items that come when they come, for one reader who may be slow."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from runner.errors import BrokerError

T = TypeVar("T")


class Feed(Generic[T]):
    """Keeps at most `limit` bytes for its reader, and drops the oldest beyond that: memory is bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._items: deque[tuple[T, int]] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._fault: str | None = None

    def put(self, item: T, size: int) -> None:
        """Add an item that takes `size` bytes."""
        self._items.append((item, size))
        self._size += size
        while self._size > self._limit and len(self._items) > 1:
            self._size -= self._items.popleft()[1]
        self._news.set()

    def end(self, fault: str | None = None) -> None:
        """Nothing comes any more; with a fault the reader gets a `BrokerError` after the last item."""
        if not self._ended:
            self._ended, self._fault = True, fault
            self._news.set()

    async def items(self) -> AsyncIterator[T]:
        """The items, until the end. Each is given out once."""
        while True:
            while self._items:
                item, size = self._items.popleft()
                self._size -= size
                yield item
            if self._fault is not None:
                raise BrokerError(self._fault)
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()

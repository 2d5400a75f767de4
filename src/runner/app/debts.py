"""The last words on jobs of an earlier life, which the broker had not confirmed when that life ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from runner.codec import Notice

log = logging.getLogger(__name__)


class DebtJournal(Protocol):
    """Where it is on record what is owed."""

    async def paid(self, claim: str) -> None:
        """The claim owes nothing any more."""

    async def ended(self, claim: str, *, finished: bool) -> None:
        """The claim is over; `finished`: the job is, too."""


@dataclass(slots=True, kw_only=True)
class Debts:
    """Notices by claim. Each is published, unless another worker has the job by now: that one tells how it ends."""

    journal: DebtJournal
    owed: dict[str, Notice]
    _sending: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def pay(self, send: Callable[[Notice], Awaitable[None]], heard: asyncio.Event) -> None:
        """Publish each notice until it is confirmed, once it was `heard` which jobs were taken over meanwhile."""
        await heard.wait()
        async with asyncio.TaskGroup() as tasks:
            for claim, notice in self.owed.items():
                self._sending[claim] = tasks.create_task(self._pay(claim, notice, send))

    async def _pay(self, claim: str, notice: Notice, send: Callable[[Notice], Awaitable[None]]) -> None:
        await send(notice)
        del self._sending[claim], self.owed[claim]
        await self.journal.paid(claim)

    async def waive(self, claim: str) -> None:
        """Publish nothing of a claim that was superseded; nothing happens when it owes nothing."""
        if self.owed.pop(claim, None) is None:
            return
        log.warning("what a claim of an earlier life owed is not published: another worker has the job")
        sending = self._sending.pop(claim, None)
        if sending is not None:
            sending.cancel()
        await self.journal.ended(claim, finished=False)
        await self.journal.paid(claim)

"""Why a job is ended by us, and how: SIGTERM, its grace, SIGKILL until it is dead."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runner.errors import EngineError
from runner.flag import Flag
from runner.job import EventKind, Limits, StopReason
from runner.noting import note
from runner.ports import Container, Journal
from runner.timeline import Timeline

log = logging.getLogger(__name__)

_KILL_AGAIN = 5.0
"""Seconds between two tries to kill, while the engine does not help."""
_TERM_PATIENCE = 15.0
"""Seconds that the engine may take to send SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why a job is ended, and how soon. `detail` is what the asker said."""

    reason: StopReason
    detail: str = ""
    at_once: bool = False


@dataclass(slots=True, kw_only=True)
class Stopping:
    """The one door for every reason to end a job; the first reason wins.

    `asked` is set when there is one. `resisted` tells that the job was not dead within `kill_budget` of the first
    SIGKILL.
    """

    claim: str
    limits: Limits
    journal: Journal
    timeline: Timeline
    now: Callable[[], datetime]
    kill_budget: timedelta
    first: Stop | None = None
    asked: Flag = field(default_factory=Flag)
    resisted: bool = False
    _hurry: Flag = field(default_factory=Flag)

    @property
    def reason(self) -> StopReason | None:
        """Why the job is or was ended, if we did it."""
        return self.first.reason if self.first else None

    def ask(self, stop: Stop) -> None:
        """End the job. At once leaves out the grace, also of an earlier reason."""
        if self.first is None:
            self.first = stop
            self.asked.set()
        if stop.at_once:
            self._hurry.set()

    async def enforce(self, container: Container, started: datetime) -> None:
        """End the job when its time is up or somebody asks; the reason goes on record before a signal is sent.

        Returns when it has resisted.
        """
        ran = max(timedelta(), self.now() - started)
        try:
            async with asyncio.timeout((self.limits.timeout - ran).total_seconds()):
                await self.asked.wait()
        except TimeoutError:
            self.ask(Stop(reason=StopReason.TIMEOUT))
        stop = self.first
        if stop is None:
            raise AssertionError("stopping without a reason")
        await note("why a job is ended", self.claim, self.journal.stopping(self.claim, stop.reason, stop.detail))
        self.timeline.tell(EventKind.STOPPING, stop=stop.reason)
        if not self._hurry.is_set():
            await self._terminate(container)
            await self._grace()
        await self._kill(container)

    async def _terminate(self, container: Container) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TERM_PATIENCE):
                await _although_engine_fails(container.terminate)

    async def _grace(self) -> None:
        try:
            async with asyncio.timeout(self.limits.grace.total_seconds()):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _kill(self, container: Container) -> None:
        """Kill the job again and again; what cannot be killed is left to whoever removes the container."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.kill_budget.total_seconds()):
                while True:
                    await _although_engine_fails(container.kill)
                    await asyncio.sleep(_KILL_AGAIN)
        log.warning("a job could not be ended", extra={"claim": self.claim, "container": container.id})
        self.resisted = True


async def _although_engine_fails(call: Callable[[], Awaitable[None]]) -> None:
    """A signal that the engine would not send is sent again later, by the loop that asked for it."""
    try:
        await call()
    except EngineError:
        return

"""Whether the engine answers."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from runner.adapters.docker.client import EngineClient, EngineUnreachable
from runner.errors import EngineError

log = logging.getLogger(__name__)

_EVERY = 5.0
_SOON = 1.0
_MISSES = 3
"""How many pings in a row have to stay without an answer before an engine that worked counts as gone."""


@dataclass(slots=True, kw_only=True)
class EngineHealth:
    """Pings the engine and tells of every change. Looks at once when any other call got no answer."""

    client: EngineClient
    changed: Callable[[bool, str], None]
    up: bool = False
    _misses: int = _MISSES

    async def run(self) -> NoReturn:
        """Ping until cancelled."""
        while True:
            await self.look()
            if self._misses:
                await asyncio.sleep(_SOON)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self.client.doubted.wait()

    async def look(self) -> None:
        """Ping once."""
        self.client.doubted.clear()
        try:
            await self.client.ping()
        except EngineError as error:
            # Nobody listens: that is certain. One that is merely slow gets another chance.
            self._misses = _MISSES if isinstance(error, EngineUnreachable) else self._misses + 1
            if self._misses >= _MISSES:
                self._set(up=False, why=str(error))
            return
        self._misses = 0
        self._set(up=True, why="")

    def _set(self, *, up: bool, why: str) -> None:
        if up != self.up:
            if up:
                log.info("engine answers")
            else:
                log.warning("engine does not answer", extra={"why": why})
            self.up = up
            self.changed(up, why)

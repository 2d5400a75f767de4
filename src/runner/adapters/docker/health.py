"""Whether the engine answers."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from runner.adapters.docker.client import EngineClient
from runner.errors import EngineError

log = logging.getLogger(__name__)

_EVERY = 5.0
_MISSES = 3
"""How many pings in a row have to fail before an engine that worked counts as gone."""


@dataclass(slots=True, kw_only=True)
class EngineHealth:
    """Pings the engine and tells of every change."""

    client: EngineClient
    changed: Callable[[bool, str], None]
    up: bool = False
    _misses: int = _MISSES

    async def run(self) -> NoReturn:
        """Ping until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY if self.up else 1.0)

    async def look(self) -> None:
        """Ping once."""
        try:
            await self.client.ping()
        except EngineError as error:
            self._misses += 1
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

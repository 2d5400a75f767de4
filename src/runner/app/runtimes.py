"""Which OCI runtimes jobs can have here: of those that the operator allows, those that the engine has."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from runner.adapters.docker.client import EngineInfo
from runner.errors import EngineError
from runner.stacks.catalog import Catalog

log = logging.getLogger(__name__)

_AGAIN = 5.0
"""Seconds between two questions, while the engine does not answer."""


class Informed(Protocol):
    """What is asked of the engine."""

    async def info(self) -> EngineInfo:
        """What it is. Raises `EngineError`."""


@dataclass(slots=True, kw_only=True)
class Runtimes:
    """Tells the catalog which runtimes the engine has, and the operator which it lacks of those `allowed`."""

    allowed: Sequence[str]
    engine: Informed
    catalog: Catalog
    _told: list[str] = field(default_factory=list)
    _returned: asyncio.Event = field(default_factory=asyncio.Event)

    async def at_start(self) -> None:
        """Ask before the first job comes; with an engine that does not answer, later."""
        await self._look()

    def engine_returned(self) -> None:
        """It may be another one now."""
        self._returned.set()

    async def run(self) -> NoReturn:
        """Ask whenever the engine has come back, until cancelled."""
        while True:
            await self._returned.wait()
            await self._look()
            if self._returned.is_set():
                await asyncio.sleep(_AGAIN)

    async def _look(self) -> None:
        self._returned.clear()
        try:
            there = (await self.engine.info()).runtimes
        except EngineError as error:
            log.warning("the engine's runtimes are not known", extra={"problem": str(error)})
            self._returned.set()
            return
        self.catalog.engine_has(there)
        unknown = [runtime for runtime in self.allowed if runtime not in there]
        if unknown and unknown != self._told:
            problem = f"engine.runtimes: the engine does not know {', '.join(unknown)}; stacks with it are passed on"
            log.error("a runtime is missing", extra={"problem": problem})
        self._told = unknown

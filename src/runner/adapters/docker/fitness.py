"""Whether the engine can start anything at all: what it failed to do for one job, it would fail to do for the next."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from runner.errors import EngineError, EngineUnfit, ImageMissing, StartError
from runner.job import Stack

_LOG = logging.getLogger(__name__)
_ROW = 3
"""So many starts that the engine failed, one after the other, are no accident."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 15.0


class Fitness:
    """Has a container of our own tell, where jobs could not be started, whether that is the engine's fault or theirs.

    `probe` starts a container that only needs the stack's image, and removes it. Until it succeeds, nothing else is
    started: jobs are passed on, and none of them pays for what the next one would meet as well.
    """

    def __init__(self, probe: Callable[[Stack], Awaitable[None]]) -> None:
        self.why: str | None = None
        """Why nothing can be started; None while jobs may try."""
        self._probe = probe
        self._failures = 0
        self._suspect: asyncio.Queue[Stack] = asyncio.Queue(maxsize=1)

    def check(self) -> None:
        """Raises `EngineUnfit` while nothing can be started."""
        if self.why is not None:
            raise EngineUnfit(self.why)

    def started(self) -> None:
        """A job's container was started."""
        self._failures = 0

    def failed(self, stack: Stack, *, surely: bool = False) -> None:
        """The engine failed to start a container, for no reason that the job gave. `surely`: and will again."""
        self._failures = _ROW if surely else self._failures + 1
        if self._failures >= _ROW and self._suspect.empty():
            self._suspect.put_nowait(stack)

    async def run(self, changed: Callable[[str | None], None]) -> NoReturn:
        """Find out whenever it is in doubt, until cancelled; `changed` hears `why` each time it begins or ends."""
        while True:
            stack = await self._suspect.get()
            pause = _FIRST_PAUSE
            while (why := await self._trouble(stack)) is not None:
                if self.why is None:
                    _LOG.error("the engine starts nothing", extra={"why": why})
                    self.why = f"the engine cannot start a container: {why}"
                    changed(self.why)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._failures = 0
            if self.why is not None:
                _LOG.info("the engine starts containers again")
                self.why = None
                changed(None)

    async def _trouble(self, stack: Stack) -> str | None:
        """What is wrong with a start that asks for nothing but an image and a runtime; None if nothing is."""
        bare = Stack(
            name=stack.name,
            revision=stack.revision,
            image=stack.image,
            uid=stack.uid,
            gid=stack.gid,
            runtime=stack.runtime,
        )
        try:
            await self._probe(bare)
        except (ImageMissing, StartError):
            return None  # the engine works: it says what it lacks
        except EngineError as error:
            return str(error)
        return None

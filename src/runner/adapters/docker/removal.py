"""Removing a container until the engine itself says that it is gone."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

from runner.adapters.docker.census import Census
from runner.adapters.docker.client import Deletion, EngineClient
from runner.adapters.docker.observer import EngineObserver
from runner.errors import EngineError

_LOG = logging.getLogger(__name__)
_POLL = 0.2
_LONGEST_PAUSE = 60.0
_STUBBORN_AT_ONCE = 2
_IN_PROGRESS_FOR = 5.0
"""Seconds until the engine's word that it is at work on a removal is put to the test by another request."""
_PATIENCE = 2.0
"""Seconds for which a call keeps its place: what takes longer hangs, and costs the engine nothing."""


class Removal:
    """Deletes containers, a few at a time.

    A container that cannot be removed (its shim hangs, a mount is held) blocks each call for a minute. So a call that
    hangs gives its place to the next one, and whatever failed once waits in a line of its own.
    """

    def __init__(self, client: EngineClient, census: Census, observer: EngineObserver, *, at_once: int) -> None:
        self._client = client
        self._census = census
        self._observer = observer
        self._first = asyncio.Semaphore(at_once)
        self._again = asyncio.Semaphore(_STUBBORN_AT_ONCE)

    async def remove(self, name: str, container: str | None = None) -> bool:
        """Return when the engine has told that there is no such container; whether there was anything to remove.

        `container` is its id, where the engine's answer has told it: nothing else has the name then, since the engine
        gives a name once, and a rename that nobody heard of again makes no other container. Without it, whatever has
        the name goes. Retries for as long as it takes.
        """
        target = name if container is None else container
        found, line = False, self._first
        for pause in _pauses():
            try:
                async with _place_in(line):
                    deletion = await self._client.delete(target)
                    if deletion is Deletion.ABSENT:
                        break
                    found = True
                    if await self._absent(target, patient=deletion is Deletion.IN_PROGRESS):
                        break
                problem = "the engine still has it"
            except EngineError as error:
                problem = str(error)
            self._observer.cleanup_failed()
            _LOG.warning("a container could not be removed yet", extra={"container": name, "problem": problem})
            line = self._again
            await asyncio.sleep(pause)
        if found:
            self._census.appeared(name)
        self._census.gone(name)
        return found

    async def _absent(self, target: str, *, patient: bool) -> bool:
        """Whether the engine has no such container. `patient`: it says that it is at work on it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_IN_PROGRESS_FOR if patient else 0)
        while True:
            if await self._client.inspect(target) is None:
                return True
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_POLL)


@asynccontextmanager
async def _place_in(line: asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for a place, and hold it for as long as this takes or patience lasts."""
    await line.acquire()
    with ExitStack() as place:
        place.callback(line.release)
        leaving = asyncio.get_running_loop().call_later(_PATIENCE, place.close)
        try:
            yield
        finally:
            leaving.cancel()


def _pauses() -> Iterator[float]:
    """Seconds between the tries: 1, 2, 4 and so on up to 60."""
    pause = 1.0
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)

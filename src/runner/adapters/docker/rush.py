"""Jobs that are being given to containers that waited, for which the removal of others can wait a moment."""

import asyncio
from dataclasses import dataclass, field

_COMING_FOR = 1.0
"""Seconds for which a job is on its way at most: one that takes longer waits for something else than these CPUs."""
_BEGINNING = 0.1
"""Seconds after its begin for which a job is still a new one: a short one has ended by then, and been told of."""
_HELD_FOR = 1.0
_HELD_MOST = 32


@dataclass(slots=True)
class Rush:
    """The jobs that are on their way, by name.

    Removing a container costs the engine several times the CPU time that giving one to a job does. So when many jobs
    come at once, what is left of those that have ended waits until the last one has begun: a second at most, and no
    more than 32 of them. What they claimed stays taken meanwhile, so whoever wants that says `hurry`.
    """

    _coming: set[str] = field(default_factory=set)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _held: int = 0

    def joined(self, name: str) -> None:
        """A container that waited is to be that job's."""
        self._coming.add(name)
        asyncio.get_running_loop().call_later(_COMING_FOR, self.left, name)

    def began(self, name: str) -> None:
        """Its process was started."""
        asyncio.get_running_loop().call_later(_BEGINNING, self.left, name)

    def left(self, name: str) -> None:
        """It has ended, or was begun a moment ago, or takes too long; of others nothing changes."""
        self._coming.discard(name)
        if not self._coming:
            self.hurry()

    def hurry(self) -> None:
        """Whoever waits goes on."""
        self._over.set()
        self._over = asyncio.Event()

    async def over(self) -> None:
        """Return when no job is on its way, or nobody may wait for that any longer."""
        if not self._coming or self._held >= _HELD_MOST:
            return
        self._held += 1
        try:
            async with asyncio.timeout(_HELD_FOR):
                await self._over.wait()
        except TimeoutError:
            return
        finally:
            self._held -= 1

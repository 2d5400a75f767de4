"""Something that has come about, which others may wait for."""

import asyncio


class Flag:
    """What `asyncio.Event` is, in a tenth of its 860 bytes while nobody waits: each running job has a dozen."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Whether it has come about."""
        return self._is_set

    def set(self) -> None:
        """It has: whoever waits goes on."""
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """It has to come about once more; whoever waited for it before goes on all the same."""
        self._is_set = False

    async def wait(self) -> None:
        """Return when it has come about."""
        if self._is_set:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters += (waiter,)
        try:
            await waiter
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)

"""Work on files, away from the event loop, that can be called off."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from runner.adapters.packages.tree import GoOn

T = TypeVar("T")

_THREADS = 4
"""So many packages are copied or unpacked at once; the others wait."""


class _CalledOff(Exception):
    """Nobody waits for this work any more."""


class Threads:
    """A few threads of our own, so that nobody else waits for packages."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="packages")

    async def run(self, work: Callable[[GoOn], T]) -> T:
        """Do the work. When this is cancelled, it ends at its next `go_on`, and is waited for."""
        called_off = threading.Event()

        def go_on() -> None:
            if called_off.is_set():
                raise _CalledOff

        future = asyncio.get_running_loop().run_in_executor(self._pool, work, go_on)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            called_off.set()
            await asyncio.gather(future, return_exceptions=True)
            raise

    def close(self) -> None:
        """Let go of the threads; all work was waited for."""
        self._pool.shutdown(wait=False)

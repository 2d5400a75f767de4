"""Work on files, away from the event loop, that can be called off."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TypeVar

from runner.adapters.packages.tree import GoOn
from runner.adapters.packages.turns import Turns

T = TypeVar("T")

_THREADS = 4
"""So much work is done at once; the other waits."""
_EACH = 2
"""And so much of one owner."""
_PARTING = timedelta(seconds=3)
"""How long work that was called off is waited for: a file server that hangs keeps it for ever."""


class _CalledOff(Exception):
    """Nobody waits for this work any more."""


class Threads:
    """A few threads of our own, so that nobody else waits for packages.

    One that hangs keeps its place, and nothing else. They are daemons, and not those of an executor, which Python would
    wait for at its end.
    """

    def __init__(self, turns: Turns | None = None) -> None:
        self._turns = turns or Turns(most=_THREADS, each=_EACH)

    async def run(self, work: Callable[[GoOn], T], *, owner: str) -> T:
        """Do the work when it is its owner's turn. When this is cancelled, it ends at its next `go_on`.

        Raises what the work raises, and `DeferredError` when there was no thread for it.
        """
        await self._turns.take(owner)
        called_off = threading.Event()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda _: self._turns.give_back(owner))
        done.add_done_callback(lambda over: over.cancelled() or over.exception())  # perhaps nobody waits any more
        try:
            threading.Thread(target=_do, args=(work, called_off, done), name="packages", daemon=True).start()
        except RuntimeError as error:
            done.set_exception(OSError(f"no thread could be started: {error}"))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            called_off.set()
            await asyncio.wait({done}, timeout=_PARTING.total_seconds())
            raise


def _do(work: Callable[[GoOn], T], called_off: threading.Event, done: asyncio.Future[T]) -> None:
    def go_on() -> None:
        if called_off.is_set():
            raise _CalledOff

    try:
        result = work(go_on)
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        tell = partial(done.set_exception, error)
    else:
        tell = partial(done.set_result, result)
    with suppress(RuntimeError):  # the loop is closed: we hung for longer than the daemon lived
        done.get_loop().call_soon_threadsafe(tell)

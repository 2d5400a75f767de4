"""A script's life: it goes on until it ends or a signal ends it, and stops what it started either way."""

import asyncio
import signal
from collections.abc import Callable, Coroutine


async def run_until_signal(work: Coroutine[None, None, None], say: Callable[[str], None]) -> int:
    """Do the work; the exit code is 128 and the signal's number when one ended it, else 0. Its errors pass.

    Only the first signal counts: stopping is never cut short.
    """
    task = asyncio.create_task(work)
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        if not received:
            say("stopping what was started")
            task.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        await task
    except asyncio.CancelledError:
        return 128 + received[0]
    return 0

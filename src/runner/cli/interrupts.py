"""The signals that ask a command to end, while something is still to be done about it."""

import asyncio
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(numbers: Collection[signal.Signals], *steps: Callable[[], object]) -> Iterator[None]:
    """Take one of the steps with each of those signals; the one after the last step ends us as the system does."""
    loop = asyncio.get_running_loop()
    left = list(steps)

    def ask() -> None:
        left.pop(0)()
        if not left:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

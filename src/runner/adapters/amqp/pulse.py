"""Whether the broker is still there, as far as one connection can tell."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


def boot_time() -> float:
    """Seconds since the machine was started; goes on while it is suspended, as the broker's clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Pulse:
    """When the broker was last proven to hear us: the time of the newest question that it has answered."""

    heartbeat: timedelta
    clock: Callable[[], float] = boot_time
    asked: float = float("-inf")

    @property
    def period(self) -> float:
        """Seconds between two questions."""
        return max(0.5, self.heartbeat.total_seconds() / 2)

    @property
    def silent(self) -> bool:
        """Whether there was no answer for a heartbeat: the time of two questions."""
        return self.clock() - self.asked > self.heartbeat.total_seconds()

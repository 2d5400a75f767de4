"""What is measured: somebody who runs the same command in the same image with the same limits."""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
HI = ("echo", "hi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The services that all share."""

    broker: str
    engine: str
    image: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One job, in milliseconds from its publication; `first_line` is when a subscriber had one, if any.

    `phases` are the parts of it that the subject itself tells of; `warm` is whether its container had waited for it.
    """

    total: float
    first_line: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    warm: bool = False


class Subject(Protocol):
    """Something that runs jobs. The engine and the broker are no part of it."""

    @property
    def name(self) -> str:
        """What the figures call it."""

    @property
    def pids(self) -> Sequence[int]:
        """Its own processes, as they are now."""

    @abstractmethod
    def spent(self) -> float:
        """Seconds of CPU time that it has used so far."""

    @abstractmethod
    async def one(self) -> Run:
        """Run `echo hi`, and return when its end is known."""

    @abstractmethod
    async def many(self, count: int) -> float:
        """Run so many of them, submitted at once; the seconds until the last has ended and nothing is left of any."""

    @abstractmethod
    async def rest(self) -> None:
        """Return when it does nothing any more that others could feel."""


def since(began: float) -> float:
    """Milliseconds since then, by the clock of `perf_counter`."""
    return 1000 * (time.perf_counter() - began)

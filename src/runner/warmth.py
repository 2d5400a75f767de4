"""How many containers to keep ready, of which kinds. Pure: the caller brings the clock (seconds, monotonic).

What an operator asks for is kept always. Beside it, a kind that jobs keep coming for is kept as long as they do: as
many as came in some seconds, since that is how long it takes to make so many anew.
"""

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

_RECENT = timedelta(seconds=60)
_REGULAR = 6
"""Jobs of one kind within `_RECENT` that make it worth while to expect more."""
_PER_READY = 10
"""Recent jobs for each container that is kept ready: those of six seconds."""
_MOST_OF_A_KIND = 32
_LULL = 0.25
_LONGEST_BURST = 1.0
"""Seconds: where that much passes without a job a burst is over; one that lasts longer is the usual run of things."""
_REMEMBERED = 32
"""Jobs of one kind whose sizes are remembered."""
_FIRST_PAUSE = 10.0
_LONGEST_PAUSE = 300.0


@dataclass(slots=True)
class Warmth:
    """Reckons from what came lately. `most` is how many containers may wait at all."""

    most: int
    _starts: dict[str, deque[float]] = field(default_factory=dict)
    _burst: float = -inf
    _last: float = -inf

    def started(self, kind: str, now: float) -> None:
        """A job came that a container of that kind serves, or would have served."""
        if now - self._last > _LULL:
            self._burst = now
        self._last = now
        self._starts.setdefault(kind, deque()).append(now)

    def recent(self, now: float) -> frozenset[str]:
        """The kinds that jobs came for lately."""
        self._forget(now)
        return frozenset(self._starts)

    def hold_back(self, now: float) -> float:
        """For how many seconds nothing is to be made: the jobs of a burst need what the making would take."""
        return max(0.0, min(self._last + _LULL, self._burst + _LONGEST_BURST) - now)

    def wanted(self, standing: Mapping[str, int], now: float) -> dict[str, int]:
        """How many of each kind to keep, `standing` ones first; a kind that is not named is not kept."""
        self._forget(now)
        left, wanted = self.most, dict[str, int]()
        for kind, count in standing.items():
            wanted[kind] = min(count, left)
            left -= wanted[kind]
        busiest = sorted(self._starts, key=lambda kind: len(self._starts[kind]), reverse=True)
        for kind in busiest:
            more = min(self._expected(kind) - wanted.get(kind, 0), left)
            if more > 0:
                wanted[kind] = wanted.get(kind, 0) + more
                left -= more
        return wanted

    def _expected(self, kind: str) -> int:
        count = len(self._starts[kind])
        return 0 if count < _REGULAR else min(-(-count // _PER_READY), _MOST_OF_A_KIND)

    def _forget(self, now: float) -> None:
        for kind, starts in list(self._starts.items()):
            while starts and now - starts[0] > _RECENT.total_seconds():
                starts.popleft()
            if not starts:
                del self._starts[kind]


@dataclass(slots=True)
class Sizes(Generic[S]):
    """In which sizes jobs of each kind came lately, however long ago that is: what is made has those sizes."""

    _came: dict[str, deque[S]] = field(default_factory=dict)

    def came(self, kind: str, size: S) -> None:
        """A job of that kind and size came."""
        self._came.setdefault(kind, deque(maxlen=_REMEMBERED)).append(size)

    def due(self, kind: str, waiting: Iterable[S]) -> S | None:
        """The size that those which wait lack most, by its share of the jobs; None if none came yet."""
        came, there = Counter(self._came.get(kind, ())), Counter(waiting)
        share = (there.total() + 1) / max(came.total(), 1)
        return max(came, key=lambda size: came[size] * share - there[size], default=None)

    def keep(self, kinds: Collection[str]) -> None:
        """Forget all others."""
        for kind in self._came.keys() - set(kinds):
            del self._came[kind]


@dataclass(slots=True)
class Setbacks:
    """Which kinds are not to be tried for now: one that cannot be started must not keep the others from being ready."""

    _until: dict[str, float] = field(default_factory=dict)
    _pauses: dict[str, float] = field(default_factory=dict)

    def failed(self, kind: str, now: float) -> None:
        """A container of that kind could not be started, or ended at once."""
        pause = self._pauses[kind] = min(2 * self._pauses.get(kind, _FIRST_PAUSE / 2), _LONGEST_PAUSE)
        self._until[kind] = now + pause

    def served(self, kind: str) -> None:
        """A container of that kind came to its job."""
        self._until.pop(kind, None)
        self._pauses.pop(kind, None)

    def pending(self, kind: str) -> bool:
        """Whether it failed and has served nobody since."""
        return kind in self._pauses

    def may(self, kind: str, now: float) -> bool:
        """Whether to try again."""
        return now >= self._until.get(kind, now)

    def keep(self, kinds: Collection[str]) -> None:
        """Forget all others."""
        for kind in self._pauses.keys() - set(kinds):
            self.served(kind)

"""What this machine has left, who starts next, and why not. Pure: the caller brings the clock (seconds, monotonic).

The rule, oldest first:

1. A job starts when its CPUs, its memory (with disk), its scratch and a slot are free.
2. The oldest job that does not fit is the *head*. Younger jobs that fit may start past it, as long as the head has
   waited less than `patience`: a big job does not block small ones.
3. After that the head has a reservation: at the latest when the jobs that run now have reached their time-outs, it
   fits. A younger job starts past it only if it will have ended by then, or fits beside the head even then: small ones
   do not starve a big job, and what the big job cannot use yet does not lie idle.
4. At most `lookahead` jobs wait here; all others wait in the broker, where other workers can take them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import inf

from runner.job import Bytes, Limits
from runner.units import format_size

_NO_DISK = Bytes(0)
_RECENT = 32
"""How many of the last claims tell what size of job to expect next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one job takes: thousandths of a CPU, bytes of memory, bytes of real disk, and one slot."""

    millicpus: int
    memory: Bytes
    disk: Bytes = _NO_DISK

    @classmethod
    def of(cls, limits: Limits) -> "Claim":
        """What a job with these limits takes; its `limits.disk` is memory, too, and its scratch is real disk."""
        return cls(millicpus=round(limits.cpus * 1000), memory=Bytes(limits.memory + limits.disk), disk=limits.scratch)

    def within(self, room: "Claim") -> bool:
        """Whether this fits into that. Who wants no disk starts even where somebody else has filled it."""
        on_disk = self.disk == 0 or self.disk <= room.disk
        return on_disk and self.millicpus <= room.millicpus and self.memory <= room.memory

    def __add__(self, other: "Claim") -> "Claim":
        return Claim(
            millicpus=self.millicpus + other.millicpus,
            memory=Bytes(self.memory + other.memory),
            disk=Bytes(self.disk + other.disk),
        )

    def __sub__(self, other: "Claim") -> "Claim":
        return Claim(
            millicpus=self.millicpus - other.millicpus,
            memory=Bytes(self.memory - other.memory),
            disk=Bytes(self.disk - other.disk),
        )


NOTHING = Claim(millicpus=0, memory=Bytes(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the running jobs may claim together."""

    total: Claim
    max_jobs: int


@dataclass(frozen=True, slots=True)
class _Running:
    claim: Claim
    ends: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    name: str
    claim: Claim
    since: float
    lasts: float


@dataclass(slots=True)
class Capacity:
    """The ledger: what runs, what waits here, what is free."""

    budget: Budget
    typical: Claim
    patience: timedelta = timedelta(seconds=30)
    lookahead: int = 4
    _running: dict[str, _Running] = field(default_factory=dict)
    _claimed: Claim = NOTHING
    _stuck: set[str] = field(default_factory=set)
    _waiting: list[_Waiting] = field(default_factory=list)
    _recent: deque[Claim] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def claimed(self) -> Claim:
        """What the running jobs claim together."""
        return self._claimed

    @property
    def free(self) -> Claim:
        """What no running job claims."""
        return self.budget.total - self.claimed

    @property
    def reach(self) -> Claim:
        """What could be free if every job ended that will."""
        return self.budget.total - sum((self._running[name].claim for name in self._stuck), NOTHING)

    @property
    def slots(self) -> int:
        """How many more jobs could run if they were small enough."""
        return self.budget.max_jobs - len(self._running)

    def resize(self, disk: Bytes) -> None:
        """The running jobs may claim this much disk together from now on; it changes with what else is stored there."""
        self.budget = replace(self.budget, total=replace(self.budget.total, disk=disk))

    def offer(self, name: str, claim: Claim, lasts: timedelta, now: float) -> None:
        """Queue a job that will run for at most `lasts`; `admit` says when it may start."""
        self._recent.append(claim)
        self._waiting.append(_Waiting(name, claim, now, lasts.total_seconds()))

    def adopt(self, name: str, claim: Claim, lasts: timedelta, now: float) -> None:
        """Count a job that runs already, whether or not there is room for it."""
        self._hold(name, _Running(claim, now + lasts.total_seconds()))

    def withdraw(self, name: str) -> None:
        """Take a job out of the queue."""
        self._waiting = [waiting for waiting in self._waiting if waiting.name != name]

    def release(self, name: str) -> None:
        """A job and all that it held are gone."""
        if (running := self._running.pop(name, None)) is not None:
            self._claimed -= running.claim  # counted as it goes, for it is asked for many times a job
        self._stuck.discard(name)

    def quarantine(self, name: str) -> None:
        """What a running job holds may never come back: nobody waits for it any more."""
        self._running[name] = replace(self._running[name], ends=inf)
        self._stuck.add(name)

    def hopeless(self) -> list[str]:
        """The jobs that wait here and would not fit whoever ended: the disk is too full, or others hold on to it."""
        return [waiting.name for waiting in self._waiting if not waiting.claim.within(self.reach)]

    def admit(self, now: float) -> list[str]:
        """The jobs that may start now, in this order; they count as running from here on."""
        started = []
        while (waiting := next(self._startable(now), None)) is not None:
            self.withdraw(waiting.name)
            self._hold(waiting.name, _Running(waiting.claim, now + waiting.lasts))
            started.append(waiting.name)
        return started

    def room(self) -> int:
        """How many more deliveries to ask for: as many jobs of the usual size as would fit, but none in vain."""
        if len(self._waiting) >= self.lookahead or self.slots <= 0:
            return 0
        usual, free = self._usual(), self.free
        fitting = min(free.millicpus // usual.millicpus, free.memory // usual.memory, self.slots)
        if not self._running and not self._waiting:
            fitting = max(fitting, 1)
        return max(0, min(fitting, self.slots, self.lookahead + 64))

    def wanted(self) -> bool:
        """Whether what the running jobs claim keeps another one waiting, here or in the broker."""
        return bool(self._waiting) or self.room() == 0

    def waits_for(self, name: str) -> str | None:
        """Why a job that was offered does not run yet, in words; None when it is not waiting here."""
        waiting = next((waiting for waiting in self._waiting if waiting.name == name), None)
        if waiting is None:
            return None
        free, claim = self.free, waiting.claim
        if self.slots <= 0:
            return f"all {self.budget.max_jobs} slots of this worker are taken"
        if claim.millicpus > free.millicpus:
            return f"needs {claim.millicpus / 1000:g} CPUs, {free.millicpus / 1000:g} are free"
        if claim.memory > free.memory:
            return f"needs {format_size(claim.memory)} of memory and disk, {format_size(free.memory)} are free"
        if claim.disk and claim.disk > free.disk:
            free_disk = format_size(Bytes(max(0, free.disk)))
            return f"needs {format_size(claim.disk)} of scratch disk, {free_disk} are free"
        return "a bigger job that has waited longer comes first"

    def _hold(self, name: str, running: _Running) -> None:
        self.release(name)
        self._running[name] = running
        self._claimed += running.claim

    def _startable(self, now: float) -> Iterator[_Waiting]:
        head: _Waiting | None = None
        for waiting in self._waiting:
            fits = self.slots > 0 and waiting.claim.within(self.free)
            if fits and (head is None or self._may_pass(waiting, head, now)):
                yield waiting
            elif head is None:
                head = waiting

    def _may_pass(self, waiting: _Waiting, head: _Waiting, now: float) -> bool:
        if now - head.since < self.patience.total_seconds():
            return True
        start, spare, slots = self._reservation(head, now)
        return now + waiting.lasts <= start or (slots > 0 and waiting.claim.within(spare))

    def _reservation(self, head: _Waiting, now: float) -> tuple[float, Claim, int]:
        """When the head fits at the latest, and what is left beside it then."""
        free, slots, start = self.free, self.slots, now
        for running in sorted(self._running.values(), key=lambda running: running.ends):
            if slots > 0 and head.claim.within(free):
                break
            free, slots, start = free + running.claim, slots + 1, running.ends
        return start, free - head.claim, slots - 1

    def _usual(self) -> Claim:
        """The smallest job to expect, by each measure: what came lately, and the default."""
        seen = [*self._recent, self.typical]
        return Claim(
            millicpus=max(1, min(claim.millicpus for claim in seen)),
            memory=Bytes(max(1, min(claim.memory for claim in seen))),
        )

"""Whose turn it is among the tenants of a worker. Pure: the caller brings the clock (seconds, monotonic).

Each tenant's jobs spend CPU seconds. The one that spent the least in the last minutes, measured against its weight,
goes first. A job that has just started counts for a second of the CPUs that it claims, so that a burst is shared, too;
one that has ended counts for what it used.
"""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

_AT_LEAST = 1.0
"""Seconds that a running job counts for at least."""
_TOGETHER = 1.0
"""Seconds within which the ends of one tenant's jobs are remembered, and forgotten, as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the operator grants a tenant."""

    weight: int = 1
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    tenant: str
    cpus: float
    since: float

    def spent(self, now: float) -> float:
        return self.cpus * max(_AT_LEAST, now - self.since)


@dataclass(slots=True)
class Fairness:
    """Who spent what. `shares` may be replaced at any time; a tenant that it does not name has one of weight 1."""

    shares: Mapping[str, Share]
    window: timedelta = timedelta(minutes=10)
    _running: dict[str, _Running] = field(default_factory=dict)
    _ended: deque[tuple[float, str, float]] = field(default_factory=deque)
    _spent: dict[str, float] = field(default_factory=dict)

    def started(self, claim: str, tenant: str, cpus: float, now: float) -> None:
        """A job of the tenant holds its part of the machine from now on."""
        self._running[claim] = _Running(tenant, cpus, now)

    def ended(self, claim: str, cpu_seconds: float | None, now: float) -> None:
        """The job is over; it used so much, or as much as it claimed if nobody can tell."""
        running = self._running.pop(claim, None)
        if running is None:
            return
        spent = running.spent(now) if cpu_seconds is None else cpu_seconds
        self._forget(now)  # nobody may ever ask
        self._spent[running.tenant] = self._spent.get(running.tenant, 0.0) + spent
        if self._ended:
            at, tenant, earlier = self._ended[-1]
            if tenant == running.tenant and now - at < _TOGETHER:
                self._ended[-1] = (at, tenant, earlier + spent)
                return
        self._ended.append((now, running.tenant, spent))

    def debt(self, tenant: str, now: float) -> float:
        """CPU seconds that the tenant spent in the window, by its weight. The least goes first."""
        self._forget(now)
        running = sum(job.spent(now) for job in self._running.values() if job.tenant == tenant)
        return (self._spent.get(tenant, 0.0) + running) / self._share(tenant).weight

    def debt_beside(self, named: Collection[str], now: float) -> float:
        """The same for the tenants that share one queue: what one of them spent on average."""
        self._forget(now)
        spent = {tenant: seconds for tenant, seconds in self._spent.items() if tenant not in named}
        for job in self._running.values():
            if job.tenant not in named:
                spent[job.tenant] = spent.get(job.tenant, 0.0) + job.spent(now)
        return sum(seconds / self._share(tenant).weight for tenant, seconds in spent.items()) / max(1, len(spent))

    def running(self, tenant: str) -> int:
        """How many of the tenant's jobs hold a part of the machine."""
        return sum(1 for job in self._running.values() if job.tenant == tenant)

    def full(self, tenant: str) -> bool:
        """Whether the tenant runs as many jobs here as it may."""
        most = self._share(tenant).max_running
        return most is not None and self.running(tenant) >= most

    def _share(self, tenant: str) -> Share:
        return self.shares.get(tenant, Share())

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0][0] < now - self.window.total_seconds():
            _, tenant, spent = self._ended.popleft()
            self._spent[tenant] -= spent
            if all(other != tenant for _, other, _ in self._ended):
                del self._spent[tenant]

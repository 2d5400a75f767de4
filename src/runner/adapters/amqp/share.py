"""Which queues to listen to when there is not room for all. Pure.

Priorities take turns by stride scheduling: every job taken moves its priority's pass forward by 1 / weight, and the one
that is furthest behind goes first, the most urgent of those that are level. One of twice the weight is taken from twice
as often, and none starves. Within a priority, the queue with the lowest rank goes first: that of the tenant that spent
the least.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from runner.job import Priority
from runner.ports import QueueKey

WEIGHTS: Mapping[Priority, float] = {Priority.HIGH: 8.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
"""How often a priority's turn comes, beside the others'."""

_URGENCY = {priority: number for number, priority in enumerate(Priority)}
_CREDIT = 1 / max(WEIGHTS.values())

_Group = tuple[str, Priority]


@dataclass(slots=True)
class Shares:
    """Who was served how much."""

    _passes: dict[_Group, float] = field(default_factory=dict)
    _now: float = 0.0

    def served(self, queue: QueueKey) -> None:
        """A job was taken from the queue."""
        passed = self._pass(queue)
        self._now = max(self._now, passed)
        self._passes[_group(queue)] = passed + 1 / WEIGHTS[queue.priority]

    def choose(
        self,
        ranks: Mapping[QueueKey, float],
        backlog: Mapping[QueueKey, int],
        count: int,
        limits: Mapping[QueueKey, int] = MappingProxyType({}),
    ) -> list[QueueKey]:
        """Up to `count` of the queues in `ranks` to listen to, each at most as often as `limits` says, or else once.

        Where jobs wait in several queues, those that had more than their share pause until the others have caught up;
        queues where nothing waits are listened to as far as there is room. Only the one queue in which jobs wait while
        all others are empty is listened to more than once: who goes next is decided job by job where there is a choice.
        """
        order = sorted(
            (queue for queue in ranks if limits.get(queue, 1) > 0),
            key=lambda queue: (self._pass(queue), _URGENCY[queue.priority], ranks[queue]),
        )
        busy = [queue for queue in order if backlog.get(queue, 0) > 0]
        idle = [queue for queue in order if backlog.get(queue, 0) == 0]
        chosen = (self._due(busy) + idle)[:count]
        rivals = [queue for queue in ranks if backlog.get(queue, 0) > 0]
        if len(rivals) == 1 and rivals[0] in chosen:
            chosen += rivals * min(limits.get(rivals[0], 1) - 1, count - len(chosen))
        return chosen

    def _due(self, busy: list[QueueKey]) -> list[QueueKey]:
        """The first queue of each priority that is not ahead of its turn."""
        first: dict[_Group, QueueKey] = {}
        for queue in busy:
            if self._pass(queue) <= self._pass(busy[0]) + 1 / WEIGHTS[queue.priority]:
                first.setdefault(_group(queue), queue)
        return list(first.values())

    def _pass(self, queue: QueueKey) -> float:
        # A priority that was empty for long gets no credit for it, or the least urgent would go first after a pause.
        floor = self._now - _CREDIT
        return max(self._passes.get(_group(queue), floor), floor)


def _group(queue: QueueKey) -> _Group:
    return queue.pool, queue.priority

"""Which queues to listen to when there is not room for all. Pure.

Stride scheduling: every job taken from a queue moves the queue's pass forward by 1 / weight, and the queue that is
furthest behind goes first. A queue of twice the weight is taken from twice as often, and none starves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runner.job import Priority
from runner.ports import QueueKey

WEIGHTS: Mapping[Priority, float] = {Priority.HIGH: 8.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
"""How often a priority's turn comes, beside the others'."""


@dataclass(slots=True)
class Shares:
    """Who was served how much."""

    _passes: dict[QueueKey, float] = field(default_factory=dict)
    _now: float = 0.0

    def served(self, queue: QueueKey) -> None:
        """A job was taken from the queue."""
        self._now = max(self._now, self._pass(queue))
        self._passes[queue] = self._pass(queue) + 1 / WEIGHTS[queue.priority]

    def choose(self, queues: Iterable[QueueKey], backlog: Mapping[QueueKey, int], count: int) -> list[QueueKey]:
        """Up to `count` queues to listen to.

        Where jobs wait in several queues, those that had more than their share pause until the others have caught up;
        queues where nothing waits are listened to as far as there is room.
        """
        order = sorted(queues, key=self._pass)
        busy = [queue for queue in order if backlog.get(queue, 0) > 0]
        idle = [queue for queue in order if backlog.get(queue, 0) == 0]
        due = [queue for queue in busy if self._pass(queue) <= self._pass(busy[0]) + 1 / WEIGHTS[queue.priority]]
        return (due + idle)[:count]

    def _pass(self, queue: QueueKey) -> float:
        # A queue that was empty for long gets no credit for it: at most one turn of its own.
        floor = self._now - 1 / WEIGHTS[queue.priority]
        return max(self._passes.get(queue, floor), floor)

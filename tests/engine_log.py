"""Keeps what the docker adapter tells its observer."""

from collections import Counter


class EngineLog:
    """Implements `EngineObserver`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds: list[tuple[str, float]] = []
        self.failures: Counter[tuple[str, str]] = Counter()
        self.created = 0
        self.removed = 0
        self.orphans = 0
        self.cleanups_failed = 0
        self.unaccounted = 0
        self.disputed: Counter[str] = Counter()
        self.warm: dict[str, int] = {}

    @property
    def living(self) -> int:
        return self.created - self.removed

    def call_done(self, operation: str, seconds: float) -> None:
        self.calls[operation] += 1
        self.seconds.append((operation, seconds))

    def call_failed(self, operation: str, kind: str) -> None:
        self.failures[operation, kind] += 1

    def container_created(self) -> None:
        self.created += 1

    def container_removed(self) -> None:
        self.removed += 1

    def containers_counted(self) -> int:
        return self.living

    def containers_unaccounted(self, count: int) -> None:
        self.unaccounted = count

    def warm_containers(self, stack: str, count: int) -> None:
        self.warm[stack] = count

    def end_disputed(self, what: str) -> None:
        self.disputed[what] += 1

    def orphan_removed(self) -> None:
        self.orphans += 1

    def cleanup_failed(self) -> None:
        self.cleanups_failed += 1

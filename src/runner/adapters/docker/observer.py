"""What the adapter tells whoever counts."""

from typing import Protocol


class EngineObserver(Protocol):
    """Counts what happens between us and the engine. Implemented once, on the metrics registry."""

    def call_done(self, operation: str, seconds: float) -> None:
        """The engine answered a call, or failed it, after so many seconds."""

    def call_failed(self, operation: str, kind: str) -> None:
        """A call failed. `kind` is one of `client.FailureKind`."""

    def container_created(self) -> None:
        """There is one more container of ours (adopted and swept ones count when they are first seen)."""

    def container_removed(self) -> None:
        """There is one container of ours less."""

    def containers_counted(self) -> int:
        """How many containers there are by these two counts: below zero if one was counted out twice."""

    def containers_unaccounted(self, count: int) -> None:
        """So many containers are too many or too few; 0 when all is well."""

    def warm_containers(self, stack: str, count: int) -> None:
        """So many containers of a stack wait for a job."""

    def end_disputed(self, what: str) -> None:
        """The engine contradicts the report that a job's end was told by. `what` is one of `ending.Matter`."""

    def orphan_removed(self) -> None:
        """A container that no task owned was removed."""

    def cleanup_failed(self) -> None:
        """One try at removing something failed; there will be another."""

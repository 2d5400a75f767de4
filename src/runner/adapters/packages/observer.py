"""What the adapter tells whoever counts."""

from enum import StrEnum
from typing import Protocol


class Arrival(StrEnum):
    """How a job came by its code."""

    CACHED = "cached"
    NEW = "new"
    REJECTED = "rejected"
    DEFERRED = "deferred"


class PackageObserver(Protocol):
    """Counts code packages. Implemented once, on the metrics registry."""

    def package_arrived(self, how: Arrival) -> None:
        """A job has its code, or will not get it here."""

    def packages_kept(self, size: int) -> None:
        """The packages on disk take so many bytes."""

    def cleanup_failed(self) -> None:
        """One try at removing something failed; the next start of the daemon makes another."""

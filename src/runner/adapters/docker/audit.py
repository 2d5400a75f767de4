"""Whether every container is accounted for: the proof that nothing leaks."""

import logging

from runner.adapters.docker.observer import EngineObserver

_LOG = logging.getLogger(__name__)


class Audit:
    """Compares, while this worker has no job, what was counted with what the engine lists.

    Both have to be nothing but the containers that wait for a job.

    Only what two such looks in a row find counts: a container may be on its way while the engine is asked.
    """

    def __init__(self, observer: EngineObserver) -> None:
        self._observer = observer
        self._listed: frozenset[str] = frozenset()
        self._counted = 0
        self._told: tuple[int, frozenset[str]] = (0, frozenset())

    @property
    def unaccounted(self) -> int:
        """How many containers, at least, are one too many or too few; what the last two looks found."""
        return self._told[0]

    def look(self, *, idle: bool, listed: frozenset[str], waiting: int = 0) -> None:
        """Judge the engine's list of this worker's containers, without those `waiting` for a job, which are counted.

        `idle`: there was no job, and nothing of one, when the list was asked for and when it came. Otherwise nothing
        can be told, and the last judgement stands.
        """
        if not idle:
            return
        counted = self._observer.containers_counted() - waiting
        lasting = listed & self._listed
        skew = min(abs(counted), abs(self._counted)) if counted * self._counted > 0 else 0
        self._listed, self._counted = listed, counted
        self._tell(max(len(lasting), skew), lasting, counted)

    def _tell(self, unaccounted: int, listed: frozenset[str], counted: int) -> None:
        self._observer.containers_unaccounted(unaccounted)
        before, self._told = self._told, (unaccounted, listed)
        if self._told == before:
            return
        if unaccounted:
            _LOG.error(
                "there are containers that nobody accounts for",
                extra={"unaccounted": unaccounted, "counted": counted, "containers": sorted(listed)},
            )
        else:
            _LOG.info("all containers are accounted for again")

"""How many containers there are, so that whatever leaks can be seen."""

from runner.adapters.docker.observer import EngineObserver


class Census:
    """Counts each container once when it appears and once when it is gone, however often either is noticed."""

    def __init__(self, observer: EngineObserver) -> None:
        self._observer = observer
        self._living: set[str] = set()

    def appeared(self, name: str) -> None:
        """The engine has a container of that name."""
        if name not in self._living:
            self._living.add(name)
            self._observer.container_created()

    def goes_by(self, before: str, name: str) -> None:
        """A container that was counted goes by another name now."""
        if before in self._living:
            self._living.remove(before)
            self._living.add(name)

    def gone(self, name: str) -> None:
        """The engine has no container of that name any more. Nothing to count if there never was one."""
        if name in self._living:
            self._living.remove(name)
            self._observer.container_removed()

    def living(self) -> frozenset[str]:
        """The names that appeared and are not gone."""
        return frozenset(self._living)

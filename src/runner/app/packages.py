"""The code packages of a worker, from its settings."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from runner.adapters.packages.observer import PackageObserver
from runner.adapters.packages.store import PackageStore, open_packages
from runner.app.policy import sources_of
from runner.settings import Settings


def open_packages_of(
    settings: Settings, state_dir: Path, observer: PackageObserver
) -> AbstractAsyncContextManager[PackageStore]:
    """The packages under a worker's state folder."""
    return open_packages(
        folder=state_dir / "code",
        sources=sources_of(settings),
        private=settings.network.private,
        max_bytes=settings.code.max_bytes,
        cache_bytes=settings.code.cache_bytes,
        reserve=settings.capacity.disk_free,
        observer=observer,
    )

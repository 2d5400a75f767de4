"""Unpacked packages on disk: `<folder>/<tenant>/<sha256>/`, the least recently used of them thrown out first.

::

    tree/       what jobs see
    holds/      a file for each claim whose container has it mounted: what survives the daemon
    size        the bytes that it takes, and how many files, folders and links it has

A package appears by a rename, whole; what is being made or thrown out is in `.work`. All of this is quick, but
`load`.
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from runner.adapters.packages.tree import Extent

_TREE, _HOLDS, _SIZE, _WORK, _BOOT = "tree", "holds", "size", ".work", ".boot"
_OVERHEAD = 5 * 4096
"""The bytes that a package takes beside its tree: three folders, its size, and a hold."""
_PACKAGES_MAX = 10_000
"""The most packages that are kept for later: each of them costs inodes and time at the start, however small it is."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True, kw_only=True)
class Package:
    """One unpacked package. `used` is when a job last took it, in seconds since 1970."""

    folder: Path
    extent: Extent
    used: float
    holders: set[str] = field(default_factory=set)

    @property
    def tree(self) -> Path:
        """What jobs see of it."""
        return self.folder / _TREE


class Cache:
    """The packages of all tenants; none of them ever sees another's.

    What nobody uses is thrown out when all of them take more than `most` bytes: first that of tenants who have more
    than an equal share of it.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        self._folder = folder
        self._most = most
        self._packages: dict[tuple[str, str], Package] = {}
        self._held: dict[str, Package] = {}
        self._sizes: Counter[str] = Counter()
        self._aside: list[Path] = []

    @property
    def size(self) -> int:
        """The bytes that all packages take."""
        return self._sizes.total()

    def load(self, claims: Collection[str]) -> None:
        """Take over what an earlier life left, with the holds of these claims alone. Raises `OSError`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        boot, now = self._folder / _BOOT, _BOOT_ID.read_text()
        if not boot.exists() or boot.read_text() != now:
            # Nothing is synced: after a crash of the machine, a file may have come back empty.
            for path in self._folder.iterdir():
                _remove(path)
            boot.write_text(now)
        _remove(self._folder / _WORK)
        (self._folder / _WORK).mkdir(mode=0o700)
        for tenant in self._tenants():
            for folder in list(tenant.iterdir()):
                self._take_over(tenant.name, folder, claims)

    def work_folder(self) -> Path:
        """A new folder to make a package in; `add` takes it, or whoever asked for it removes it."""
        folder = Path(tempfile.mkdtemp(dir=self._folder / _WORK))
        for name in (_TREE, _HOLDS):
            (folder / name).mkdir()
        (folder / _TREE).chmod(0o755)
        folder.chmod(0o755)  # what is above is ours alone; in the container, nothing is above
        return folder

    def tree_of(self, folder: Path) -> Path:
        """Where to unpack a package that is made in a folder."""
        return folder / _TREE

    def find(self, tenant: str, digest: str) -> Package | None:
        """The package, if it is here."""
        return self._packages.get((tenant, digest))

    def add(self, folder: Path, tenant: str, digest: str, extent: Extent) -> Package:
        """A folder of `work_folder` is complete. One that came first stays. Raises `OSError`."""
        known = self.find(tenant, digest)
        if known is not None:
            return known
        (folder / _SIZE).write_text(f"{extent.size} {extent.entries}")
        place = self._folder / tenant / digest
        place.parent.mkdir(mode=0o700, exist_ok=True)
        if place.exists():  # nothing that we know
            self._aside.append(self._put_aside(place))
        folder.rename(place)
        return self._know(tenant, Package(folder=place, extent=extent, used=time.time()))

    def hold(self, package: Package, claim: str) -> None:
        """Keep the package for a claim, in our next life, too. Raises `OSError`."""
        (package.folder / _HOLDS / claim).touch()
        package.holders.add(claim)
        self._held[claim] = package
        package.used = time.time()
        os.utime(package.folder)

    def release(self, claim: str) -> None:
        """The claim needs it no more; done already when it held nothing. Raises `OSError`."""
        package = self._held.pop(claim, None)
        if package is not None:
            package.holders.discard(claim)
            (package.folder / _HOLDS / claim).unlink(missing_ok=True)

    def evict(self) -> Iterator[Path]:
        """Throw out what nobody uses until the rest fits; the folders are left to be removed. Raises `OSError`."""
        while self._aside:
            yield self._aside.pop()
        while self.size > self._most or len(self._packages) > _PACKAGES_MAX:
            idle = [key for key, package in self._packages.items() if not package.holders]
            if not idle:
                return
            tenant, digest = min(idle, key=self._worth)
            package = self._packages[tenant, digest]
            folder = self._put_aside(package.folder)
            # Only now: a package that is there and that we do not know would be in the way of the next one.
            del self._packages[tenant, digest]
            self._sizes[tenant] -= package.extent.size + _OVERHEAD
            self._sizes += Counter()  # forgets tenants without a package
            yield folder

    def _worth(self, key: tuple[str, str]) -> tuple[bool, float]:
        """What is least goes first."""
        return self._sizes[key[0]] <= self._most / len(self._sizes), self._packages[key].used

    def _put_aside(self, folder: Path) -> Path:
        """Where the folder is now, to be removed. By one rename, which a full disk allows, too."""
        place = self._folder / _WORK / f"evicted-{uuid4().hex}"
        folder.rename(place)
        return place

    def _know(self, tenant: str, package: Package) -> Package:
        self._packages[tenant, package.folder.name] = package
        self._sizes[tenant] += package.extent.size + _OVERHEAD
        return package

    def _tenants(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _take_over(self, tenant: str, folder: Path, claims: Collection[str]) -> None:
        try:
            size, entries = map(int, (folder / _SIZE).read_text().split())
            holds = list((folder / _HOLDS).iterdir())
        except (OSError, ValueError):
            _remove(folder)  # nothing that we made
            return
        extent = Extent(size=size, entries=entries)
        package = self._know(tenant, Package(folder=folder, extent=extent, used=folder.stat().st_mtime))
        for hold in holds:
            if hold.name in claims:
                package.holders.add(hold.name)
                self._held[hold.name] = package
            else:
                hold.unlink()


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

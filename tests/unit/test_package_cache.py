"""What packages on disk are counted as, and which of them go."""

import os
from pathlib import Path

import pytest

from runner.adapters.packages import cache
from runner.adapters.packages.cache import Cache
from runner.adapters.packages.tree import Extent

KIB = 1024


def opened(folder: Path, most: int) -> Cache:
    packages = Cache(folder / "code", most=most)
    packages.load(())
    return packages


def put(packages: Cache, tenant: str, digest: str, size: int = 4 * KIB) -> None:
    packages.add(packages.work_folder(), tenant, digest, Extent(size=size, entries=1))


def kept(folder: Path) -> set[str]:
    return {str(path.relative_to(folder / "code")) for path in (folder / "code").glob("[!.]*/*")}


def test_a_package_counts_what_it_takes_beside_its_tree(tmp_path: Path) -> None:
    packages = opened(tmp_path, most=0)
    put(packages, "acme", "a")
    put(packages, "acme", "b")
    assert packages.size == 2 * (4 + 20) * KIB
    again = opened(tmp_path, most=0)
    assert again.size == packages.size
    assert len(list(again.evict())) == 2
    assert again.size == 0


def test_there_are_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PACKAGES_MAX", 3)
    packages = opened(tmp_path, most=1 << 30)
    for digest in "abcde":
        put(packages, "acme", digest)
    list(packages.evict())
    assert kept(tmp_path) == {"acme/c", "acme/d", "acme/e"}


def test_a_tenant_with_more_than_its_share_gives_first(tmp_path: Path) -> None:
    packages = opened(tmp_path, most=100 * KIB)
    put(packages, "small", "oldest")
    for digest in "abcd":
        put(packages, "large", digest)
    list(packages.evict())
    assert kept(tmp_path) == {"small/oldest", "large/b", "large/c", "large/d"}


def test_a_package_that_cannot_be_put_aside_stays_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    packages = opened(tmp_path, most=0)
    put(packages, "acme", "a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space"):
            list(packages.evict())
    assert packages.find("acme", "a") is not None
    assert len(list(packages.evict())) == 1
    assert kept(tmp_path) == set()
    assert packages.size == 0


def test_what_nobody_knows_is_not_in_the_way(tmp_path: Path) -> None:
    packages = opened(tmp_path, most=1 << 20)
    stray = tmp_path / "code" / "acme" / "a" / "tree"
    stray.mkdir(parents=True)
    (stray / "x").touch()
    put(packages, "acme", "a")
    assert os.listdir(stray) == []  # noqa: PTH208 - names alone
    assert [(path / "tree" / "x").exists() for path in packages.evict()] == [True]

"""`make stacks` builds what has changed, and only that."""

from pathlib import Path
from typing import Any

import aiodocker
import pytest
from scripts import stacks
from scripts.sizes import measure

BASE = "runner-base/trixie"


class FakeImages:
    """The images of an engine: by name, what `inspect` says."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {BASE: {"Id": "sha256:base"}}

    async def inspect(self, name: str) -> dict[str, Any]:
        if name not in self.known:
            raise aiodocker.DockerError(404, f"No such image: {name}")
        return self.known[name]

    async def list(self) -> list[dict[str, Any]]:
        return [{"RepoTags": [f"{name}"]} for name in self.known]


class FakeDocker:
    def __init__(self) -> None:
        self.images = FakeImages()


class Shop:
    """A folder with the stack `lua-1`, an engine, and who builds: each build is noted, and makes another revision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stacks" / "lua-1"
        self.folder.mkdir(parents=True)
        (self.folder / "Dockerfile").write_text(f"FROM {BASE}\n")
        (self.folder / "stack.toml").write_text("")
        self.stamps = folder / "stamps"
        self.docker = FakeDocker()
        self.built: list[str] = []
        self.fails = False

    async def build(self, _env: object, name: str, _log: Path) -> dict[str, Any] | None:
        self.built.append(name)
        if self.fails:
            return None
        revision = f"r{len(self.built)}"
        self.docker.images.known["runner/lua-1:current"] = {"Config": {"Labels": {"runner.revision": revision}}}
        return {"revision": revision, "changed": True}

    async def make(self, **env: str) -> int:
        """Run `make stacks`; how many builds there have been."""
        await stacks.build_stacks(self.docker, env, ["lua-1"], self.stamps)  # type: ignore[arg-type]
        return len(self.built)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path)
    monkeypatch.setattr(stacks, "STACKS", tmp_path / "stacks")
    monkeypatch.setattr(stacks, "FOLDER", tmp_path)
    monkeypatch.setattr(stacks, "build", shop.build)
    return shop


async def test_what_has_not_changed_is_left_alone(shop: Shop) -> None:
    assert await shop.make() == 1
    assert await shop.make() == 1


async def test_a_changed_file_base_or_engine_is_built_again(shop: Shop) -> None:
    await shop.make()
    (shop.folder / "stack.toml").write_text('description = "new"\n')
    assert await shop.make() == 2
    shop.docker.images.known[BASE] = {"Id": "sha256:refreshed"}
    assert await shop.make() == 3
    assert await shop.make(RUNNER_ENGINE__URL="unix:///another.sock") == 4


async def test_an_image_that_is_gone_or_that_another_has_replaced_is_built_again(shop: Shop) -> None:
    await shop.make()
    del shop.docker.images.known["runner/lua-1:current"]
    assert await shop.make() == 2
    shop.docker.images.known["runner/lua-1:current"] = {"Config": {"Labels": {"runner.revision": "r1"}}}
    assert await shop.make() == 3


async def test_what_a_prepare_brings_may_have_changed_every_time(shop: Shop) -> None:
    (shop.folder / "prepare").write_text("#!/bin/sh\n")
    await shop.make()
    assert await shop.make() == 2


async def test_one_that_fails_is_told_and_tried_again(shop: Shop) -> None:
    shop.fails = True
    with pytest.raises(stacks.StacksError, match="lua-1"):
        await shop.make()
    shop.fails = False
    assert await shop.make() == 2


async def test_layers_that_are_shared_count_once() -> None:
    docker = FakeDocker()
    for name, size, layers in (
        ("runner-base/trixie:latest", 80_000_000, ["a"]),
        ("runner-base/unused:latest", 70_000_000, ["z"]),
        ("runner/one:current", 100_000_000, ["a", "b"]),
        ("runner/two:current", 110_000_000, ["a", "c"]),
        ("runner/alone:current", 10_000_000, ["d"]),
    ):
        docker.images.known[name] = {"Size": size, "RootFS": {"Layers": layers}}
    del docker.images.known[BASE]
    told = await measure(docker, ["one", "two", "alone"])  # type: ignore[arg-type]
    assert "unused" not in told
    assert told.splitlines()[-2].split()[-2:] == ["220.0", "140.0"]
    assert told.splitlines()[-1] == "together they take 63.6% of the sum"

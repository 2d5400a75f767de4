"""`make stacks` builds what has changed, and only that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from scripts import stacks
from scripts.sizes import measure

from runner.job import Bytes

BASE = "runner-base/trixie"


class FakeImages:
    """The images of an engine: by name, what `inspect` says."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {BASE: {"Id": "sha256:base"}}

    async def inspect(self, name: str) -> dict[str, Any]:
        if name not in self.known:
            raise aiodocker.DockerError(404, f"No such image: {name}")
        return self.known[name]


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


class FakeLayers:
    """What the engine tells of layers: their sizes in MB, by image."""

    known: Mapping[str, Mapping[str, int]] = {
        "runner-base/trixie": {"a": 80},
        "runner/one:current": {"a": 80, "b": 20},
        "runner/two:current": {"a": 80, "c": 30},
        "runner/alone:current": {"d": 10},
    }

    async def layers(self, image: str) -> Mapping[str, Bytes]:
        return {layer: Bytes(size * 1_000_000) for layer, size in self.known[image].items()}


async def test_layers_that_are_shared_count_once() -> None:
    told = await measure(FakeLayers(), ["one", "two", "alone"], ["runner-base/trixie"])
    rows = {words[0]: words[1:] for line in told.splitlines() if (words := line.split())}
    assert rows["runner-base/trixie"] == ["80.0", "80.0"]
    assert rows["runner/two:current"] == ["110.0", "30.0"]
    assert rows["runner/alone:current"] == ["10.0", "10.0"]
    assert told.splitlines()[-2].split()[-2:] == ["220.0", "140.0"]
    assert told.splitlines()[-1] == "together they take 63.6% of the sum"

"""The images that a Dockerfile stands on are those that the engine would ask for."""

import re
from pathlib import Path

import pytest

from runner.stacks.build import build
from runner.stacks.dockerfile import named_images
from runner.stacks.images import BuildError


@pytest.mark.parametrize(
    ("dockerfile", "images"),
    [
        ("FROM scratch\nCOPY . /\n", set()),
        ("from --platform=linux/amd64 debian:12 as build\nFROM build\nCOPY --from=build /x /\n", {"debian:12"}),
        ("FROM a AS one\nCOPY --chown=0 --from=0 / /\nCOPY --from=runner/b:current / /\n", {"a", "runner/b:current"}),
        ("FROM base AS Build\nCOPY --from=build / /\nFROM BUILD\n", {"base"}),
        ("# escape=`\nFROM `\n  # a word between\n\n  runner/a\n", {"runner/a"}),
        ("FROM \\\n  runner/a\nRUN echo \\\n  FROM runner/b\n", {"runner/a"}),
        ("ARG BASE=runner-base/trixie\nFROM $BASE\n", {"runner-base/trixie"}),
        ("ARG R=trixie\nARG BASE=\"runner-base/${R}\"\nFROM '${BASE}'\n", "only $NAME"),
        ('ARG R=trixie BASE="runner-base/${R}"\nFROM "${BASE}"\n', {"runner-base/trixie"}),
        ("ARG TAG\nFROM debian:${TAG:-12}\n", {"debian:12"}),
        ("ARG TAG=13\nARG ODD=${TAG%3}\nFROM debian:${TAG:-12}\n", {"debian:13"}),
        ("ARG BASE\nFROM $BASE\n", "BASE has no value"),
        ("FROM debian\nARG BASE=x\nFROM $BASE\n", "BASE has no value"),
        ("ARG TAG=13\nARG BASE=debian:${TAG%3}\nFROM $BASE\n", "only $NAME"),
        ("FROM debian\nARG FROM=runner/a\nCOPY --from=$FROM / /\n", "no ARG counts here"),
    ],
)
def test_images_are_found_however_they_are_written(dockerfile: str, images: set[str] | str) -> None:
    if isinstance(images, str):
        with pytest.raises(ValueError, match=re.escape(images)):
            named_images(dockerfile)
    else:
        assert named_images(dockerfile) == images


class NoImages:
    """An engine that has nothing, and builds nothing."""

    async def inspect(self, name: str) -> None:
        """There is none."""

    async def build(self, *_: object, **__: object) -> str:
        raise AssertionError("it was to be refused before")

    async def read(self, image: str, path: str, container: str) -> None:
        """There is none."""


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        ('printf "FROM runner-base/none\\n" >"$1/Dockerfile"', "runner-base/none is not here"),
        ('printf "FROM \\$NONE\\n" >"$1/Dockerfile"', "NONE has no value"),
        ('ln -s /nowhere "$1/Dockerfile"', "leads to no file"),
    ],
    ids=["base", "unclear", "link"],
)
async def test_the_dockerfile_that_counts_is_the_one_that_the_engine_gets(
    tmp_path: Path, prepare: str, why: str
) -> None:
    folder = tmp_path / "py"
    folder.mkdir()
    (folder / "stack.toml").touch()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "prepare").write_text(f"#!/bin/sh\n{prepare}\n")
    (folder / "prepare").chmod(0o755)
    with pytest.raises(BuildError, match=re.escape(why)):
        await build(folder, NoImages(), print)

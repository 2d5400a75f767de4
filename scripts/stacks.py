"""Builds the stacks of `config/stacks`, and first the bases that they stand on. What is there already is kept.

Uses the engine that `RUNNER_ENGINE__URL` names, else the private one of this working copy.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiodocker

from runner.adapters.docker.images import Images
from runner.stacks import names as image_names
from runner.stacks.context import PREPARE
from scripts.bases import REPOSITORY, BaseError, is_made, make, named_base
from scripts.daemon import end
from scripts.devservices import ServiceError
from scripts.devservices.process import log_tail
from scripts.devservices.shared import DEV, borrowed, shared_engine
from scripts.mirror import MirrorError, find_mirror
from scripts.sizes import measure
from scripts.stopping import run_until_signal

ROOT = Path(__file__).resolve().parents[1]
STACKS = ROOT / "config" / "stacks"
RUNNER = str(Path(sys.executable).with_name("runner"))
FOLDER = DEV / "stacks"


class StacksError(Exception):
    """A stack could not be built; says which."""


def say(text: str) -> None:
    print(f"stacks: {text}", file=sys.stderr, flush=True)


def all_stacks() -> list[str]:
    """The names of the stacks that we have."""
    return sorted(path.parent.name for path in STACKS.glob("*/stack.toml"))


async def build_all(names: Sequence[str], *, refresh: bool, sizes: bool) -> None:
    """Build these stacks on the engine, base first."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        url = os.environ.get("RUNNER_ENGINE__URL", "")
        if not url:
            say("starting a private Docker Engine under .dev/")
            url = await stack.enter_async_context(borrowed(shared_engine()))
        docker = await stack.enter_async_context(aiodocker.Docker(url=url.replace("tcp://", "http://", 1)))
        await build_bases(docker, names, refresh=refresh)
        await build_stacks(docker, environment(url), names, FOLDER / "stamps")
        if sizes:
            bases = [f"{REPOSITORY}/{release}" for release in _releases(names)]
            print(await measure(Images(docker), names, bases))


async def build_bases(docker: aiodocker.Docker, names: Sequence[str], *, refresh: bool) -> None:
    """Make the bases that these stacks name."""
    releases = _releases(names)
    mirror = find_mirror() if releases else None
    for release in releases:
        if mirror is None or (not refresh and await is_made(docker, release, mirror)):
            continue
        say(f"making the base {release} with debootstrap from {mirror.url}; its log is {FOLDER}/base-{release}.log")
        began = time.monotonic()
        await make(docker, release, mirror, FOLDER)
        say(f"made the base {release} in {_since(began)}")


def _releases(names: Sequence[str]) -> list[str]:
    """The bases that these stacks stand on."""
    dockerfiles = [(STACKS / name / "Dockerfile").read_text() for name in names]
    return sorted({release for text in dockerfiles if (release := named_base(text))})


async def build_stacks(docker: aiodocker.Docker, env: Mapping[str, str], names: Sequence[str], stamps: Path) -> None:
    """Have `runner stacks build` build and test each that has changed, and tell how far it is.

    `stamps` is a folder in which we note what was built for that environment, and from what.
    """
    stamps.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, name in enumerate(names, 1):
        head = f"[{number:2}/{len(names)}] {name}"
        inputs, revision = await _inputs(docker, env, name), await _current(docker, name)
        if revision is not None and _read(stamps / name) == [inputs, revision]:
            say(f"{head}: {revision}, unchanged")
            continue
        say(f"{head} …")
        began = time.monotonic()
        built = await build(env, name, FOLDER / f"{name}.log")
        if built is None:
            say(f"{head}: failed{log_tail(FOLDER / f'{name}.log')}")
            failed.append(name)
            continue
        (stamps / name).write_text(f"{inputs} {built['revision']}\n")
        state = "current now" if built["changed"] else "the same as before"
        say(f"{head}: {built['revision']}, {state}, {_since(began)}")
    if failed:
        raise StacksError(f"not built: {', '.join(failed)}; their logs are in {FOLDER}")


async def _inputs(docker: aiodocker.Docker, env: Mapping[str, str], name: str) -> str:
    """A hash of what the stack is made from; never the same where a `prepare` brings what only it knows."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (STACKS / name).rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(STACKS)}\0".encode() + path.read_bytes())
        if path.name == PREPARE:
            digest.update(os.urandom(16))
    if release := named_base((STACKS / name / "Dockerfile").read_text()):
        digest.update((await docker.images.inspect(f"{REPOSITORY}/{release}"))["Id"].encode())
    for variable in ("RUNNER_CONFIG", "RUNNER_WORKER__STATE_DIR", "RUNNER_ENGINE__URL"):
        digest.update(f"\0{env.get(variable)}".encode())
    return digest.hexdigest()[:12]


async def _current(docker: aiodocker.Docker, name: str) -> str | None:
    """The revision that the engine has as the current one."""
    try:
        image = await docker.images.inspect(image_names.tagged(name, image_names.CURRENT))
    except aiodocker.DockerError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None
    revision: str | None = (image["Config"]["Labels"] or {}).get(image_names.REVISION)
    return revision


def _read(stamp: Path) -> list[str]:
    return stamp.read_text().split() if stamp.exists() else []


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


async def build(env: Mapping[str, str], name: str, log: Path) -> dict[str, Any] | None:
    """Build one stack; what `runner stacks build` tells of it, None when it failed."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(RUNNER, "stacks", "build", "--json", name),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
        try:
            said, _ = await process.communicate()
        finally:
            await end(process, signal.SIGINT)
    built: dict[str, Any] | None = json.loads(said) if process.returncode == 0 else None
    return built


def environment(url: str) -> dict[str, str]:
    """The environment of `runner`: that engine, and where no settings are named, our stacks."""
    ours = {"RUNNER_STACKS__DIR": str(STACKS), "RUNNER_WORKER__STATE_DIR": str(FOLDER / "state")}
    return {**({} if "RUNNER_CONFIG" in os.environ else ours), **os.environ, "RUNNER_ENGINE__URL": url}


async def main() -> int:
    """Build until it is done or a signal ends it."""
    parser = argparse.ArgumentParser(prog="scripts/stacks", description=__doc__)
    parser.add_argument("names", nargs="*", help="all if none is named")
    parser.add_argument("--refresh", action="store_true", help="make the bases anew, with today's security updates")
    parser.add_argument("--sizes", action="store_true", help="tell at the end how much disk they take together")
    given = parser.parse_args()
    unknown = set(given.names) - set(all_stacks())
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))} in config/stacks")
    try:
        names = given.names or all_stacks()
        return await run_until_signal(build_all(names, refresh=given.refresh, sizes=given.sizes), say)
    except (BaseError, MirrorError, ServiceError, StacksError, aiodocker.DockerError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

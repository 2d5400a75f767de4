"""Builds the stacks of `config/stacks`, and first the bases that they stand on. What is there already is kept.

Uses the engine that `RUNNER_ENGINE__URL` names, else the private one of this working copy.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiodocker

from scripts.bases import BaseError, is_made, make, named_base
from scripts.devservices import ServiceError
from scripts.devservices.process import log_tail
from scripts.devservices.shared import DEV, borrowed, shared_engine
from scripts.mirror import MirrorError, find_mirror
from scripts.sizes import measure

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
        await build_stacks(environment(url), names)
        if sizes:
            print(await measure(docker, names))


async def build_bases(docker: aiodocker.Docker, names: Sequence[str], *, refresh: bool) -> None:
    """Make the bases that these stacks name."""
    dockerfiles = [(STACKS / name / "Dockerfile").read_text() for name in names]
    releases = sorted({release for text in dockerfiles if (release := named_base(text))})
    mirror = find_mirror() if releases else None
    for release in releases:
        if mirror is None or (not refresh and await is_made(docker, release, mirror)):
            continue
        say(f"making the base {release} with debootstrap from {mirror.url}; its log is {FOLDER}/base-{release}.log")
        began = time.monotonic()
        await make(docker, release, mirror, FOLDER)
        say(f"made the base {release} in {time.monotonic() - began:.0f} s")


async def build_stacks(env: Mapping[str, str], names: Sequence[str]) -> None:
    """Have `runner stacks build` build each, and tell how far it is."""
    log = FOLDER / "build.log"
    failed = []
    with log.open("wb") as output:
        for number, name in enumerate(names, 1):
            head = f"[{number:2}/{len(names)}] {name}"
            say(f"{head} …")
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                RUNNER, "stacks", "build", "--json", name, env=env, stdout=asyncio.subprocess.PIPE, stderr=output
            )
            said, _ = await process.communicate()
            if process.returncode != 0:
                say(f"{head}: failed{log_tail(log)}")
                failed.append(name)
                continue
            built = json.loads(said)
            state = "built" if built["changed"] else "unchanged"
            say(f"{head}: {state}, {built['revision']}, {time.monotonic() - began:.1f} s")
    if failed:
        raise StacksError(f"not built: {', '.join(failed)}; all that was said is in {log}")


def environment(url: str) -> dict[str, str]:
    """The environment of `runner`: our stacks and our engine; what is set already goes before."""
    ours = {"RUNNER_STACKS__DIR": str(STACKS), "RUNNER_WORKER__STATE_DIR": str(FOLDER / "state")}
    return {**ours, **os.environ, "RUNNER_ENGINE__URL": url}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/stacks", description=__doc__)
    parser.add_argument("names", nargs="*", help="all if none is named")
    parser.add_argument("--refresh", action="store_true", help="make the bases anew, with today's security updates")
    parser.add_argument("--sizes", action="store_true", help="tell at the end how much disk they take together")
    given = parser.parse_args()
    try:
        asyncio.run(build_all(given.names or all_stacks(), refresh=given.refresh, sizes=given.sizes))
    except (BaseError, MirrorError, ServiceError, StacksError, aiodocker.DockerError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

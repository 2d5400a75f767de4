"""Runs the parts one after the other, and puts on record what each has found."""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import aiodocker
from scripts.devservices.shared import borrowed, shared_broker, shared_engine

from bench import burst, flood, latency, lifetime, logs, mixed, scale, throughput
from bench.found import Found
from bench.report import OUT, keep, tables
from bench.stage import Options, Stage, say
from bench.subject import ROOT, Site
from runner.adapters.docker.images import open_images
from runner.stacks.build import build

PARTS: dict[str, Callable[[Stage], Awaitable[Found]]] = {
    "latency": latency.measure,
    "burst": burst.measure,
    "throughput": throughput.measure,
    "mixed": mixed.measure,
    "scale": scale.measure,
    "lifetime": lifetime.measure,
    "logs": logs.measure,
    "flood": flood.measure,
}
_FEWEST_ROUNDS, _FEWEST_JOBS = 2, 10


async def bench(parts: Sequence[str], options: Options, out: Path) -> None:
    """Those parts, each with daemons of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runner-bench-")))
        broker, engine = await _services(stack)
        docker = await stack.enter_async_context(aiodocker.Docker(url=engine))
        image = await _image(engine, docker)
        stage = Stage(
            site=Site(broker=broker, engine=engine, image=image, folder=folder), docker=docker, options=options
        )
        for part in parts:
            say(f"--- {part}")
            began, machine = time.monotonic(), await _machine(docker)
            found = await PARTS[part](stage)
            seconds = time.monotonic() - began
            keep(part, found, seconds, machine, out)
            print(tables(found), flush=True)
            say(f"{part} took {seconds:.0f} s")


async def _machine(docker: aiodocker.Docker) -> dict[str, object]:
    time_told = datetime.now(UTC).isoformat(timespec="minutes")
    load = round(os.getloadavg()[0], 1)
    return {"cpus": os.cpu_count(), "engine": (await docker.version())["Version"], "time": time_told, "load": load}


async def _services(stack: AsyncExitStack) -> tuple[str, str]:
    """Broker and engine: those that the environment names, else the private ones of this working copy."""
    broker, engine = os.environ.get("RUNNER_AMQP__URL"), os.environ.get("RUNNER_ENGINE__URL")
    if broker and engine:
        return broker, engine
    return (
        await stack.enter_async_context(borrowed(shared_broker())),
        await stack.enter_async_context(borrowed(shared_engine())),
    )


async def _image(engine: str, docker: aiodocker.Docker) -> str:
    """The image of all subjects, under the name that the daemons look for."""
    async with open_images(engine) as images:
        built = await build(ROOT / "config" / "stacks" / "busybox", images, lambda _line: None)
    await docker.images.tag(built.image.id, repo="runner/bench", tag="current")
    return built.image.id


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--samples", type=int, default=100, help="latency: runs of each subject (100)")
    parser.add_argument("--jobs", type=int, default=300, help="throughput: our jobs at once (300)")
    parser.add_argument("--rival-jobs", type=int, default=80, help="throughput: jobs of a rival in each round (80)")
    parser.add_argument("--rounds", type=int, default=3, help="throughput: how often each has its turn, 2 or more (3)")
    parser.add_argument("--trial", type=int, default=16, help="throughput: jobs to find the rivals' best with (16)")
    parser.add_argument("--pool", type=int, default=20, help="containers that wait (20)")
    parser.add_argument("--mixed", type=int, default=100, help="mixed: short jobs alone, and as many mixed (100)")
    parser.add_argument("--idle", type=int, default=300, help="scale: jobs at once (300)")
    parser.add_argument("--watch", type=float, default=60.0, help="scale: seconds that they are watched (60)")
    parser.add_argument("--life", type=int, default=1000, help="lifetime: jobs, a hundred at once (1000)")
    parser.add_argument("--megabytes", type=int, default=200, help="logs: what one job writes (200)")
    parser.add_argument("--writers", type=int, default=50, help="logs: jobs that write 1 MB/s each (50)")
    parser.add_argument("--out", type=Path, default=OUT, help="where the record goes (docs/bench)")
    given = vars(parser.parse_args())
    parts, out = given.pop("parts") or list(PARTS), given.pop("out")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if given["rounds"] < _FEWEST_ROUNDS:
        parser.error(f"--rounds {given['rounds']}: one round has no interval; {_FEWEST_ROUNDS} at least")
    if given["life"] < _FEWEST_JOBS:
        parser.error(f"--life {given['life']}: no slope can be told from so few jobs; {_FEWEST_JOBS} at least")
    asyncio.run(bench(parts, Options(**given), out))


if __name__ == "__main__":
    main()

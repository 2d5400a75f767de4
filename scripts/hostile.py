"""How much of its CPU time a well-behaved job keeps beside each attack of tests/hostile.

    make hostile                        # or: .venv/bin/python -m scripts.hostile memory logs --repeats 5

Alone, the neighbour uses up its quota of half a core. Then the attack runs beside it, with a quota of one core, again
and again for some seconds. Told is the median, over the repeats, of what the neighbour got then as a part of what it
had alone just before. Ends with 1 when that is less than 0.7 beside any attack. For a machine that does nothing else:
the tests themselves only assert that the neighbour is not disturbed, since others may use the machine meanwhile.
"""

import argparse
import asyncio
import importlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import aiodocker
from tests.e2e.daemon import open_site
from tests.e2e.submitter import Followed, open_submitter
from tests.hostile.arena import Arena
from tests.hostile.attack import STACKS, Attack
from tests.hostile.image import build_image, compile_attacks
from tests.services import build_busybox, endpoint

from scripts.devservices.shared import shared_broker, shared_engine

THEMES = ("memory", "processes", "kernel", "files", "logs", "messages", "packages")
ALONE, BESIDE = 2.0, 4.0
"""Seconds for which the neighbour is watched."""
LEAST = 0.7
ENDLESS = 10**9
"""Rounds of the neighbour: it is cancelled when it has been watched."""


async def measure(arena: Arena, attack: Attack) -> float:
    """What the neighbour got beside the attack, as a part of what it had alone."""
    neighbour = await arena.neighbour(ENDLESS, cpus=0.5)
    await neighbour.until(lambda: bool(samples(neighbour)), "sign of life")
    before = await watch(neighbour, ALONE)
    first = await arena.attack(attack)
    await first.until(lambda: bool({"started", "rejected"} & set(first.kinds)), "start")
    attacks = asyncio.create_task(attack_on(arena, attack, first))
    beside = await watch(neighbour, BESIDE)
    attacks.cancel()
    await asyncio.gather(attacks, return_exceptions=True)
    await arena.acme.cancel_all()
    await neighbour.finished(timeout=90)
    return beside / before


async def attack_on(arena: Arena, attack: Attack, job: Followed) -> None:
    """Attack again as soon as an attack is over."""
    while True:
        await job.finished(timeout=90)
        job = await arena.attack(attack)


async def watch(neighbour: Followed, span: float) -> float:
    """The neighbour's CPU seconds a second, for so many seconds by its own clock."""
    cpu, wall = samples(neighbour)[-1]
    await neighbour.until(lambda: samples(neighbour)[-1][1] >= wall + span, "progress", 60)
    later, then = samples(neighbour)[-1]
    return (later - cpu) / (then - wall)


def samples(neighbour: Followed) -> list[tuple[float, float]]:
    """CPU seconds and seconds since its beginning, as the neighbour told them."""
    lines = (line["m"].split() for batch in neighbour.batches[-3:] for line in batch["lines"] if not line.get("p"))
    return [(float(words[1]), float(words[2])) for words in lines if len(words) == 3]  # noqa: PLR2004


def attacks_of(themes: Sequence[str]) -> list[Attack]:
    """The rows of the tables, each with a whole core."""
    rows = [row for theme in themes for row in importlib.import_module(f"tests.hostile.test_{theme}").ATTACKS]
    return [replace(row, limits={**row.limits, "cpus": 1}) for row in rows]


async def run(attacks: Sequence[Attack], repeats: int) -> int:
    """Measure each attack, and print the table as it grows; how many neighbours were hurt."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = await stack.enter_async_context(endpoint("RUNNER_TEST_AMQP_URL", shared_broker()))
        engine = await stack.enter_async_context(endpoint("RUNNER_TEST_ENGINE_URL", shared_engine()))
        busybox = await build_busybox(engine.url)
        image, ns = await build_image(engine.url, compile_attacks(folder)), f"h{token_hex(5)}"
        site = await stack.enter_async_context(
            open_site(broker=broker.url, engine=engine.url, image=busybox, folder=folder, ns=ns)
        )
        async with aiodocker.Docker(url=engine.url) as docker:
            for name, text in STACKS.items():
                site.write_stack(name, text)
                await docker.images.tag(image, repo=f"runner/{name}", tag="current")
        daemon = await stack.enter_async_context(site.daemon())
        await daemon.ready()
        arena = Arena(daemon=daemon, acme=await stack.enter_async_context(open_submitter(broker.url, ns)))
        hurt = 0
        for row in attacks:
            share = statistics.median([await measure(arena, row) for _ in range(repeats)])
            print(f"| {row.name} | {row.stopped_by} | {100 * share:.0f} % |", flush=True)
            hurt += share < LEAST
        daemon.terminate()
        await daemon.exited()
        return hurt


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a neighbour keeps of its CPU time beside each attack.")
    parser.add_argument("themes", nargs="*", help=f"of {', '.join(THEMES)}; all if none is named")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="attacks whose names contain this")
    given = parser.parse_args()
    attacks = [row for row in attacks_of(given.themes or THEMES) if given.only in row.name]
    sys.exit(asyncio.run(run(attacks, given.repeats)) > 0)


if __name__ == "__main__":
    main()

"""Runs the subjects in turns, so that whatever else the machine does hurts all alike, and keeps the numbers."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

import aiodocker
from scripts.devservices.shared import DEV, borrowed, shared_broker, shared_engine

from bench.chart import bars
from bench.daemon import Runner, runner
from bench.figures import Figure, cpu_seconds, figure, pss_bytes
from bench.rivals import BareEngine, DockerRun, celery
from bench.subject import ROOT, Site, Subject
from runner.adapters.docker.images import open_images
from runner.stacks.build import build

OUT = ROOT / "docs" / "bench"


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def celery_python() -> Path:
    """The interpreter of Celery's own environment, made when it is missing."""
    folder = DEV / "bench-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        say("making an environment with Celery and the Docker SDK")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "celery", "docker"], check=True)
    return python


async def latency(subjects: list[Subject], samples: int) -> dict[str, object]:
    """One job at a time: from its publication to its first line, and to its end."""
    totals: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    firsts: dict[str, list[float]] = {}
    phases: dict[str, dict[str, list[float]]] = {}
    for number in range(samples + 1):
        for subject in subjects:
            run = await subject.one()
            if number == 0:
                continue  # whatever is slow only once
            totals[subject.name].append(run.total)
            if run.first_line is not None:
                firsts.setdefault(subject.name, []).append(run.first_line)
            for phase, spent in run.phases.items():
                phases.setdefault(subject.name, {}).setdefault(phase, []).append(spent)
    ended = {name: figure(values) for name, values in totals.items()}
    lines = {name: figure(values) for name, values in firsts.items()}
    _show("from publication to the known end", ended, "ms", "latency")
    _show("from publication to the first line at a subscriber", lines, "ms", "first-line")
    for name, spent_in in phases.items():
        say(f"{name}: " + ", ".join(f"{phase} {median(spent):.1f} ms" for phase, spent in spent_in.items()))
    return {
        "phases_ms": {name: {phase: median(spent) for phase, spent in each.items()} for name, each in phases.items()},
        "ended_ms": {name: asdict(each) for name, each in ended.items()},
        "first_line_ms": {name: asdict(each) for name, each in lines.items()},
        "raw": {"ended_ms": totals, "first_line_ms": firsts},
    }


async def throughput(subjects: list[Subject], jobs: int) -> dict[str, object]:
    """Many short jobs at once: jobs a second, CPU seconds of a job, memory while it goes on."""
    found: dict[str, dict[str, float]] = {}
    for subject in subjects:
        before = cpu_seconds(subject.pids)
        running = asyncio.create_task(subject.many(jobs))
        peak = 0
        while not running.done():
            peak = max(peak, pss_bytes(subject.pids))
            await asyncio.sleep(0.5)
        seconds = running.result()
        spent = cpu_seconds(subject.pids) - before
        found[subject.name] = {
            "jobs_per_second": jobs / seconds,
            "cpu_ms_per_job": 1000 * spent / jobs,
            "pss_mib": peak / 2**20,
        }
        say(f"{subject.name}: {found[subject.name]}")
    _show(
        f"{jobs} jobs at once", {name: each["jobs_per_second"] for name, each in found.items()}, "jobs/s", "throughput"
    )
    return dict(found)


async def burst(warm: Runner, pool: int) -> dict[str, object]:
    """As many jobs at once as containers wait."""
    seconds = await warm.many(pool)
    say(f"a burst of {pool} on a pool of {pool}: {pool / seconds:.0f} jobs/s")
    return {"jobs": pool, "seconds": seconds, "jobs_per_second": pool / seconds}


def _show(title: str, figures: dict[str, Figure] | dict[str, float], unit: str, name: str) -> None:
    say(title)
    for subject, each in figures.items():
        say(f"  {subject}: {each if isinstance(each, Figure) else f'{each:.1f}'} {unit}")
    (OUT / f"{name}.svg").write_text(bars(title, unit, figures))


async def bench(samples: int, jobs: int, pool: int) -> None:
    """All of it."""
    OUT.mkdir(parents=True, exist_ok=True)
    python = celery_python()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runner-bench-")))
        broker, engine = await _services(stack)
        docker = await stack.enter_async_context(aiodocker.Docker(url=engine))
        image = await _image(engine, docker)
        site = Site(broker=broker, engine=engine, image=image, folder=folder)
        say("starting a daemon that starts every job cold")
        cold = await stack.enter_async_context(runner(site, "Runner, cold", warm=0))
        say(f"starting one with {pool} containers that wait")
        warm = await stack.enter_async_context(runner(site, "Runner, warm", warm=pool))
        say("starting Celery workers")
        workers = [await stack.enter_async_context(celery(site, python, count)) for count in (2, 4, 8)]
        bare = BareEngine(site=site, docker=docker)
        found = {
            "machine": {"cpus": os.cpu_count(), "engine": (await docker.version())["Version"]},
            "burst": await burst(warm, pool),
            "latency": await latency([warm, cold, DockerRun(site=site), bare, workers[0]], samples),
            "throughput": await throughput([warm, cold, bare, *workers], jobs),
        }
        (OUT / "results.json").write_text(json.dumps(found, indent=1) + "\n")


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
    parser.add_argument("--samples", type=int, default=100, help="runs of each subject for the latencies (100)")
    parser.add_argument("--jobs", type=int, default=300, help="jobs at once for the throughput (300)")
    parser.add_argument("--pool", type=int, default=20, help="containers that wait (20)")
    options = parser.parse_args()
    asyncio.run(bench(options.samples, options.jobs, options.pool))


if __name__ == "__main__":
    main()

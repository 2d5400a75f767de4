"""Many short jobs queued at once: jobs a second, CPU time of each, memory of whoever runs them."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.chart import bars
from bench.figures import cpu_seconds, pss_bytes
from bench.found import Found, at_least, at_most
from bench.stage import AT_A_TIME, PROCESSES, Stage, say
from bench.subject import Subject

WARM, COLD = "Runner, warm", "Runner, cold"
_TIMES = 2.0
_CPU = 15.0
_LOOK_EVERY = 0.5

Rate = dict[str, float]


async def measure(stage: Stage) -> Found:
    """Which parallelism is best for the rivals is tried with a few jobs; then the best meet ours."""
    async with AsyncExitStack() as stack:
        warm = await stack.enter_async_context(stage.runner(WARM, warm=stage.options.pool))
        cold = await stack.enter_async_context(stage.runner(COLD))
        workers = await stack.enter_async_context(stage.celery(*PROCESSES))
        trials: dict[str, Rate] = {}
        bare = await _best([stage.bare(count) for count in AT_A_TIME], stage.options.trial, trials)
        celery = await _best(workers, stage.options.trial, trials)
        found = {each.name: await _run(each, stage.options.jobs) for each in (warm, bare, cold, celery)}
    return _found(found, trials, bare.name, celery.name, stage.options.jobs)


async def _best(subjects: Sequence[Subject], jobs: int, trials: dict[str, Rate]) -> Subject:
    for subject in subjects:
        trials[subject.name] = await _run(subject, jobs)
    return max(subjects, key=lambda subject: trials[subject.name]["jobs_per_second"])


async def _run(subject: Subject, jobs: int) -> Rate:
    before = cpu_seconds(subject.pids)
    running = asyncio.create_task(subject.many(jobs))
    peak = 0
    while not running.done():
        peak = max(peak, pss_bytes(subject.pids))
        await asyncio.wait({running}, timeout=_LOOK_EVERY)
    spent = cpu_seconds(subject.pids) - before
    rate = {
        "jobs_per_second": jobs / running.result(),
        "cpu_ms_per_job": 1000 * spent / jobs,
        "pss_mib": peak / 2**20,
    }
    say(f"{subject.name}, {jobs} jobs: {rate['jobs_per_second']:.2f} jobs/s")
    return rate


def _found(found: dict[str, Rate], trials: dict[str, Rate], bare: str, celery: str, jobs: int) -> Found:
    rates = {name: each["jobs_per_second"] for name, each in found.items()}
    ours = max(rates[WARM], rates[COLD])
    everyone = {**trials, **found}
    return Found(
        title=f"{jobs} short jobs queued at once",
        columns=["", "jobs/s", "CPU, ms a job", "memory (PSS), MiB"],
        rows=[[name, *(f"{value:.1f}" if value else "" for value in each.values())] for name, each in everyone.items()],
        targets=[
            at_least("jobs a second, of the bare engine's best", ours / rates[bare], _TIMES, ""),
            at_least("jobs a second, of Celery's best", ours / rates[celery], _TIMES, ""),
            at_most("the daemon's CPU time, a job", found[COLD]["cpu_ms_per_job"], _CPU, "ms"),
        ],
        raw={"jobs": jobs, "measured": found, "trials": trials},
        pictures={"throughput": bars(f"{jobs} jobs at once", "jobs/s", rates)},
    )

"""Many short jobs queued at once: jobs a second, CPU time of each, memory of whoever runs them."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from bench.chart import bars
from bench.daemon import room_for
from bench.figures import Figure, figure, pss_bytes
from bench.found import Found, at_least, at_most
from bench.rivals import DOCKER_RUNS
from bench.stage import AT_A_TIME, PROCESSES, Stage, say
from bench.subject import Subject

S = TypeVar("S", bound=Subject)

WARM, COLD = "Runner, warm", "Runner, cold"
_TIMES = 2.0
_CPU = 15.0
_LOOK_EVERY = 0.5
_UNPLUGGED = "with our network"
_PROCESSES_NOTE = (
    "A run is over when the last container is removed, for all of them alike. CPU time is that of the subject's own "
    "processes, with the warm daemon's until as many containers wait as before. The loop around the bare engine runs "
    "in the process that measures, so its CPU time is that one's, and its memory is not told."
)
_UNPLUGGED_NOTE = f"“{_UNPLUGGED}”: the engine's networks know nothing of its containers, as they know nothing of ours."
_INTERVALS_NOTE = "Medians of the rounds, and what they would be in 95 of 100 repetitions; who was only tried ran once."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One run; `pss_mib` is the most that was seen."""

    jobs: int
    jobs_per_second: float
    cpu_ms_per_job: float
    pss_mib: float


async def measure(stage: Stage) -> Found:
    """Which parallelism is best for the rivals is tried with a few jobs; then the best meet ours, in turns."""
    options = stage.options
    async with AsyncExitStack() as stack:
        warm = await stack.enter_async_context(
            stage.runner(WARM, warm=options.pool, warm__memory=room_for(options.pool))
        )
        cold = await stack.enter_async_context(stage.runner(COLD))
        workers = await stack.enter_async_context(stage.celery(*PROCESSES))
        trials = {f"docker run, {DOCKER_RUNS} at a time": await _run(stage.docker_run(), options.trial)}
        bare = await _best([stage.bare(count) for count in AT_A_TIME], options.trial, trials)
        celery = await _best(workers, options.trial, trials)
        unplugged = replace(bare, name=f"{bare.name}, {_UNPLUGGED}", unplugged=True)
        turns: list[tuple[Subject, int]] = [
            *((warm, options.jobs), (bare, options.rival_jobs), (cold, options.jobs)),
            *((celery, options.rival_jobs), (unplugged, options.rival_jobs)),
        ]
        runs: dict[str, list[Rate]] = {subject.name: [] for subject, _jobs in turns}
        for number in range(options.rounds):
            first = number % len(turns)
            for subject, jobs in turns[first:] + turns[:first]:
                runs[subject.name].append(await _run(subject, jobs))
    return _found(runs, trials, bare.name, celery.name)


async def _best(subjects: Sequence[S], jobs: int, trials: dict[str, Rate]) -> S:
    for subject in subjects:
        trials[subject.name] = await _run(subject, jobs)
    return max(subjects, key=lambda subject: trials[subject.name].jobs_per_second)


async def _run(subject: Subject, jobs: int) -> Rate:
    """Nothing that the subject does because of its jobs goes on when this returns."""
    before = subject.spent()
    running = asyncio.create_task(subject.many(jobs))
    peak = 0
    while not running.done():
        peak = max(peak, pss_bytes(subject.pids))
        await asyncio.wait({running}, timeout=_LOOK_EVERY)
    seconds = running.result()
    await subject.rest()
    say(f"{subject.name}, {jobs} jobs: {jobs / seconds:.2f} jobs/s")
    return Rate(
        jobs=jobs,
        jobs_per_second=jobs / seconds,
        cpu_ms_per_job=1000 * (subject.spent() - before) / jobs,
        pss_mib=peak / 2**20,
    )


def _found(runs: Mapping[str, list[Rate]], trials: Mapping[str, Rate], bare: str, celery: str) -> Found:
    rates = {name: figure([each.jobs_per_second for each in rounds]) for name, rounds in runs.items()}
    costs = {name: figure([each.cpu_ms_per_job for each in rounds]) for name, rounds in runs.items()}
    ratios = {name: {rival: _ratio(runs[name], runs[rival]) for rival in (bare, celery)} for name in (WARM, COLD)}
    rows = [_trial(name, each) for name, each in trials.items()]
    for name, rounds in runs.items():
        beside = [_told(ratios[name][rival], 2) if name in ratios else "" for rival in (bare, celery)]
        peak = max(each.pss_mib for each in rounds)
        rows.append([name, str(rounds[0].jobs), _told(rates[name]), *beside, _told(costs[name]), _or_nothing(peak)])
    jobs, turns = runs[COLD][0].jobs, len(runs[COLD])
    return Found(
        title=f"{jobs} short jobs queued at once, {turns} rounds",
        columns=["", "jobs", "jobs/s", f"of: {bare}", f"of: {celery}", "CPU, ms a job", "memory (PSS), MiB"],
        rows=rows,
        notes=[_PROCESSES_NOTE, _UNPLUGGED_NOTE, _INTERVALS_NOTE],
        targets=[
            at_least("cold: jobs a second, of the bare engine's best", ratios[COLD][bare].median, _TIMES, ""),
            at_least("cold: jobs a second, of Celery's best", ratios[COLD][celery].median, _TIMES, ""),
            at_most("cold: the daemon's CPU time, a job", costs[COLD].median, _CPU, "ms"),
        ],
        raw={
            "measured": {name: [asdict(each) for each in rounds] for name, rounds in runs.items()},
            "trials": {name: asdict(each) for name, each in trials.items()},
            "ratios": {name: {rival: asdict(ratio) for rival, ratio in each.items()} for name, each in ratios.items()},
        },
        pictures={"throughput": bars(f"{jobs} jobs at once", "jobs/s", rates)},
    )


def _ratio(ours: Sequence[Rate], theirs: Sequence[Rate]) -> Figure:
    """Round by round: what slows down a round slows down both."""
    return figure([our.jobs_per_second / their.jobs_per_second for our, their in zip(ours, theirs, strict=True)])


def _trial(name: str, each: Rate) -> list[str]:
    numbers = [f"{each.jobs_per_second:.1f}", "", "", f"{each.cpu_ms_per_job:.1f}", _or_nothing(each.pss_mib)]
    return [f"{name}, tried", str(each.jobs), *numbers]


def _told(each: Figure, digits: int = 1) -> str:
    return f"{each.median:.{digits}f} ({each.low:.{digits}f} to {each.high:.{digits}f})"


def _or_nothing(value: float) -> str:
    return f"{value:.1f}" if value else ""

"""One job at a time: from its publication to its first line, and to its known end."""

import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from statistics import median

from bench.chart import bars
from bench.figures import Figure, figure
from bench.found import Found, Table, at_most
from bench.stage import PROCESSES, Stage, say
from bench.subject import Run, Subject

WARM, COLD = "Runner, warm", "Runner, cold"
_FIRST_LINE = 15.0
_OF_DOCKER_RUN = 25
_OF_CELERY = 0.7


async def measure(stage: Stage) -> Found:
    """The subjects take turns, so that whatever else the machine does hurts all alike; no turn begins in another's."""
    async with AsyncExitStack() as stack:
        warm = await stack.enter_async_context(stage.runner(WARM, warm=stage.options.pool))
        cold = await stack.enter_async_context(stage.runner(COLD))
        workers = await stack.enter_async_context(stage.celery(PROCESSES[0]))
        subjects: list[Subject] = [warm, cold, stage.docker_run(), stage.bare(1), *workers]
        return _found(await _take_turns(subjects, stage.options.samples), workers[0].name)


async def _take_turns(subjects: list[Subject], samples: int) -> Mapping[str, list[Run]]:
    runs: dict[str, list[Run]] = {subject.name: [] for subject in subjects}
    order = random.Random(1)
    for number in range(samples + 1):
        for subject in order.sample(subjects, len(subjects)):
            run = await subject.one()
            await subject.rest()  # what it does after its job would slow down the next subject's
            if run.warm is not (subject.name == WARM):
                raise RuntimeError(f"{subject.name}: the job's container had {'' if run.warm else 'not '}waited for it")
            if number:  # whatever is slow only once does not count
                runs[subject.name].append(run)
        if number % 10 == 0:
            say(f"{number} of {samples} rounds")
    return runs


def _found(runs: Mapping[str, list[Run]], celery: str) -> Found:
    ended = {name: figure([run.total for run in each]) for name, each in runs.items()}
    lines = {
        name: figure([run.first_line for run in each if run.first_line is not None])
        for name, each in runs.items()
        if any(run.first_line is not None for run in each)
    }
    phases = {
        name: {phase: median(run.phases[phase] for run in each) for phase in each[0].phases}
        for name, each in runs.items()
        if each[0].phases
    }
    total = ended["docker run"].median
    return Found(
        title="One job at a time, milliseconds from its publication",
        columns=["", "first line at a subscriber", "p95", "end known", "p95"],
        rows=[_row(name, lines.get(name), ended[name]) for name in ended],
        tables=[_where(phases, lines, ended)],
        targets=[
            at_most("warm: publication to first line, p50", lines[WARM].median, _FIRST_LINE, "ms"),
            at_most("warm: the same, of the time of `docker run`", lines[WARM].median / total, 1 / _OF_DOCKER_RUN, ""),
            at_most("cold: end known, of Celery's", ended[COLD].median / ended[celery].median, _OF_CELERY, ""),
        ],
        raw={
            "phases_ms": phases,
            "ended_ms": {name: asdict(each) for name, each in ended.items()},
            "first_line_ms": {name: asdict(each) for name, each in lines.items()},
            "samples_ms": {name: [asdict(run) for run in each] for name, each in runs.items()},
        },
        pictures={
            "latency": bars("from publication to the known end", "ms", ended),
            "first-line": bars("from publication to the first line at a subscriber", "ms", lines),
        },
    )


def _row(name: str, line: Figure | None, end: Figure) -> list[str]:
    first = [_median(line), f"{line.p95:.1f}"] if line is not None else ["", ""]
    return [name, *first, _median(end), f"{end.p95:.1f}"]


def _where(
    phases: Mapping[str, Mapping[str, float]], lines: Mapping[str, Figure], ended: Mapping[str, Figure]
) -> Table:
    rows = [[phase, *(f"{phases[name][phase]:.1f}" for name in (WARM, COLD))] for phase in phases[COLD]]
    sums = {"from publication to the first line": lines, "from publication to the known end": ended}
    rows += [[what, *(f"{figures[name].median:.1f}" for name in (WARM, COLD))] for what, figures in sums.items()]
    return Table(
        title="Where each millisecond of a job goes: medians",
        columns=["from one moment to the next", "warm, ms", "cold, ms"],
        rows=rows,
    )


def _median(each: Figure) -> str:
    return f"{each.median:.1f} ({each.low:.1f} to {each.high:.1f})"

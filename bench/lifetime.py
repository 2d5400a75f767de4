"""One hundred jobs after the other: whether the last cost what the first did, in time, memory and descriptors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, mean
from urllib.parse import urlsplit

from bench.daemon import Runner, room_for
from bench.figures import cpu_seconds, descriptors, listener, resident_bytes, tree
from bench.found import Found, at_most
from bench.stage import Stage, say
from bench.subject import HI

_KIB, _MIB = 2**10, 2**20
_STEPS, _LARGEST_STEP = 10, 100
_WARM = 4
_MORE = 1.10
"""How much more time a job of the second half may cost than one of the first."""
_LEAK, _ENGINE_LEAK = 1.0, 8.0
"""KiB a job; the engine collects its garbage when it likes, and keeps what it had."""
_DESCRIPTORS = 0.005
"""For each job: five in a thousand jobs."""
_NOTE = (
    "The slopes are those of the straight line through all samples but the first, which fills what is kept on purpose. "
    "Time is from the first publication to the last removal, divided by the jobs; the engine's CPU time is that of its "
    "lasting processes."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How things are after so many jobs, when nothing goes on; times are what each job since the last sample took."""

    jobs: int
    resident_mib: float
    descriptors: int
    wall_ms: float
    cpu_ms: float
    engine_mib: float
    engine_descriptors: int
    engine_cpu_ms: float


async def measure(stage: Stage) -> Found:
    """A hundred at once, again and again."""
    engine = listener(Path(urlsplit(stage.site.engine).path))
    if engine is None:
        raise RuntimeError(f"the engine's process, which listens on {stage.site.engine}, was not found: are we root?")
    step = max(1, min(stage.options.life // _STEPS, _LARGEST_STEP))
    samples = list[Sample]()
    async with stage.runner("Runner", warm=_WARM, warm__memory=room_for(_WARM)) as runner:
        while len(samples) * step < stage.options.life + step:
            samples.append(await _some(runner, engine, step, (len(samples) + 1) * step))
            say(str(samples[-1]))
    return _found(samples)


async def _some(runner: Runner, engine: int, jobs: int, number: int) -> Sample:
    before, engine_before, began = runner.spent(), cpu_seconds(tree(engine)), time.monotonic()
    await runner.crowd.run(jobs, HI)
    await runner.until_idle()
    ended = time.monotonic()
    await runner.rest()
    return Sample(
        jobs=number,
        resident_mib=resident_bytes(runner.daemon) / _MIB,
        descriptors=descriptors(runner.daemon),
        wall_ms=1000 * (ended - began) / jobs,
        cpu_ms=1000 * (runner.spent() - before) / jobs,
        engine_mib=resident_bytes(engine) / _MIB,
        engine_descriptors=descriptors(engine),
        engine_cpu_ms=1000 * (cpu_seconds(tree(engine)) - engine_before) / jobs,
    )


def _found(samples: Sequence[Sample]) -> Found:
    counted = samples[1:]
    slopes = {
        "resident_kib": _slope(counted, lambda each: each.resident_mib * _MIB / _KIB),
        "descriptors": _slope(counted, lambda each: each.descriptors),
        "engine_kib": _slope(counted, lambda each: each.engine_mib * _MIB / _KIB),
        "engine_descriptors": _slope(counted, lambda each: each.engine_descriptors),
    }
    growth = {
        "wall_ms": _growth([each.wall_ms for each in counted]),
        "cpu_ms": _growth([each.cpu_ms for each in counted]),
        "engine_cpu_ms": _growth([each.engine_cpu_ms for each in counted]),
    }
    stride = max(1, len(samples) // _STEPS)
    return Found(
        title=f"{counted[-1].jobs - samples[0].jobs} jobs after the first {samples[0].jobs}",
        columns=[
            *("jobs", "time, ms a job", "CPU, ms a job", "resident, MiB", "descriptors"),
            *("engine: CPU, ms a job", "engine: resident, MiB", "engine: descriptors"),
        ],
        rows=[_row(sample) for sample in samples[::stride]],
        notes=[_NOTE],
        targets=[
            at_most("daemon: resident memory grows by", slopes["resident_kib"], _LEAK, "KiB a job"),
            at_most("daemon: descriptors grow by", slopes["descriptors"], _DESCRIPTORS, "a job"),
            at_most("engine: resident memory grows by", slopes["engine_kib"], _ENGINE_LEAK, "KiB a job"),
            at_most("engine: descriptors grow by", slopes["engine_descriptors"], _DESCRIPTORS, "a job"),
            at_most("time a job: second half, of the first", growth["wall_ms"], _MORE, ""),
            at_most("daemon: CPU time a job, the same", growth["cpu_ms"], _MORE, ""),
            at_most("engine: CPU time a job, the same", growth["engine_cpu_ms"], _MORE, ""),
        ],
        raw={"samples": [asdict(sample) for sample in samples], "slopes_per_job": slopes, "growth": growth},
    )


def _slope(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """What each job adds."""
    return linear_regression([sample.jobs for sample in samples], [of(sample) for sample in samples]).slope


def _growth(values: Sequence[float]) -> float:
    half = len(values) // 2
    return mean(values[half:]) / mean(values[:half])


def _row(each: Sample) -> list[str]:
    return [
        str(each.jobs),
        f"{each.wall_ms:.0f}",
        f"{each.cpu_ms:.1f}",
        f"{each.resident_mib:.2f}",
        str(each.descriptors),
        f"{each.engine_cpu_ms:.1f}",
        f"{each.engine_mib:.1f}",
        str(each.engine_descriptors),
    ]

"""One job after the other: whether the last costs what the first did, in time, memory and descriptors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from urllib.parse import urlsplit

from bench.daemon import Runner
from bench.figures import cpu_seconds, descriptors, listener, resident_bytes
from bench.found import Found, at_most
from bench.stage import Stage, say
from bench.subject import HI

_MIB = 2**20
_STEP = 100
_WARM = 4
_MORE = 1.05
_MORE_CPU = 1.10
"""How much more the last quarter may cost than the second: the first fills what is kept of jobs on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How things are after so many jobs; `cpu_ms` is what each of the last hundred has cost the daemon."""

    jobs: int
    resident_mib: float
    descriptors: int
    cpu_ms: float
    engine_mib: float
    engine_descriptors: int


async def measure(stage: Stage) -> Found:
    """A hundred at once, again and again."""
    engine = listener(Path(urlsplit(stage.site.engine).path))
    samples = list[Sample]()
    async with stage.runner("Runner", warm=_WARM) as runner:
        await runner.crowd.run(_STEP, HI)
        while len(samples) * _STEP < stage.options.life:
            samples.append(await _hundred(runner, engine, (len(samples) + 1) * _STEP))
            say(str(samples[-1]))
    return _found(samples)


async def _hundred(runner: Runner, engine: int | None, number: int) -> Sample:
    before = cpu_seconds(runner.pids)
    await runner.crowd.run(_STEP, HI)
    await runner.until_idle()
    return Sample(
        jobs=number,
        resident_mib=resident_bytes(runner.daemon) / _MIB,
        descriptors=descriptors(runner.daemon),
        cpu_ms=1000 * (cpu_seconds(runner.pids) - before) / _STEP,
        engine_mib=resident_bytes(engine) / _MIB if engine else 0.0,
        engine_descriptors=descriptors(engine) if engine else 0,
    )


def _found(samples: list[Sample]) -> Found:
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    names = ("resident_mib", "descriptors", "cpu_ms", "engine_mib", "engine_descriptors")
    growth = {
        name: _growth([asdict(each)[name] for each in early], [asdict(each)[name] for each in late]) for name in names
    }
    stride = max(1, len(samples) // 10)
    return Found(
        title=f"{samples[-1].jobs} jobs, one hundred after the other",
        columns=["jobs", "resident, MiB", "descriptors", "CPU, ms a job", "engine, MiB", "engine's descriptors"],
        rows=[_row(sample) for sample in [samples[0], *samples[stride - 1 :: stride]]],
        targets=[
            at_most("daemon, resident: last quarter, of the second", growth["resident_mib"], _MORE, ""),
            at_most("daemon, descriptors: the same", growth["descriptors"], _MORE, ""),
            at_most("daemon, CPU time a job: the same", growth["cpu_ms"], _MORE_CPU, ""),
            at_most("engine, resident: the same", growth["engine_mib"], _MORE_CPU, ""),
            at_most("engine, descriptors: the same", growth["engine_descriptors"], _MORE_CPU, ""),
        ],
        raw={"samples": [asdict(sample) for sample in samples], "growth": growth},
    )


def _growth(early: list[float], late: list[float]) -> float:
    return mean(late) / mean(early) if any(early) else 1.0


def _row(each: Sample) -> list[str]:
    return [
        str(each.jobs),
        f"{each.resident_mib:.1f}",
        str(each.descriptors),
        f"{each.cpu_ms:.1f}",
        f"{each.engine_mib:.0f}",
        str(each.engine_descriptors),
    ]

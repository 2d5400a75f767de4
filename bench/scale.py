"""Very many jobs at once that do next to nothing: what the daemon itself costs, and how late their lines come."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from bench.crowd import Member
from bench.daemon import Runner
from bench.figures import pss_bytes, resident_bytes
from bench.found import Found, at_most
from bench.stage import Stage, say
from bench.subject import Subject

_MIB = 2**20
_SLEEPS = ("sleep", "1800")
_TELLS = ("sh", "-c", "while :; do read up rest </proc/uptime; echo $up; sleep 20; done")
"""Writes the time since the machine's start, in hundredths of a second, every 20 s."""
_LIMITS = {"cpus": 0.1, "memory": "16m", "disk": "4m", "timeout": "30m", "grace": "2s"}
_FEW, _MANY = 8, 100
_STREAM = 24
"""Jobs with which memory is compared, eight at a time."""
_SAMPLE_EVERY = 0.2
_SHARE, _RESIDENT, _RESIDENT_MANY, _DELAY, _OF_CELERY = 3.0, 90.0, 70.0, 100.0, 1 / 3


async def measure(stage: Stage) -> Found:
    """Eight, a hundred, and then all of them."""
    async with stage.celery(_FEW) as (worker,):
        celery = await _peak(worker)
    async with stage.runner(f"Runner, {_FEW} jobs at a time", capacity__max_jobs=str(_FEW)) as runner:
        pss = await _peak(runner)
    silent = await _crowd(stage, _SLEEPS)
    telling = await _crowd(stage, _TELLS)
    return _found(silent, telling, pss, celery)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A daemon and its idle jobs: resident MiB by their number, percent of a core, how many ms lines were late."""

    resident: dict[int, float]
    share: float
    delays: list[float]


async def _crowd(stage: Stage, command: Sequence[str]) -> _Seen:
    """What a daemon of its own has with more and more jobs, and costs with all of them."""
    async with stage.runner("Runner", capacity__memory="400g") as runner:
        members, rss = list[Member](), {0: resident_bytes(runner.daemon) / _MIB}
        for count in sorted({_FEW, _MANY, stage.options.idle}):
            members += await runner.crowd.submit_all(count - len(members), command, limits=_LIMITS)
            await runner.watch_over(members)
            rss[count] = resident_bytes(runner.daemon) / _MIB
            say(f"{count} jobs run: {rss[count]:.1f} MiB resident")
        share, delays = await _watch(runner, stage.options.watch)
        await runner.watch_over(members)
        rss[stage.options.idle] = resident_bytes(runner.daemon) / _MIB
        say(f"{share:.2f} % of a core; ending them")
        await runner.crowd.cancel(members)
    return _Seen(resident=rss, share=share, delays=delays)


async def _peak(subject: Subject) -> float:
    """The most memory (PSS, MiB) that it has while it runs some short jobs, eight at a time."""
    running = asyncio.create_task(subject.many(_STREAM))
    peak = 0
    while not running.done():
        peak = max(peak, pss_bytes(subject.pids))
        await asyncio.wait({running}, timeout=_SAMPLE_EVERY)
    running.result()
    return peak / _MIB


async def _watch(runner: Runner, seconds: float) -> tuple[float, list[float]]:
    """Percent of a core, and the milliseconds from each line's writing to its arrival at a subscriber."""
    delays = list[float]()

    def hear(batch: dict[str, Any]) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        delays.extend(1000 * (now - float(line["m"])) for line in batch["lines"])

    await runner.crowd.listen(hear)
    before, began = runner.spent(), time.monotonic()
    await asyncio.sleep(seconds)
    share = 100 * (runner.spent() - before) / (time.monotonic() - began)
    return share, delays


def _found(silent: _Seen, telling: _Seen, pss: float, celery: float) -> Found:
    if not telling.delays:
        raise RuntimeError("no job has written anything")
    rss, idle = silent.resident, max(silent.resident)
    late = quantiles(telling.delays, n=20, method="inclusive")[-1]
    return Found(
        title="Idle jobs at once",
        columns=["jobs", "resident, MiB", "CPU, % of a core", "log delay p50, ms", "p95, ms"],
        rows=[
            *([str(count), f"{size:.1f}", "", "", ""] for count, size in rss.items() if count != idle),
            [str(idle), f"{rss[idle]:.1f}", f"{silent.share:.2f}", "", ""],
            [
                f"{idle}, each writing a line every 20 s",
                f"{telling.resident[idle]:.1f}",
                f"{telling.share:.2f}",
                f"{median(telling.delays):.0f}",
                f"{late:.0f}",
            ],
            [f"{_STREAM} short ones, {_FEW} at a time, peak (PSS)", f"{pss:.1f}", "", "", ""],
            ["the same, Celery (PSS)", f"{celery:.1f}", "", "", ""],
        ],
        targets=[
            at_most(f"{idle} idle jobs: CPU, percent of a core", silent.share, _SHARE, "%"),
            at_most(f"{idle} idle jobs: resident", max(rss[idle], telling.resident[idle]), _RESIDENT, "MiB"),
            at_most(f"{idle} jobs that write now and then: log delay, p95", late, _DELAY, "ms"),
            at_most(f"{_MANY} jobs: resident", rss.get(_MANY, rss[idle]), _RESIDENT_MANY, "MiB"),
            at_most(f"{_FEW} jobs at a time: peak of memory (PSS), of Celery's", pss / celery, _OF_CELERY, ""),
        ],
        raw={
            "resident_mib": rss,
            "resident_telling_mib": telling.resident,
            "pss_mib": pss,
            "celery_pss_mib": celery,
            "cpu_percent": silent.share,
            "cpu_percent_telling": telling.share,
            "delays_ms": telling.delays,
        },
    )

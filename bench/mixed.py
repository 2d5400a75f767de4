"""Short jobs that keep coming, alone and among long and big ones: what the company costs them."""

import asyncio
from statistics import median, quantiles

from bench.crowd import Crowd, Member
from bench.found import Found, at_most
from bench.stage import Stage, say
from bench.subject import HI

_PER_SECOND = 2.0
_EVERY = 10
"""Each tenth job is long and big."""
_LONG = ("sh", "-c", "head -c 150m /dev/zero >/work/big; exec timeout 10 sh -c 'while :; do :; done'")
_BIG = {"cpus": 0.5, "memory": "512m", "disk": "256m"}
_SMALL = {"cpus": 0.1}
_TIMES = 2.0


async def measure(stage: Stage) -> Found:
    """With containers that wait, and without."""
    rows, targets, raw = list[list[str]](), [], dict[str, dict[str, list[float]]]()
    for name, warm in (("Runner, warm", 4), ("Runner, cold", 0)):
        async with stage.runner(name, warm=warm, capacity__cpu_overcommit="2") as runner:
            alone = await _stream(runner.crowd, name, stage.options.mixed, long=False)
            company = await _stream(runner.crowd, name, stage.options.mixed, long=True)
        p50, p95 = median(alone), _p95(company)
        raw[name] = {"alone_ms": alone, "mixed_ms": company}
        rows.append([name, *(f"{each:.0f}" for each in (p50, _p95(alone), median(company), p95)), f"{p95 / p50:.2f}"])
        targets.append(at_most(f"{name}: p95 among long ones, of the p50 alone", p95 / p50, _TIMES, ""))
    return Found(
        title=f"{stage.options.mixed} jobs, {_PER_SECOND:g} a second, 10 % of them long and big: "
        "milliseconds until a short one has started",
        columns=["", "alone, p50", "alone, p95", "mixed, p50", "mixed, p95", "mixed p95 / alone p50"],
        rows=rows,
        targets=targets,
        raw=raw,
    )


async def _stream(crowd: Crowd, name: str, count: int, *, long: bool) -> list[float]:
    say(f"{name}: {count} jobs, {'mixed' if long else 'alone'}")
    short, others = list[Member](), list[Member]()
    for number in range(count):
        if long and number % _EVERY == _EVERY - 1:
            others.append(await crowd.submit(_LONG, limits=_BIG))
        else:
            short.append(await crowd.submit(HI, limits=_SMALL))
        await asyncio.sleep(1 / _PER_SECOND)
    await crowd.over(short)
    for other in others:  # they end by `timeout`, with 143
        await other.finished.wait()
    return [member.until("started") for member in short]


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]

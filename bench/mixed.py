"""Short jobs that keep coming, alone and among long and big ones: what the company costs them."""

import asyncio
from statistics import median, quantiles

from bench.crowd import Member
from bench.daemon import Runner
from bench.found import Found, at_most
from bench.stage import Stage, say
from bench.subject import HI

_PER_SECOND = 2.0
_EVERY = 10
"""Each tenth job is long and big."""
_LONG = ("sh", "-c", "head -c 150m /dev/zero >/work/big && timeout 10 sh -c 'while :; do :; done'; test $? = 143")
"""It succeeds if it filled its file, and was busy until the time was up."""
_BIG = {"cpus": 0.5, "memory": "512m", "disk": "256m"}
_SMALL = {"cpus": 0.1}
"""Of the stack, and so of its containers that wait: a job that asked for it would have one changed first."""
_ROUNDS = 2
_TIMES = 2.0


async def measure(stage: Stage) -> Found:
    """With containers that wait, and without."""
    rows, targets, raw = list[list[str]](), [], dict[str, dict[str, list[float]]]()
    for name, warm in (("Runner, warm", 4), ("Runner, cold", 0)):
        async with stage.runner(name, warm=warm, limits=_SMALL, capacity__cpu_overcommit="2") as runner:
            short = await _rounds(runner, stage.options.mixed)
        alone, company = ([member.until("started") for member in short[long]] for long in (False, True))
        p50, p95 = median(alone), _p95(company)
        raw[name] = {"alone_ms": alone, "mixed_ms": company}
        times = [f"{each:.0f}" for each in (p50, _p95(alone), median(company), p95)]
        waited = ", ".join(f"{sum(member.warm for member in each)} of {len(each)}" for each in short.values())
        rows.append([name, *times, f"{p95 / p50:.2f}", waited])
        targets.append(at_most(f"{name}: p95 among long ones, of the p50 alone", p95 / p50, _TIMES, ""))
    return Found(
        title=f"{stage.options.mixed} short jobs, {_PER_SECOND:g} a second, alone and with one in {_EVERY} long and "
        "big: milliseconds until a short one has started",
        columns=[
            *("", "alone, p50", "alone, p95", "mixed, p50", "mixed, p95", "mixed p95 / alone p50"),
            "in containers that waited: alone, mixed",
        ],
        rows=rows,
        targets=targets,
        raw=raw,
    )


async def _rounds(runner: Runner, count: int) -> dict[bool, list[Member]]:
    """The short ones: alone, and among long ones; in turns, of which the order changes."""
    short = dict[bool, list[Member]]({False: [], True: []})
    for number in range(_ROUNDS):
        for long in (False, True) if number % 2 == 0 else (True, False):
            say(f"{runner.name}: {-(-count // _ROUNDS)} short jobs, {'mixed' if long else 'alone'}")
            short[long] += await _stream(runner, -(-count // _ROUNDS), long=long)
    return short


async def _stream(runner: Runner, count: int, *, long: bool) -> list[Member]:
    short, others, crowd = list[Member](), list[Member](), runner.crowd
    while len(short) < count:
        if long and (len(short) + len(others)) % _EVERY == _EVERY // 2:
            others.append(await crowd.submit(_LONG, limits=_BIG))
        else:
            short.append(await crowd.submit(HI))
        await asyncio.sleep(1 / _PER_SECOND)
    await crowd.over([*short, *others])
    await runner.rest()
    return short


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]

"""Output: how fast one job's is read, beside a reader that only counts it; and what very much of it at once costs."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from secrets import token_hex
from statistics import median, quantiles
from typing import Any

import aiodocker

from bench.crowd import TENANT
from bench.daemon import STACK, Runner
from bench.figures import resident_bytes
from bench.found import Found, Target, at_least, at_most
from bench.stage import Stage, say

_MIB = 2**20
_ROUNDS = 3
_LINE = "a line of a hundred bytes, as programs write them when they tell what they are doing, more or less."
_FILL = f"yes '{_LINE}' | head -c 1m >/work/mb"
_LIMITS = {"cpus": 2, "memory": "64m", "disk": "8m", "timeout": "10m"}
_WRITER = f"{_FILL}; while :; do sleep 1 & read up rest </proc/uptime; echo; echo T $up; cat /work/mb; wait; done"
"""The pause goes on beside the writing: so it is one megabyte a second, and not one in a second and a bit."""
_WRITER_LIMITS = {"cpus": 0.5, "memory": "16m", "disk": "8m", "timeout": "10m", "grace": "2s"}
_SETTLE, _WATCH = 10.0, 20.0
"""Seconds until each has written more than is kept of it, and for which they are watched then."""
_SAMPLE_EVERY = 0.5
_LOOK_EVERY = 0.05
_PART = 10
_OF_ATTACH, _OF_RATE, _GROWTH = 0.8, 0.9, 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """How one job's output was read, in MB/s until its end and until a subscriber had all; the daemon's most memory."""

    ended: float
    heard: float
    peak_mib: float


async def measure(stage: Stage) -> Found:
    """One after the other."""
    megabytes = stage.options.megabytes
    async with stage.runner("Runner", capacity__memory="400g") as runner:
        small, ours, attached = list[Flood](), list[Flood](), list[float]()
        for _ in range(_ROUNDS):
            small.append(await _followed(runner, max(1, megabytes // _PART), "4m"))
            attached.append(await _attached(stage))
            ours.append(await _followed(runner, megabytes, "4m"))
            say(f"attach {attached[-1]:.1f} MB/s, ours {ours[-1].heard:.1f} MB/s")
        most = await _followed(runner, megabytes, "64m")
    async with stage.runner("Runner", capacity__memory="400g") as runner:
        rows, targets, raw = await _writers(runner, stage.options.writers)
    return Found(
        title=f"Output: one job that writes {megabytes} MB, and {stage.options.writers} at 1 MB/s each",
        columns=["", ""],
        rows=[
            ["bare attach reader, until the end of the output", f"{median(attached):.1f} MB/s"],
            *_rows("ours, a subscriber connected (`log_bytes` 4m)", ours),
            *_rows("the largest log kept (`log_bytes` 64m)", [most]),
            *rows,
        ],
        targets=[*_targets(small, ours, attached), *targets],
        raw={
            "attach_mb_per_second": attached,
            "ours": [asdict(each) for each in ours],
            "a_tenth": [asdict(each) for each in small],
            "log_64m": asdict(most),
            **raw,
        },
    )


def _rows(name: str, floods: Sequence[Flood]) -> list[list[str]]:
    return [
        [f"{name}: until the subscriber has all and knows of the end", f"{median(_heard(floods)):.1f} MB/s"],
        ["until the job has ended", f"{median(each.ended for each in floods):.1f} MB/s"],
        ["the daemon's most resident memory meanwhile", f"{max(each.peak_mib for each in floods):.0f} MiB"],
    ]


def _targets(small: Sequence[Flood], ours: Sequence[Flood], attached: Sequence[float]) -> list[Target]:
    ratio = median(mine / theirs for mine, theirs in zip(_heard(ours), attached, strict=True))
    growth = max(each.peak_mib for each in ours) / max(each.peak_mib for each in small)
    return [
        at_least("one job's output at a subscriber, of a bare attach reader's MB/s", ratio, _OF_ATTACH, ""),
        at_most("one job's output: most resident, of that with a tenth of the output", growth, _GROWTH, ""),
    ]


def _heard(floods: Sequence[Flood]) -> list[float]:
    return [each.heard for each in floods]


def _flood(megabytes: int) -> list[str]:
    return ["sh", "-c", f"{_FILL}; i=0; while [ $i -lt {megabytes} ]; do cat /work/mb; i=$((i+1)); done"]


async def _attached(stage: Stage) -> float:
    """What a reader gets that does nothing but read, in MB/s."""
    config: dict[str, Any] = {
        "Image": stage.site.image,
        "Cmd": _flood(stage.options.megabytes),
        "HostConfig": {
            "NetworkMode": "none",
            "Memory": 72 * _MIB,
            "MemorySwap": 72 * _MIB,
            "NanoCpus": 2_000_000_000,
            "Tmpfs": {"/work": "size=8m,mode=1777"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
        },
    }
    container = await stage.docker.containers.create(config, name=f"bench-{token_hex(6)}")
    try:
        return await _read(container)
    finally:
        await container.delete(force=True)


async def _read(container: aiodocker.containers.DockerContainer) -> float:
    size = 0
    async with container.attach(stdout=True, stderr=True) as stream:
        await container.start()
        began = time.perf_counter()
        while (message := await stream.read_out()) is not None:
            size += len(message.data)
    return size / _MIB / (time.perf_counter() - began)


async def _followed(runner: Runner, megabytes: int, log_bytes: str) -> Flood:
    """The same for a job whose log a client follows."""
    limits = {**_LIMITS, "log_bytes": log_bytes}
    job = await runner.client.submit(stack=STACK, command=_flood(megabytes), tenant=TENANT, limits=limits)
    reading = asyncio.create_task(_drain(job))
    peak = 0
    while not reading.done():
        peak = max(peak, resident_bytes(runner.daemon))
        await asyncio.wait({reading}, timeout=_LOOK_EVERY)
    reading.result()
    result, heard = await job.result(), datetime.now(UTC)
    written, times = result.body["logs"]["stdout_bytes"], result.body["times"]
    if written != megabytes * _MIB:
        raise RuntimeError(f"{written} bytes were counted: {result.reason}")
    await runner.rest()  # its removal would slow down whoever is next
    started, ended = (datetime.fromisoformat(times[name]) for name in ("started", "ended"))
    return Flood(
        ended=megabytes / (ended - started).total_seconds(),
        heard=megabytes / (heard - started).total_seconds(),
        peak_mib=peak / _MIB,
    )


async def _drain(job: Any) -> None:
    async for _batch in job.batches():
        pass


async def _writers(runner: Runner, count: int) -> tuple[list[list[str]], list[Target], dict[str, Any]]:
    delays, sizes = list[float](), list[float]()

    def hear(batch: dict[str, Any]) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        clocks = (line["m"][2:] for line in batch["lines"] if line["m"].startswith("T "))
        delays.extend(1000 * (now - float(clock)) for clock in clocks)

    say(f"starting {count} writers")
    before = resident_bytes(runner.daemon) / _MIB
    members = await runner.crowd.submit_all(count, ["sh", "-c", _WRITER], limits=_WRITER_LIMITS)
    await runner.watch_over(members)
    await asyncio.sleep(_SETTLE)
    await runner.crowd.listen(hear)
    began, written = time.monotonic(), await runner.metric("runner_log_bytes_total")
    while time.monotonic() - began < _WATCH:
        sizes.append(resident_bytes(runner.daemon) / _MIB)
        await asyncio.sleep(_SAMPLE_EVERY)
    rate = (await runner.metric("runner_log_bytes_total") - written) / _MIB / (time.monotonic() - began)
    await runner.watch_over(members)
    await runner.crowd.cancel(members)
    if not delays:
        raise RuntimeError("no writer's line has arrived")
    quarter = len(sizes) // 4
    growth = max(sizes[-quarter:]) / max(sizes[:quarter])
    late = quantiles(delays, n=20, method="inclusive")[-1]
    rows = [
        [f"{count} writers: read in all", f"{rate:.1f} MB/s"],
        [f"{count} writers: resident before, then, at most", f"{before:.0f}, {sizes[0]:.0f}, {max(sizes):.0f} MiB"],
        [f"{count} writers: delay of what is shown, p50 and p95", f"{median(delays):.0f}, {late:.0f} ms"],
    ]
    targets = [
        at_least(f"{count} writers: read in all, of what they write at 1 MB/s each", rate / count, _OF_RATE, ""),
        at_most(f"{count} writers: resident at the end, of that at the beginning", growth, _GROWTH, ""),
    ]
    return rows, targets, {"writers_mb_per_second": rate, "writers_resident_mib": sizes, "writers_delays_ms": delays}

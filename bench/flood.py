"""Neighbours of a flood: how late the lines of a job are shown while another floods both streams."""

import asyncio
import time
from statistics import median, quantiles
from typing import Any

from bench.crowd import TENANT, Member
from bench.daemon import Runner
from bench.found import Found, at_most
from bench.stage import Stage

_MIB = 2**20
_LINE = "a line of a hundred bytes, as programs write them when they tell what they are doing, more or less."
_FLOOD = f"yes '{_LINE}' >&2 & exec yes '{_LINE}'"
_EVERY = 0.1
_CLOCK = f"while :; do read up rest </proc/uptime; echo $up; sleep {_EVERY}; done"
_LIMITS = {"cpus": 2, "memory": "64m", "disk": "8m", "timeout": "10m", "grace": "2s"}
_SETTLE, _WATCH = 5.0, 15.0
"""Seconds until the flood has written more than is kept of it, and for which each is watched then."""
_LATEST = 200.0
"""Milliseconds by which no line of another job may be late."""


async def measure(stage: Stage) -> Found:
    """The neighbour alone, then with the flood."""
    async with stage.runner("Runner") as runner:
        (neighbour,) = await runner.crowd.submit_all(1, ["sh", "-c", _CLOCK], limits=_LIMITS | {"cpus": 0.5})
        await runner.crowd.begun([neighbour])
        alone = await _delays(runner, neighbour)
        (flood,) = await runner.crowd.submit_all(1, ["sh", "-c", _FLOOD], limits=_LIMITS)
        await runner.crowd.begun([flood])
        await asyncio.sleep(_SETTLE)
        began, read = time.monotonic(), await runner.metric("runner_log_bytes_total")
        beside = await _delays(runner, neighbour)
        rate = (await runner.metric("runner_log_bytes_total") - read) / _MIB / (time.monotonic() - began)
        await runner.crowd.cancel([flood, neighbour])
    return Found(
        title="Floods: how late the lines of another job are shown, one every 100 ms",
        columns=["", "lines", "p50", "p95", "at most"],
        rows=[
            ["alone", *_cells(alone)],
            [f"beside a job that writes {rate:.0f} MB/s to both streams", *_cells(beside)],
        ],
        targets=[at_most("delay of another job's lines beside a flood", max(beside), _LATEST, "ms")],
        raw={"flood_mb_per_second": rate, "alone_delays_ms": alone, "flood_delays_ms": beside},
    )


async def _delays(runner: Runner, neighbour: Member) -> list[float]:
    """Milliseconds from when each line was written, by the clock in it, until it was heard of.

    That clock has steps of 10 ms, so that they seem up to so much later.
    """
    delays, crowd, key = list[float](), runner.crowd, f"{TENANT}.{neighbour.id}"

    def hear(batch: dict[str, Any]) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        delays.extend(1000 * (now - float(line["m"])) for line in batch["lines"])

    crowd.on_batch = hear
    await crowd.queue.bind(f"{crowd.namespace}.logs", key)  # not the flood's: to read it would take time
    await asyncio.sleep(_WATCH)
    await crowd.queue.unbind(f"{crowd.namespace}.logs", key)
    if len(delays) < _WATCH / _EVERY / 2:
        raise RuntimeError(f"only {len(delays)} lines were heard of in {_WATCH:.0f} s")
    return delays


def _cells(delays: list[float]) -> list[str]:
    late = quantiles(delays, n=20, method="inclusive")[-1]
    return [str(len(delays)), *(f"{each:.0f} ms" for each in (median(delays), late, max(delays)))]

"""`runner queues`."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from runner.adapters.amqp.find import JOBS_MAX
from runner.app.queues import QueueFacts, Waiting, look_at_queues
from runner.cli.options import JSON, URL, broker_settings, make_client
from runner.cli.table import table
from runner.cli.workers import WAIT

_QUEUES = ("QUEUE", "READY", "CONSUMERS", "WHY")
_HELD = ("WORKER", "TENANT", "JOB", "WAITS, SINCE IT")
_DEFERRED = ("TENANT", "JOB", "STACK", "PASSED ON, SINCE")

Deferred = Sequence[Mapping[str, Any]]
"""The jobs that waited last for another worker."""


@click.command("queues")
@click.option("-a", "--all", "everything", is_flag=True, help="Also the empty levels of delay.")
@URL
@JSON
def command(*, everything: bool, url: str | None, as_json: bool) -> None:
    """Tell what waits in each queue, and why.

    Counts the job queues of the pools that the settings or the workers name, what is delayed, lost or dead, and lists
    the jobs that workers have taken but cannot start yet, and those that they pass on, as where a stack is missing.
    """
    waiting, deferred = asyncio.run(_look(url))
    click.echo("\n".join(_json(waiting, deferred) if as_json else _text(waiting, deferred, everything=everything)))


async def _look(url: str | None) -> tuple[Waiting, Deferred]:
    waiting = await look_at_queues(broker_settings(url), wait=WAIT)
    async with make_client(url) as client:
        # All of them, since what one worker passed on may have run on another one.
        jobs = await client.recent(limit=JOBS_MAX, wait=WAIT)
    return waiting, [job for job in jobs if job.get("state") == "deferred"]


def _json(waiting: Waiting, deferred: Deferred) -> list[str]:
    told = [*map(asdict, waiting.queues), *map(asdict, waiting.held_back), *deferred]
    return [json.dumps(facts, ensure_ascii=False) for facts in told]


def _text(waiting: Waiting, deferred: Deferred, *, everything: bool) -> list[str]:
    shown = [facts for facts in waiting.queues if everything or facts.ready or ".delay." not in facts.queue]
    lines = table(_QUEUES, [_row(facts) for facts in shown])
    if waiting.held_back:
        lines += ["", *table(_HELD, [(held.worker, held.tenant, held.id, held.why) for held in waiting.held_back])]
    if deferred:
        rows = [tuple(str(job.get(key) or "-") for key in ("tenant", "id", "stack", "reason")) for job in deferred]
        lines += ["", *table(_DEFERRED, rows)]
    return lines


def _row(facts: QueueFacts) -> tuple[str, ...]:
    def number(value: int | None) -> str:
        return "-" if value is None else str(value)

    return facts.queue, number(facts.ready), number(facts.consumers), facts.why or ""

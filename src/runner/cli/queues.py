"""`runner queues`."""

import asyncio
import json
from dataclasses import asdict

import click

from runner.app.queues import QueueFacts, Waiting, look_at_queues
from runner.cli.options import JSON, URL, broker_settings
from runner.cli.table import table
from runner.cli.workers import WAIT

_QUEUES = ("QUEUE", "READY", "CONSUMERS", "WHY")
_HELD = ("WORKER", "TENANT", "JOB", "WAITS, SINCE IT")


@click.command("queues")
@click.option("-a", "--all", "everything", is_flag=True, help="Also the empty levels of delay.")
@URL
@JSON
def command(*, everything: bool, url: str | None, as_json: bool) -> None:
    """Tell what waits in each queue, and why.

    Counts the job queues of the pools that the settings or the workers name, what is delayed, lost or dead, and lists
    the jobs that workers have taken but cannot start yet.
    """
    waiting = asyncio.run(look_at_queues(broker_settings(url), wait=WAIT))
    click.echo("\n".join(_json(waiting) if as_json else _text(waiting, everything=everything)))


def _json(waiting: Waiting) -> list[str]:
    told = [*map(asdict, waiting.queues), *map(asdict, waiting.held_back)]
    return [json.dumps(facts, ensure_ascii=False) for facts in told]


def _text(waiting: Waiting, *, everything: bool) -> list[str]:
    shown = [facts for facts in waiting.queues if everything or facts.ready or ".delay." not in facts.queue]
    lines = table(_QUEUES, [_row(facts) for facts in shown])
    if waiting.held_back:
        lines += ["", *table(_HELD, [(held.worker, held.tenant, held.id, held.why) for held in waiting.held_back])]
    return lines


def _row(facts: QueueFacts) -> tuple[str, ...]:
    def number(value: int | None) -> str:
        return "-" if value is None else str(value)

    return facts.queue, number(facts.ready), number(facts.consumers), facts.why or ""

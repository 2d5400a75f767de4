"""`runner workers`."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import click

from runner.app.queues import ask_workers
from runner.cli.options import JSON, URL, broker_settings
from runner.cli.table import table
from runner.units import format_size

WAIT = 1.0
"""Seconds that the workers have for their answers."""
_HEAD = ("WORKER", "STATE", "POOLS", "RUNNING", "WAITING", "FREE CPUS", "FREE MEMORY", "VERSION", "PROBLEMS")


@click.command("workers")
@URL
@JSON
def command(*, url: str | None, as_json: bool) -> None:
    """List the workers: state, room, running jobs.

    Asks all of them, and shows those that answer within a second.
    """
    workers = asyncio.run(ask_workers(broker_settings(url), wait=WAIT))
    if as_json:
        for worker in workers:
            click.echo(json.dumps(worker, ensure_ascii=False))
    elif workers:
        click.echo("\n".join(table(_HEAD, [_row(worker) for worker in workers])))
    else:
        click.echo("runner: no worker answers", err=True)


def _row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    capacity, free = worker.get("capacity", {}), worker.get("free", {})
    memory, whole = free.get("memory"), capacity.get("memory")
    return (
        str(worker.get("worker")),
        str(worker.get("state", "-")),
        ",".join(worker.get("pools", ())),
        str(worker.get("running", "-")),
        str(len(worker.get("waiting", ()))),
        f"{free['cpus']:g} of {capacity.get('cpus', 0):g}" if free else "-",
        f"{format_size(max(0, memory))} of {format_size(whole)}" if memory is not None and whole is not None else "-",
        str(worker.get("version", "-")),
        "; ".join(worker.get("problems", ())) or "-",
    )

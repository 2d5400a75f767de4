"""`runner submit`."""

import asyncio
import json
from typing import Any

import click

from runner.cli.options import JSON, broker_options, job_message, job_options, make_client
from runner.client import Client, Submission, check_job

_AT_ONCE = 100
"""Confirms that are waited for together."""


@click.command("submit", context_settings={"allow_interspersed_args": False})
@job_options
@broker_options
@click.option("-n", "count", type=click.IntRange(1), default=1, help="Submit that many, each with an id of its own.")
@JSON
def command(
    *, message: dict[str, Any], command: tuple[str, ...], url: str | None, count: int, as_json: bool, **options: Any
) -> None:
    """Submit a job and print its id."""
    job = job_message(message, command, options)
    if count > 1 and "id" in job:
        raise click.UsageError("-n makes several jobs, so they cannot have one id")
    route = {name: options[name] for name in ("tenant", "pool", "priority")}
    check_job(job, **route)
    asyncio.run(_submit(make_client(url), job, route, count, as_json=as_json))


async def _submit(client: Client, job: dict[str, Any], route: dict[str, Any], count: int, *, as_json: bool) -> None:
    async with client:
        for start in range(0, count, _AT_ONCE):
            number = min(_AT_ONCE, count - start)
            for done in await asyncio.gather(*(client.enqueue(job, **route) for _ in range(number))):
                click.echo(_line(done, as_json=as_json))


def _line(done: Submission, *, as_json: bool) -> str:
    if not as_json:
        return done.id
    return json.dumps({"id": done.id, "tenant": done.tenant, "pool": done.pool, "priority": done.priority})

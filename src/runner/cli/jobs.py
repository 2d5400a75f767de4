"""`runner jobs`."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from runner.adapters.amqp.find import JOBS_MAX
from runner.cli.options import JSON, URL, make_client
from runner.cli.table import ago, parse_time, table
from runner.client import Client, Outcome

_HEAD = ("ID", "TENANT", "STATE", "SINCE", "STACK", "WORKER", "REASON")
_STATES = ("queued", "running", "retrying", "deferred", "finished", *(outcome.value for outcome in Outcome))


@click.command("jobs")
@click.option("--tenant", help="Only this one's; without this all tenants'.")
@click.option("--state", type=click.Choice(_STATES), metavar="STATE", help="Only those in a state, or of an outcome.")
@click.option("-n", "limit", type=click.IntRange(1, JOBS_MAX), default=50, show_default=True, help="The most to show.")
@URL
@JSON
def command(*, tenant: str | None, state: str | None, limit: int, url: str | None, as_json: bool) -> None:
    """List the jobs that the workers have, and those they had last.

    Asks all workers, and shows what comes back within a second. Jobs that wait in the broker are counted by `queues`.
    """
    jobs = asyncio.run(_ask(make_client(url), tenant, state, limit))
    if as_json:
        for job in jobs:
            click.echo(json.dumps(job, ensure_ascii=False))
    else:
        now = datetime.now(UTC)
        click.echo("\n".join(table(_HEAD, [_row(job, now) for job in jobs])))


async def _ask(client: Client, tenant: str | None, state: str | None, limit: int) -> list[Mapping[str, Any]]:
    async with client:
        return await client.recent(tenant=tenant, state=state, limit=limit)


def _row(job: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    state = job.get("outcome") if job.get("state") == "finished" else job.get("state")
    words = (job.get("id"), job.get("tenant"), state, ago(parse_time(job.get("updated")), now))
    return tuple(str(word or "-") for word in (*words, job.get("stack"), job.get("worker"), job.get("reason")))

"""`runner cancel`."""

import asyncio
import json

import click

from runner.cli.options import JSON, broker_options, make_client
from runner.client import Client


@click.command("cancel")
@click.option("--reason", default="", help="Told in the job's result.")
@broker_options
@JSON
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
def command(*, reason: str, tenant: str, url: str | None, as_json: bool, job_ids: tuple[str, ...]) -> None:
    """Stop jobs, wherever they are.

    Done when the broker has the request. A running job gets SIGTERM, and SIGKILL after its grace.
    """
    asyncio.run(_cancel(make_client(url), tenant, job_ids, reason, as_json=as_json))


async def _cancel(client: Client, tenant: str, job_ids: tuple[str, ...], reason: str, *, as_json: bool) -> None:
    async with client:
        for job_id in job_ids:
            await client.cancel(tenant, job_id, reason)
            if as_json:
                click.echo(json.dumps({"id": job_id, "tenant": tenant}))
            else:
                click.echo(f"runner: the cancellation of {job_id} is on its way", err=True)

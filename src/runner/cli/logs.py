"""`runner logs`."""

import asyncio

import click

from runner.cli.options import JSON, broker_options, make_client
from runner.cli.output import show_json, show_log, tell_end
from runner.client import Client


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@broker_options
@JSON
@click.argument("job_id", metavar="ID")
def command(*, follow: bool, tenant: str, url: str | None, as_json: bool, job_id: str) -> None:
    """Show a job's log.

    What it tells from now on is shown until it has ended; a job that has ended already tells nothing.
    """
    if not follow:
        raise click.UsageError("only what a job tells from now on can be shown: add -f")
    asyncio.run(_logs(make_client(url), tenant, job_id, as_json=as_json))


async def _logs(client: Client, tenant: str, job_id: str, *, as_json: bool) -> None:
    async with client:
        job = await client.follow(tenant, job_id)
        click.echo(f"runner: following job {job.id} of {tenant}", err=True)
        await (show_json(job) if as_json else show_log(job))
        tell_end(await job.result())

"""`runner logs`."""

import asyncio

import click

from runner.cli.exits import Exit
from runner.cli.options import JSON, broker_options, make_client
from runner.cli.output import log_reader, show_batches, show_json, show_log, tell_end
from runner.client import Client, Found

UNKNOWN = "no worker that answers knows job {id} of {tenant}: it waits in a queue, was never submitted, or is forgotten"


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@broker_options
@JSON
@click.argument("job_id", metavar="ID")
@click.pass_context
def command(ctx: click.Context, /, *, follow: bool, tenant: str, url: str | None, as_json: bool, job_id: str) -> None:
    """Show a job's log.

    What the workers keep of it is shown, also after the job has ended, with all attempts of a job that was retried.
    """
    known = asyncio.run(_logs(make_client(url), tenant, job_id, follow=follow, as_json=as_json))
    if not known:
        click.echo(f"runner: {UNKNOWN.format(id=job_id, tenant=tenant)}", err=True)
        ctx.exit(Exit.FAILED)


async def _logs(client: Client, tenant: str, job_id: str, *, follow: bool, as_json: bool) -> bool:
    """Whether anything is known of the job."""
    async with client:
        # First listen, then ask: what comes meanwhile comes twice, and is shown once.
        job = await client.follow(tenant, job_id) if follow else None
        found = await client.find(tenant, job_id, everyone=True)
        kept = client.kept_log(tenant, job_id, found)
        if job is not None:
            click.echo(f"runner: following job {job.id} of {tenant}", err=True)
        reader, shown = log_reader(), set[str]()
        await (show_batches(kept, shown) if as_json else show_log(kept, reader))
        if job is None or _over(found):
            if found and (result := found[0].result) is not None:
                tell_end(result)
            return bool(found)
        await (show_json(job, shown) if as_json else show_log(job.batches(), reader))
        tell_end(await job.result())
        return True


def _over(found: list[Found]) -> bool:
    return bool(found) and found[0].state == "finished"

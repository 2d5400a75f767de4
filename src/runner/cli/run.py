"""`runner run`."""

import asyncio
import signal
from typing import Any

import click

from runner.cli.exits import exit_code_of
from runner.cli.interrupts import interrupts
from runner.cli.options import JSON, broker_options, job_message, job_options, make_client
from runner.cli.output import log_reader, show_json, show_log, tell_end
from runner.client import BrokerError, Client, SubmittedJob, check_job

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@click.command("run", context_settings={"allow_interspersed_args": False})
@job_options
@broker_options
@JSON
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    message: dict[str, Any],
    command: tuple[str, ...],
    url: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a job, show its log, and exit with its code.

    The first Ctrl-C cancels the job and waits for its end, the second one leaves at once. Exit codes: the job's own;
    128 + signal when a signal ended it; 124 timed out, 130 cancelled, 137 killed for memory, 125 otherwise not run.
    """
    job = job_message(message, command, options)
    route = {name: options[name] for name in ("tenant", "pool", "priority")}
    check_job(job, **route)
    ctx.exit(asyncio.run(_run(make_client(url), job, route, as_json=as_json)))


async def _run(client: Client, message: dict[str, Any], route: dict[str, Any], *, as_json: bool) -> int:
    async with client:
        asked = asyncio.Event()
        with interrupts(_SIGNALS, asked.set):
            job = await client.submit_message(message, **route)
            click.echo(f"runner: job {job.id}", err=True)
            cancelling = asyncio.create_task(_cancel(asked, job))
            try:
                await (show_json(job) if as_json else show_log(job.batches(), log_reader()))
                result = await job.result()
            finally:
                cancelling.cancel()
                await asyncio.wait({cancelling})
        tell_end(result)
        return exit_code_of(result)


async def _cancel(asked: asyncio.Event, job: SubmittedJob) -> None:
    await asked.wait()
    click.echo("runner: cancelling the job; once more leaves at once", err=True)
    try:
        await job.cancel("interrupted at the terminal")
    except BrokerError as error:
        click.echo(f"runner: the job could not be cancelled: {error}", err=True)

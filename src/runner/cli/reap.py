"""`runner reap`."""

import asyncio
import json
import os

import click

from runner.app.reap import reap, reap_expired
from runner.cli.exits import Exit
from runner.cli.options import JSON
from runner.settings import load_settings


@click.command("reap")
@click.option("--expired", is_flag=True, help="Only those past their time, unknown, or without a lease.")
@JSON
@click.pass_context
def command(ctx: click.Context, /, *, expired: bool, as_json: bool) -> None:
    """Remove every container of this machine's worker.

    Refused while `serve` runs, except with --expired, which leaves alone what a daemon has or may come back for.
    """
    settings = load_settings(os.environ)
    reaped = asyncio.run(reap_expired(settings) if expired else reap(settings))
    if as_json:
        click.echo(json.dumps({"removed": reaped.removed, "left": reaped.left}))
    else:
        click.echo(f"{reaped.removed} containers removed")
    if reaped.left:
        click.echo(f"runner: the engine did not remove {reaped.left} containers; run this again", err=True)
        ctx.exit(Exit.FAILED)

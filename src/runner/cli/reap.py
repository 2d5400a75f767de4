"""`runner reap`."""

import asyncio
import json
import os

import click

from runner.app.reap import reap
from runner.cli.exits import Exit
from runner.cli.options import JSON
from runner.settings import load_settings


@click.command("reap")
@JSON
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool) -> None:
    """Remove every container of this machine's worker.

    Refused while `serve` runs.
    """
    reaped = asyncio.run(reap(load_settings(os.environ)))
    if as_json:
        click.echo(json.dumps({"removed": reaped.removed, "left": reaped.left}))
    else:
        click.echo(f"{reaped.removed} containers removed")
    if reaped.left:
        click.echo(f"runner: the engine did not remove {reaped.left} containers; run this again", err=True)
        ctx.exit(Exit.FAILED)

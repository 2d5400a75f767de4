"""`runner network`."""

import asyncio
import json
import os

import click

from runner.app.finding import Finding
from runner.app.network import apply_network, check_network, keep_network, remove_network
from runner.cli.check import exit_code_for, tell
from runner.cli.options import JSON
from runner.settings import Settings, load_settings


@click.group("network")
def command() -> None:
    """Make, verify or remove the networks of jobs that reach out.

    Needs root: the packet filter is the superuser's. Exit codes: 78 for the configuration, 69 for the engine, 1 for
    the machine.
    """


@command.command("apply")
@JSON
@click.option("--if-applied", is_flag=True, help="Do nothing unless it was done before, and not removed since.")
def apply(*, as_json: bool, if_applied: bool) -> None:
    """Make the networks and load the rules; change only what differs.

    Do it again after a change of the settings under network, or of a stack's list of destinations.
    """
    settings = load_settings(os.environ)
    applied = asyncio.run(keep_network(settings) if if_applied else apply_network(settings))
    if applied is None:
        click.echo(
            json.dumps({"did": [], "networks": []}) if as_json else "runner: nothing is applied", err=not as_json
        )
        return
    if as_json:
        networks = [
            {"name": made.name, "bridge": made.segment.bridge, "subnet": str(made.segment.subnet)}
            for made in applied.record.networks
        ]
        click.echo(json.dumps({"did": applied.did, "networks": networks}))
        return
    for line in applied.did:
        click.echo(f"runner: {line}", err=True)
    names = ", ".join(made.name for made in applied.record.networks)
    click.echo(f"runner: the networks stand: {names}", err=True)


@command.command("check")
@JSON
@click.pass_context
def check(ctx: click.Context, /, *, as_json: bool) -> None:
    """Verify networks and rules, changing nothing: a line each, ok or what to do."""
    ctx.exit(exit_code_for(asyncio.run(_check(load_settings(os.environ), as_json=as_json))))


async def _check(settings: Settings, *, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in check_network(settings):
        findings.append(finding)
        tell(finding, as_json=as_json)
    return findings


@command.command("remove")
@JSON
def remove(*, as_json: bool) -> None:
    """Remove networks and rules. Refused while a container is attached. Kernel settings stay as they are."""
    removed = asyncio.run(remove_network(load_settings(os.environ)))
    if as_json:
        click.echo(json.dumps({"removed": removed}))
        return
    for line in removed or ("there was nothing to remove",):
        click.echo(f"runner: {'removed ' if removed else ''}{line}", err=True)

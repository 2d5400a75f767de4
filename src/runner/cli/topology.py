"""`runner topology`."""

import asyncio
import json
import os

import click

from runner.app.permissions import permission_commands
from runner.app.topology import apply_topology, check_topology
from runner.cli.exits import Exit
from runner.cli.options import JSON
from runner.codec import WORD
from runner.errors import ConfigError
from runner.settings import load_settings


def _tenants(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not WORD.fullmatch(value):
            raise click.BadParameter(f"{value!r} is not a word: letters, digits, dashes, underscores", param=option)
    return values


@click.group("topology")
def command() -> None:
    """Make or verify what has to stand in the broker."""


@command.command("apply")
@click.option("--tenant", "tenants", multiple=True, callback=_tenants, help="Print this one's permissions; repeatable.")
@JSON
def apply(*, tenants: tuple[str, ...], as_json: bool) -> None:
    """Declare what is missing, and print the permissions that a worker and a tenant need.

    Without --tenant they are those of the tenants in the settings, or of the tenant `default`.
    """
    settings = load_settings(os.environ)
    applied = asyncio.run(apply_topology(settings))
    for part in applied.made:
        click.echo(f"runner: made {part}", err=True)
    summary = f"{applied.exchanges} exchanges, {applied.queues} queues, {applied.bindings} bindings"
    click.echo(f"runner: {summary} stand in the namespace {settings.amqp.namespace}", err=True)
    lines = permission_commands(settings, tenants or tuple(settings.tenants) or ("default",))
    if as_json:
        click.echo(
            json.dumps({"made": applied.made, "permissions": [line for line in lines if line.startswith("rabb")]})
        )
    else:
        click.echo("\n".join(lines))


@command.command("check")
@JSON
def check(*, as_json: bool) -> None:
    """Verify what stands, without making anything. Bindings cannot be read; `apply` makes them."""
    settings = load_settings(os.environ)
    faults = asyncio.run(check_topology(settings))
    if as_json:
        click.echo(json.dumps({"ok": not faults, "faults": faults}))
        if faults:
            click.get_current_context().exit(Exit.CONFIG)
    elif faults:
        raise ConfigError(*faults)
    else:
        click.echo(f"runner: the topology in the namespace {settings.amqp.namespace} is as it should be", err=True)

"""`runner check`."""

import asyncio
import json
import os

import click

from runner.app.check import check
from runner.app.finding import Finding, Remedy
from runner.cli.exits import Exit
from runner.cli.options import JSON
from runner.errors import ConfigError
from runner.settings import Settings, load_settings

_CODES = {Remedy.CONFIG: Exit.CONFIG, Remedy.SERVICE: Exit.UNAVAILABLE, Remedy.MACHINE: Exit.FAILED}
"""The first of these that is found makes the exit code."""


@click.command("check")
@click.option("--print", "print_settings", is_flag=True, help="Print the settings as they count, and look at nothing.")
@JSON
@click.pass_context
def command(ctx: click.Context, /, *, print_settings: bool, as_json: bool) -> None:
    """Check this machine, the broker and the engine: a line each.

    Each line says ok, or what to do. Exit codes: 78 for the configuration, 69 for a service, 1 for the machine.
    """
    if print_settings and as_json:
        raise click.UsageError("--print prints TOML; leave out --json")
    try:
        settings = load_settings(os.environ)
    except ConfigError as error:
        findings = [Finding(name="configuration", detail=fault, remedy=Remedy.CONFIG) for fault in error.faults]
        for finding in findings:
            tell(finding, as_json=as_json)
        ctx.exit(Exit.CONFIG)
    if print_settings:
        click.echo(settings.effective(), nl=False)
    else:
        ctx.exit(exit_code_for(asyncio.run(_check(settings, as_json=as_json))))


async def _check(settings: Settings, *, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in check(settings):
        findings.append(finding)
        tell(finding, as_json=as_json)
    return findings


def exit_code_for(findings: list[Finding]) -> Exit:
    """What the worst of the findings means."""
    found = {finding.remedy for finding in findings}
    return next((code for remedy, code in _CODES.items() if remedy in found), Exit.DONE)


def tell(finding: Finding, *, as_json: bool) -> None:
    """A line for a finding."""
    if as_json:
        click.echo(json.dumps({"name": finding.name, "ok": finding.ok, "detail": finding.detail}))
    else:
        click.echo(f"{'ok' if finding.ok else 'mend':5} {finding.name:14} {finding.detail}")

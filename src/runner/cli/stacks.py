"""`runner stacks`."""

import asyncio
import json
import os

import click

from runner.app.stacks import build_stack, list_stacks
from runner.cli.options import JSON
from runner.settings import load_settings
from runner.stacks.build import Built
from runner.stacks.catalog import Listed


@click.group("stacks")
def command() -> None:
    """Build and list the stacks of this machine."""


@command.command("build")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@JSON
def build(*, names: tuple[str, ...], as_json: bool) -> None:
    """Build stacks from their folders in stacks.dir; the next job gets what was built."""
    settings = load_settings(os.environ)
    for name in names:
        built = asyncio.run(build_stack(settings, name, lambda line: click.echo(line, err=True)))
        click.echo(_built(built, as_json=as_json))


def _built(built: Built, *, as_json: bool) -> str:
    if as_json:
        told = {"stack": built.stack, "revision": built.revision, "image": built.image, "changed": built.changed}
        return json.dumps(told)
    return f"{built.stack} {built.revision} {'is current now' if built.changed else 'was current already'}"


@command.command("list")
@JSON
def list_(*, as_json: bool) -> None:
    """List the stacks: name, revision, description, or what keeps one from being used."""
    stacks = asyncio.run(list_stacks(load_settings(os.environ)))
    width = max((len(stack.name) for stack in stacks), default=0)
    for stack in stacks:
        click.echo(json.dumps(_fields(stack)) if as_json else _row(stack, width))


def _fields(listed: Listed) -> dict[str, object]:
    stack = listed.stack
    return {
        "name": listed.name,
        "revision": stack.revision if stack else None,
        "image": stack.image if stack else None,
        "description": listed.description,
        "fault": listed.fault,
    }


def _row(listed: Listed, width: int) -> str:
    state = listed.stack.revision if listed.stack else "-"
    return f"{listed.name:{width}}  {state:12}  {listed.fault or listed.description}".rstrip()

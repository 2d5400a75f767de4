"""`runner stacks`."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from runner.app.admission import Admitted
from runner.app.fleet import export_stacks, import_stacks
from runner.app.registry import pull_stacks
from runner.app.stacks import Shown, build_stack, prune_stacks, show_stacks, use_revision
from runner.cli.options import JSON
from runner.cli.table import ago, table
from runner.job import Bytes
from runner.settings import load_settings
from runner.stacks.prune import Pruned, Revision
from runner.stacks.revisions import Pointer
from runner.units import format_size, parse_size

_STACKS = ("STACK", "REVISION", "PREVIOUS", "AGE", "SIZE", "STATE", "WHAT")
_REVISIONS = ("STACK", "REVISION", "AGE", "USED", "SIZE", "STATE")


def _size(_: click.Context, option: click.Parameter, value: str | None) -> Bytes | None:
    try:
        return None if value is None else parse_size(int(value) if value.isdecimal() else value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from None


@click.group("stacks")
def command() -> None:
    """Build the stacks of this machine, switch and prune."""


@command.command("build")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--use/--no-use", default=True, help="Whether the next job gets it; it does.")
@click.option("--fresh", is_flag=True, help="Run every step again, whatever the engine remembers of it.")
@JSON
def build(*, names: tuple[str, ...], use: bool, fresh: bool, as_json: bool) -> None:
    """Build stacks from their folders in stacks.dir, and test them; the next job gets what passed."""
    settings = load_settings(os.environ)
    for name in names:
        admitted = asyncio.run(build_stack(settings, name, _say, use=use, fresh=fresh))
        _tell_admitted(admitted, use=use, as_json=as_json)


@command.command("use")
@click.argument("stack")
@click.argument("revision")
@JSON
def use_(*, stack: str, revision: str, as_json: bool) -> None:
    """Give the next job another revision; jobs that run keep theirs."""
    _tell_pointer(stack, asyncio.run(use_revision(load_settings(os.environ), stack, revision)), as_json=as_json)


@command.command("rollback")
@click.argument("stack")
@JSON
def rollback(*, stack: str, as_json: bool) -> None:
    """Give the next job the revision that was current before; a second time undoes it."""
    _tell_pointer(stack, asyncio.run(use_revision(load_settings(os.environ), stack, None)), as_json=as_json)


@command.command("prune")
@click.option("--max", "most", metavar="SIZE", callback=_size, help="What may be left, instead of stacks.max_bytes.")
@click.option("--dry-run", "dry", is_flag=True, help="Only tell what would be removed.")
@JSON
def prune(*, most: Bytes | None, dry: bool, as_json: bool) -> None:
    """Remove the revisions that were used least recently, until the images of all stacks fit.

    What a pointer, a job or a container needs is kept, and so is what a job was given in the last ten minutes.
    """
    pruned = asyncio.run(prune_stacks(load_settings(os.environ), most, dry=dry))
    for revision in pruned.removed:
        what = {"stack": revision.stack, "revision": revision.revision, "image": revision.image}
        click.echo(json.dumps(what) if as_json else f"{revision.stack} {revision.revision}")
    if not as_json:
        click.echo(_freed(pruned, dry=dry), err=True)


@command.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Every revision that is here.")
@JSON
def list_(*, everything: bool, as_json: bool) -> None:
    """List the stacks: what jobs get, what they got before, or what keeps a stack from being used."""
    stacks, together = asyncio.run(show_stacks(load_settings(os.environ)))
    if as_json:
        for stack in stacks:
            click.echo(json.dumps(_fields(stack), ensure_ascii=False))
        return
    rows = [row for stack in stacks for row in _revision_rows(stack)] if everything else list(map(_row, stacks))
    if rows:
        click.echo("\n".join(table(_REVISIONS if everything else _STACKS, rows)))
    apart = sum(size for stack in stacks for _, size in stack.revisions)
    click.echo(f"runner: {format_size(together)} on disk; without shared layers {format_size(Bytes(apart))}", err=True)


@command.command("export")
@click.argument("stacks", metavar="[STACK[@REVISION]...]", nargs=-1)
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), required=True)
@JSON
def export(*, stacks: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Write stacks with their images to one file, for other machines; all of them if none is named."""
    for packed in asyncio.run(export_stacks(load_settings(os.environ), stacks, output, _say)):
        told = {"stack": packed.stack, "revision": packed.revision, "image": packed.image}
        click.echo(json.dumps(told) if as_json else f"{packed.stack} {packed.revision}")
    if not as_json:
        click.echo(f"runner: {format_size(Bytes(output.stat().st_size))} in {output}", err=True)


@command.command("import")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--use/--no-use", default=True, help="Whether the next job gets them; it does.")
@JSON
def import_(*, file: Path, use: bool, as_json: bool) -> None:
    """Take in what export wrote: check it, load it, test it; the next job gets what passed.

    A stack that is not here yet is installed in stacks.dir; the stack.toml of one that is here stays as it is.
    """
    asyncio.run(_import(file, use=use, as_json=as_json))


@command.command("pull")
@click.argument("stacks", metavar="[STACK]...", nargs=-1)
@JSON
def pull(*, stacks: tuple[str, ...], as_json: bool) -> None:
    """Bring the images that stacks name from stacks.registry, and test them; the next job gets what passed.

    All stacks that name one, if none is named. A daemon that runs does it by itself.
    """
    asyncio.run(_pull(stacks, as_json=as_json))


async def _pull(stacks: tuple[str, ...], *, as_json: bool) -> None:
    async for admitted in pull_stacks(load_settings(os.environ), stacks, _say):
        _tell_admitted(admitted, use=True, as_json=as_json)


async def _import(file: Path, *, use: bool, as_json: bool) -> None:
    async for admitted in import_stacks(load_settings(os.environ), file, _say, use=use):
        _tell_admitted(admitted, use=use, as_json=as_json)


def _tell_admitted(admitted: Admitted, *, use: bool, as_json: bool) -> None:
    stack, revision, changed = admitted.stack, admitted.revision, admitted.changed
    if as_json:
        click.echo(json.dumps({"stack": stack, "revision": revision, "image": admitted.image, "changed": changed}))
        return
    current = "is current now" if changed else "was current already"
    click.echo(f"{stack} {revision} {current if use else f'is here; run: runner stacks use {stack} {revision}'}")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _tell_pointer(stack: str, pointer: Pointer, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"stack": stack, "revision": pointer.current, "previous": pointer.previous}))
    else:
        click.echo(f"{stack} {pointer.current} is current; before it {pointer.previous or 'there was none'}")


def _freed(pruned: Pruned, *, dry: bool) -> str:
    word = "would be" if dry else "are"
    return f"runner: {format_size(pruned.after)} {word} left of {format_size(pruned.before)}"


def _fields(shown: Shown) -> dict[str, Any]:
    stack = shown.listed.stack
    return {
        "name": shown.listed.name,
        "revision": stack.revision if stack else None,
        "image": stack.image if stack else None,
        "description": shown.listed.description,
        "fault": shown.listed.fault,
        "previous": shown.pointer.previous if shown.pointer else None,
        "built": shown.built.isoformat() if shown.built else None,
        "bytes": shown.size,
        "revisions": [
            {
                "revision": revision.revision,
                "image": revision.image,
                "state": _state(revision, shown.pointer),
                "built": revision.record.built.isoformat() if revision.record else None,
                "used": _time(revision.used).isoformat() if revision.used else None,
                "bytes": size,
            }
            for revision, size in shown.revisions
        ],
    }


def _row(shown: Shown) -> tuple[str, ...]:
    listed, stack, pointer = shown.listed, shown.listed.stack, shown.pointer
    return (
        listed.name,
        stack.revision if stack else "-",
        (pointer.previous if pointer else None) or "-",
        ago(shown.built, datetime.now(UTC)),
        format_size(shown.size) if shown.size is not None else "-",
        "mend" if listed.fault else "ok",
        listed.fault or listed.description,
    )


def _revision_rows(shown: Shown) -> list[tuple[str, ...]]:
    now = datetime.now(UTC)
    return [
        (
            revision.stack,
            revision.revision,
            ago(revision.record.built if revision.record else None, now),
            ago(_time(revision.used) if revision.used else None, now),
            format_size(size),
            _state(revision, shown.pointer),
        )
        for revision, size in shown.revisions
    ]


def _state(revision: Revision, pointer: Pointer | None) -> str:
    if pointer is not None and revision.revision in (pointer.current, pointer.previous):
        return "current" if revision.revision == pointer.current else "previous"
    return revision.record.state.value if revision.record else "tagged by hand"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

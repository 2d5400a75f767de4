"""`runner dead`."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from runner.app.dead import Chosen, Fate, Letter, Swept, go_through
from runner.cli.exits import Exit
from runner.cli.options import JSON, URL, broker_settings
from runner.cli.table import ago, facts, table
from runner.codec import parse_route
from runner.job import Route
from runner.units import format_size, parse_duration

F = TypeVar("F", bound=Callable[..., Any])

_HEAD = ("LETTER", "JOB", "TENANT", "AGE", "CODE", "REASON")


def _duration(_: click.Context, option: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return parse_duration(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from None


def _route(_: click.Context, option: click.Parameter, value: str | None) -> Route | None:
    try:
        return parse_route(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from None


_FILTERS = (
    click.option("--code", help="Only those of this code: undecodable, rejected, unroutable, delivery_limit, …"),
    click.option("--reason", metavar="TEXT", help="Only those whose reason has this in it."),
    click.option("--tenant", help="Only this one's."),
    click.option("--older-than", metavar="TIME", callback=_duration, help="Only those as old, for example 7d."),
    URL,
)
_IDS = click.argument("ids", metavar="ID...", nargs=-1)
_ALL = click.option("--all", "everything", is_flag=True, help="Every letter; asks first.")
_YES = click.option("--yes", is_flag=True, help="Do not ask.")


def _choosing(function: F) -> F:
    decorated: Any = function
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    chosen: F = decorated
    return chosen


@click.group("dead")
def command() -> None:
    """Look through the dead letters; replay or drop them.

    An ID is that of a letter or of the job in it. Each command takes all letters for a moment, so that two at once see
    a part each.
    """


@command.command("list")
@_choosing
@JSON
@_IDS
def list_(*, url: str | None, as_json: bool, ids: tuple[str, ...], **filters: Any) -> None:
    """List the dead letters, oldest first, and why nobody ran them."""
    letters: list[Letter] = []
    swept = _go_through(url, Chosen(ids=frozenset(ids), **filters), Fate.KEEP, letters.append)
    if as_json:
        for letter in letters:
            click.echo(json.dumps(letter.fields(), ensure_ascii=False))
    elif letters:
        now = datetime.now(UTC)
        click.echo("\n".join(table(_HEAD, [_row(letter, now) for letter in letters])))
    _tell_unseen(swept)


@command.command("show")
@URL
@JSON
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_context
def show(ctx: click.Context, /, *, url: str | None, as_json: bool, ids: tuple[str, ...]) -> None:
    """Show letters whole, with the message as it came."""
    letters: list[Letter] = []
    swept = _go_through(url, Chosen(ids=frozenset(ids)), Fate.KEEP, letters.append)
    for letter in letters:
        body = letter.body.decode(errors="replace")
        told = json.dumps({**letter.fields(), "body": body}, ensure_ascii=False) if as_json else _whole(letter, body)
        click.echo(told)
    _tell_unseen(swept)
    if not letters:
        _none(ctx)


@command.command("replay")
@_choosing
@_ALL
@_YES
@click.option("--to", metavar="POOL.PRIORITY.TENANT", callback=_route, help="There, and not where they came from.")
@JSON
@_IDS
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    *,
    url: str | None,
    everything: bool,
    yes: bool,
    to: Route | None,
    as_json: bool,
    ids: tuple[str, ...],
    **filters: Any,
) -> None:
    """Submit the jobs in letters again, as they were, and remove the letters."""
    chosen = _meant(Chosen(ids=frozenset(ids), **filters), everything=everything)
    if everything and not yes:
        click.confirm("Submit the jobs of all dead letters again?", abort=True, err=True)
    swept = _go_through(url, chosen, Fate.REPLAY, _teller("replayed", as_json=as_json), to)
    _tell_done(ctx, swept, swept.replayed, "submitted again", chosen)


@command.command("drop")
@_choosing
@_ALL
@_YES
@JSON
@_IDS
@click.pass_context
def drop(
    ctx: click.Context,
    /,
    *,
    url: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
    ids: tuple[str, ...],
    **filters: Any,
) -> None:
    """Remove letters for good."""
    chosen = _meant(Chosen(ids=frozenset(ids), **filters), everything=everything)
    if everything and not yes:
        click.confirm("Remove all dead letters for good?", abort=True, err=True)
    swept = _go_through(url, chosen, Fate.DROP, _teller("dropped", as_json=as_json))
    _tell_done(ctx, swept, swept.dropped, "removed", chosen)


def _meant(chosen: Chosen, *, everything: bool) -> Chosen:
    if chosen.everything and not everything:
        raise click.UsageError("name letters or jobs, or choose by --code, --reason, --tenant, --older-than, or --all")
    if everything and not chosen.everything:
        raise click.UsageError("--all means every letter: leave out the rest")
    return chosen


def _go_through(
    url: str | None, chosen: Chosen, fate: Fate, tell: Callable[[Letter], None], to: Route | None = None
) -> Swept:
    return asyncio.run(go_through(broker_settings(url), chosen, fate, tell, now=datetime.now(UTC), to=to))


def _teller(done: str, *, as_json: bool) -> Callable[[Letter], None]:
    """With --json each letter is told with what was `done`."""

    def tell(letter: Letter) -> None:
        if as_json:
            click.echo(json.dumps({**letter.fields(), "done": done}, ensure_ascii=False))

    return tell


def _tell_done(ctx: click.Context, swept: Swept, count: int, done: str, chosen: Chosen) -> None:
    click.echo(f"runner: {count} {'letter' if count == 1 else 'letters'} {done}, {swept.kept} kept", err=True)
    _tell_unseen(swept)
    if swept.unaddressed:
        lost = f"{swept.unaddressed} of the kept do not say where their jobs could go"
        click.echo(f"runner: {lost}; name a routing key with --to", err=True)
        ctx.exit(Exit.FAILED)
    if chosen.ids and not count:
        _none(ctx)


def _tell_unseen(swept: Swept) -> None:
    if swept.unseen:
        click.echo(f"runner: {swept.unseen} more letters were out of reach; run this again", err=True)


def _none(ctx: click.Context) -> None:
    click.echo("runner: there is no such letter", err=True)
    ctx.exit(Exit.FAILED)


def _row(letter: Letter, now: datetime) -> tuple[str, ...]:
    return (
        letter.id,
        letter.job_id or "-",
        letter.tenant or "-",
        ago(letter.buried, now),
        letter.code,
        letter.reason.replace("\n", " "),
    )


def _whole(letter: Letter, body: str) -> str:
    told = {
        "job": letter.job_id,
        "tenant": letter.tenant,
        "code": letter.code,
        "reason": letter.reason,
        "from": letter.came_by,
        "buried": f"{letter.buried:%Y-%m-%d %H:%M:%S}" if letter.buried is not None else None,
        "size": format_size(len(letter.body)),
    }
    return "\n".join([f"letter {letter.id}", *facts(told), "", body, ""])

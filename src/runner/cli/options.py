"""What the commands about jobs have in common: whose job, on which broker, and what the job is."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from runner.client import Client
from runner.client.packing import Packed, pack
from runner.settings import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_LIMITS = {
    "cpus": "CPUs, for example 0.5.",
    "memory": "Memory of its processes, for example 256m.",
    "disk": "/work, /tmp and shared memory together, for example 64m; it is RAM.",
    "pids": "The most processes and threads at once.",
    "scratch": "/scratch on real disk, for example 10g, where the operator allows it.",
    "timeout": "How long it may run, for example 90s or 10m.",
    "grace": "How long it has after SIGTERM, for example 10s.",
    "log_bytes": "The most log that is kept, for example 4m.",
}
_FIELDS = ("id", "name", "stack", "start_within", "delay", "unique")


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", param=option)
        pairs[name] = text
    return pairs


def _quantity(_: click.Context, __: click.Parameter, value: str | None) -> float | str | None:
    """A plain number is one of seconds, bytes or CPUs; everything else is left to the judge of the fields."""
    if value is None or not _NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def _content(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The text itself, the content of a file (`@path`), or what comes on standard input (`-`)."""
    if value is None or not (value == "-" or value.startswith("@")):
        return value
    try:
        raw = sys.stdin.buffer.read() if value == "-" else Path(value[1:]).read_bytes()
        return raw.decode()
    except OSError as error:
        raise click.BadParameter(f"{value[1:]} cannot be read: {error.strerror}", param=option) from None
    except UnicodeDecodeError:
        raise click.BadParameter("is not UTF-8 text", param=option) from None


def _job_file(_: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    text = _content(_, option, value if value in (None, "-") else f"@{value}")
    if text is None:
        return {}
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"is not JSON: {error}", param=option) from None
    if not isinstance(message, dict):
        raise click.BadParameter('is not a JSON object, such as {"stack": "busybox"}', param=option)
    return message


def packed_code(path: Path, *, most: int | None = None) -> Packed:
    """What `--code` names, packed (see `pack`), and told."""
    packed = pack(path, most=most)
    click.echo(f"runner: code: {packed}", err=True)
    return packed


TENANT = click.option(
    "--tenant", envvar="RUNNER_TENANT", default="default", show_default="$RUNNER_TENANT or default", help="Whose job."
)
URL = click.option("--url", help="The broker's address instead of that in the settings ($RUNNER_AMQP__URL).")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")

_JOB = (
    click.option(
        "--file",
        "message",
        metavar="PATH",
        callback=_job_file,
        help="A job as JSON; the options change it. - is stdin.",
    ),
    click.option("--stack", help="The runtime, for example python-3.11."),
    click.option("--pool", default="default", show_default=True, help="The class of workers."),
    click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True),
    click.option("--id", help="Its id, unique for the tenant; a time-ordered UUID without this."),
    click.option("--name", help="What people call it."),
    click.option(
        "--label", "labels", metavar="K=V", multiple=True, callback=_pairs, help="Told in events; repeatable."
    ),
    click.option("--env", metavar="K=V", multiple=True, callback=_pairs, help="An environment variable; repeatable."),
    click.option("--payload", callback=_content, help="What JOB_PAYLOAD_FILE holds: text, @PATH, or - for stdin."),
    click.option(
        "--code",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A folder, shown to it in JOB_CODE_DIR; or a tar.gz or zip.",
    ),
    click.option("--stdin", callback=_content, help="What its standard input gives: text, @PATH, or - for stdin."),
    *(
        click.option(f"--{name.replace('_', '-')}", metavar="VALUE", callback=_quantity, help=text)
        for name, text in _LIMITS.items()
    ),
    click.option("--start-within", metavar="TIME", callback=_quantity, help="Not started by then: it expires."),
    click.option("--retries", type=int, help="How often it is started again when it fails."),
    click.option("--delay", metavar="TIME", callback=_quantity, help="Not before then: seconds, or for example 10m."),
    click.option("--unique", metavar="TIME", callback=_quantity, help="No second job of this --id starts for so long."),
    click.option("--fence", is_flag=True, default=None, help="Rather stop it than risk that it runs twice."),
    click.argument("command", nargs=-1, type=click.UNPROCESSED),
)


def job_options(function: F) -> F:
    """The options that describe a job; `job_message` makes the job of them."""
    return _decorated(function, _JOB)


def broker_options(function: F) -> F:
    """`--tenant` and `--url`."""
    return _decorated(function, (TENANT, URL))


def _decorated(function: F, decorators: tuple[Callable[[Any], Any], ...]) -> F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def job_message(message: Mapping[str, Any], command: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The file's job with what the options say in its place: maps key by key, the command as a whole.

    What is wrong with it is not told here, but by the judge that the workers ask as well.
    """
    merged = dict(message)
    merged |= {field: options[field] for field in (*_FIELDS, "payload", "stdin") if options[field] is not None}
    if options["code"] is not None:
        merged["code"] = packed_code(options["code"]).field
    if options["fence"]:
        merged["fence"] = True
    if options["retries"] is not None:
        _merge(merged, "retry", {"max": options["retries"]})
    for field in ("env", "labels"):
        _merge(merged, field, options[field])
    _merge(merged, "limits", {name: options[name] for name in _LIMITS if options[name] is not None})
    if command:
        merged["command"] = list(command)
    return merged


def _merge(message: dict[str, Any], field: str, told: Mapping[str, Any]) -> None:
    base = message.get(field, {})
    if told and isinstance(base, dict):
        message[field] = {**base, **told}


def make_client(url: str | None) -> Client:
    """A client for the broker of the settings, or of `--url`. Raises `ConfigError`."""
    amqp = broker_settings(url).amqp
    return Client(amqp.url, amqp.namespace)


def broker_settings(url: str | None) -> Settings:
    """The settings, with the broker of `--url` if one was given. Raises `ConfigError`."""
    return load_settings(dict(os.environ) | ({"RUNNER_AMQP__URL": url} if url else {}))

"""`runner serve`."""

import os

import click
import uvloop

from runner import logconfig
from runner.app.serve import serve
from runner.errors import ConfigError
from runner.settings import Settings, load_settings


@click.command("serve")
def command() -> None:
    """Run the daemon: take jobs and run them.

    SIGTERM drains: jobs that run may end, for as long as worker.drain_timeout; a second SIGTERM ends them at once.
    """
    settings = load_settings(os.environ)
    logconfig.configure(settings.log.level, settings.log.format)
    _serve(settings)


def _serve(settings: Settings) -> None:
    faults: list[str] = []
    try:
        uvloop.run(serve(settings))
    except* ConfigError as group:
        faults += _faults(group)
    if faults:
        raise ConfigError(*faults)


def _faults(group: BaseExceptionGroup[ConfigError]) -> list[str]:
    return [
        fault
        for error in group.exceptions
        for fault in (error.faults if isinstance(error, ConfigError) else _faults(error))
    ]

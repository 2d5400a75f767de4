"""What our exit codes mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Protocol

import click

from runner.errors import BrokerError, ConfigError, EngineError, RejectedError, RunnerError
from runner.job import Outcome


class Exit(IntEnum):
    """How a command ended. The two large ones are those of sysexits(3)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    CONFIG = 78
    TIMED_OUT = 124
    OTHER = 125
    CANCELLED = 130
    OOM_KILLED = 137


_OUTCOMES = {
    Outcome.SUCCEEDED: Exit.DONE,
    Outcome.TIMED_OUT: Exit.TIMED_OUT,
    Outcome.CANCELLED: Exit.CANCELLED,
    Outcome.OOM_KILLED: Exit.OOM_KILLED,
}


class Ended(Protocol):
    """What of a job's result makes an exit code."""

    @property
    def outcome(self) -> Outcome:
        """How it ended."""

    @property
    def exit_code(self) -> int | None:
        """Its process's exit code."""

    @property
    def signal(self) -> int | None:
        """The signal that ended its process."""


def exit_code_of(job: Ended) -> int:
    """The exit code that passes a job's end on."""
    if job.outcome is Outcome.FAILED and job.signal is not None:
        return 128 + job.signal
    if job.outcome is Outcome.FAILED and job.exit_code is not None:
        return job.exit_code or Exit.FAILED
    return _OUTCOMES.get(job.outcome, Exit.OTHER)


@contextmanager
def exit_on_errors(ctx: click.Context) -> Iterator[None]:
    """Tell errors on stderr, a line each, and exit with their code."""
    try:
        yield
    except RunnerError as error:
        for line in str(error).splitlines():
            click.echo(f"runner: {line}", err=True)
        ctx.exit(_code(error))
    except KeyboardInterrupt:
        ctx.exit(Exit.CANCELLED)


def _code(error: RunnerError) -> Exit:
    match error:
        case ConfigError():
            return Exit.CONFIG
        case RejectedError():
            return Exit.USAGE
        case BrokerError() | EngineError():
            return Exit.UNAVAILABLE
        case _:
            return Exit.FAILED

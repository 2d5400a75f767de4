"""The command line. A command's module is imported when it is called: the whole program takes a second to import."""

import logging
from importlib import import_module
from typing import Any

import click

from runner import __version__
from runner.cli.exits import Exit, exit_on_errors

_COMMANDS = {
    "serve": "Run the daemon: take jobs and run them.",
    "check": "Check this machine, the broker and the engine: a line each.",
    "submit": "Submit a job and print its id.",
    "run": "Submit a job, show its log, and exit with its code.",
    "exec": "Run a job here and now, with no broker.",
    "logs": "Show a job's log.",
    "status": "Tell where a job is, or how it ended.",
    "jobs": "List the jobs that the workers have, and those they had last.",
    "cancel": "Stop jobs, wherever they are.",
    "workers": "List the workers: state, room, running jobs.",
    "queues": "Tell what waits in each queue, and why.",
    "dead": "Look through the dead letters; replay or drop them.",
    "schema": "Print the JSON Schema of a job.",
    "stacks": "Build the stacks of this machine, switch and prune.",
    "network": "Make, verify or remove the networks of jobs that reach out.",
    "topology": "Make or verify what has to stand in the broker.",
    "reap": "Remove every container of this machine's worker.",
}
"""Each is `command` in the module of its name. The sentence is that of its own help."""


class _Commands(click.Group):
    """The group at the top: imports late, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"runner.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with exit_on_errors(ctx):
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="runner")
def cli() -> None:
    """Runs jobs from RabbitMQ, each in its own container.

    Exit codes: 0 done, 1 failed, 2 usage, 69 a service is unavailable, 78 configuration.
    """
    # What the libraries log is told as an error as well; `serve` writes it down.
    logging.getLogger().addHandler(logging.NullHandler())


def main() -> None:
    """The console script."""
    cli.main(prog_name="runner")


__all__ = ["Exit", "cli", "main"]

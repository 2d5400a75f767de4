"""`runner exec`."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from runner.app.exec import exec_job
from runner.app.local import Interrupts, local_job
from runner.cli.exits import exit_code_of
from runner.cli.interrupts import interrupts
from runner.cli.options import JSON, TENANT, job_message, job_options, packed_code
from runner.cli.output import log_reader, tell_end, write_json, write_lines
from runner.client.messages import Result, decode_batch, decode_event, decode_result
from runner.codec import Notice, encode_batch
from runner.job import EventKind, InlineCode, Job
from runner.ports import Batch
from runner.settings import Settings, load_settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@job_options
@TENANT
@JSON
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    message: dict[str, Any],
    command: tuple[str, ...],
    as_json: bool,
    code: Path | None,
    **options: Any,
) -> None:
    """Run a job here and now, with no broker.

    In the same sandbox, with the same limits and environment, as the daemon of this machine would run it, once: what
    says when or how often a job starts is left out. The first Ctrl-C cancels it, the second leaves out its grace,
    and waits no longer than ten seconds for its container to be removed. Exit codes: as of run.
    """
    settings = load_settings(os.environ)
    told = job_message(message, command, {**options, "code": None})
    job = local_job(told, f"{options['pool']}.{options['priority']}.{options['tenant']}")
    if code is not None:  # there is no message that it would have to fit into
        job = replace(job, code=InlineCode(archive=packed_code(code, most=settings.code.max_bytes).archive))
    ctx.exit(exit_code_of(asyncio.run(_exec(settings, job, as_json=as_json))))


async def _exec(settings: Settings, job: Job, *, as_json: bool) -> Result:
    shown, asked = _Shown(), Interrupts()
    # After a third signal the next `reap` removes what is left.
    with interrupts(_SIGNALS, lambda: _cancel(asked), asked.second.set):
        await exec_job(settings, job, shown.as_json if as_json else shown.as_text, asked)
    if shown.result is None:
        raise AssertionError("a job has ended without a result")
    tell_end(shown.result)
    return shown.result


class _Shown:
    """Shows what a job tells as `run` does, and keeps its result."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self._reader = log_reader()

    def as_json(self, told: Notice | Batch) -> None:
        """Events and batches as they would be published."""
        self._note(told)
        write_json(told.body.encode() if isinstance(told, Notice) else encode_batch(told))

    def as_text(self, told: Notice | Batch) -> None:
        """The log."""
        self._note(told)
        if isinstance(told, Batch):
            write_lines(list(self._reader.read(decode_batch(encode_batch(told)))))

    def _note(self, told: Notice | Batch) -> None:
        if isinstance(told, Notice) and told.kind is EventKind.FINISHED:
            self.result = decode_result(decode_event(told.body.encode()))


def _cancel(asked: Interrupts) -> None:
    click.echo("runner: cancelling the job; once more leaves out its grace", err=True)
    asked.first.set()

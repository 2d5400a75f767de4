"""What a job tells, on our own standard output and error."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from itertools import groupby
from typing import BinaryIO

import click

from runner.client import Line, LogBatch, Result, Stream, SubmittedJob
from runner.client.lines import LineReader


def log_reader() -> LineReader:
    """Only a terminal is shown what the log that is kept may leave out: a file gets the log in its order."""
    return LineReader(live=sys.stdout.isatty())


async def show_log(batches: AsyncIterator[LogBatch], reader: LineReader) -> None:
    """Write a log as it comes: what the job wrote to stdout to ours, everything else to stderr."""
    unfinished = False
    async for batch in batches:
        lines = list(reader.read(batch))
        # Whoever reads us may be slow, and the connection has to live on.
        await asyncio.to_thread(write_lines, lines)
        unfinished = lines[-1].partial if lines else unfinished
    if unfinished and sys.stdout.isatty():
        click.echo(err=True)


async def show_json(job: SubmittedJob, shown: set[str] | None = None) -> None:
    """Write events and batches as they were published, an object a line; `finished` comes last.

    Batches whose digest is among those `shown` are left out.
    """
    async with asyncio.TaskGroup() as tasks:
        logs = tasks.create_task(show_batches(job.batches(), shown if shown is not None else set()))
        async for event in job.events():
            if event.finished:
                await logs
            await asyncio.to_thread(write_json, _text(event.body))


def tell_end(result: Result) -> None:
    """Say on stderr what a person has to know beside the log."""
    if not result.succeeded:
        reason = result.reason.removeprefix(f"{result.outcome}: ")
        click.echo(f"runner: {result.outcome}: {reason}", err=True)
    if not result.logs_complete and result.body["times"]["started"] is not None:
        click.echo("runner: a part of the log was lost on its way", err=True)


async def show_batches(batches: AsyncIterator[LogBatch], shown: set[str]) -> None:
    """Write the batches of a log, an object a line, each once; `shown` holds their digests."""
    async for batch in batches:
        raw = batch.body.encode()
        digest = sha256(raw).hexdigest()
        if digest not in shown:
            shown.add(digest)
            await asyncio.to_thread(write_json, raw)


def _text(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def write_json(text: bytes) -> None:
    """Write an object of JSON as a line of its own. Blocks while nobody reads."""
    _write(sys.stdout.buffer, text + b"\n")


def write_lines(lines: Sequence[Line]) -> None:
    """Write lines where the job wrote them. Blocks while nobody reads."""
    for ours, part in groupby(lines, key=lambda line: line.stream is Stream.OUT):
        text = "".join(line.text if line.partial else f"{line.text}\n" for line in part)
        _write(sys.stdout.buffer if ours else sys.stderr.buffer, text.encode(errors="replace"))


def _write(stream: BinaryIO, data: bytes) -> None:
    try:
        stream.write(data)
        stream.flush()
    except OSError:
        # Whoever read us has left, or their disk is full. The job goes on, and so do we, for its exit code.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
            os.dup2(nowhere.fileno(), stream.fileno())

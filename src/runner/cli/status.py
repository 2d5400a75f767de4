"""`runner status`."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import click

from runner.cli.exits import Exit
from runner.cli.logs import UNKNOWN
from runner.cli.options import JSON, broker_options, make_client
from runner.cli.table import clock, facts, later
from runner.client import Client, Found
from runner.units import format_size


@click.command("status")
@broker_options
@JSON
@click.argument("job_id", metavar="ID")
@click.pass_context
def command(ctx: click.Context, /, *, tenant: str, url: str | None, as_json: bool, job_id: str) -> None:
    """Tell where a job is, or how it ended.

    With --json the record: the fields of an event, and `state`, `why`, `worker`. Exit code 1 when no worker knows it.
    """
    found = asyncio.run(_find(make_client(url), tenant, job_id))
    if not found:
        click.echo(f"runner: {UNKNOWN.format(id=job_id, tenant=tenant)}", err=True)
        ctx.exit(Exit.FAILED)
    if as_json:
        click.echo(json.dumps(_record(found[0], tenant, job_id), ensure_ascii=False))
    else:
        click.echo("\n".join(describe(found[0], tenant, job_id)))


async def _find(client: Client, tenant: str, job_id: str) -> list[Found]:
    async with client:
        return await client.find(tenant, job_id)


def _record(found: Found, tenant: str, job_id: str) -> dict[str, Any]:
    record = {"id": job_id, "tenant": tenant, **(found.record or {})}
    return record | {"state": found.state, "why": found.why, "worker": record.get("worker") or found.worker}


def describe(found: Found, tenant: str, job_id: str) -> list[str]:
    """What is known of the job, for a person."""
    record = found.record or {}
    state = found.state
    if state == "finished":
        state = f"{record.get('outcome')}{_code(record)}"
    told = {
        "why": found.why,
        "reason": record.get("reason"),
        "blame": record.get("blame") if record.get("blame") != "none" else None,
        "name": record.get("name"),
        "stack": _joined(record.get("stack"), record.get("revision")),
        "queue": _joined(record.get("pool"), record.get("priority")),
        "worker": found.worker,
        "attempt": str(record["attempt"]) if record.get("attempt") else None,
        **_times(record, found.state),
        "progress": json.dumps(record["progress"], ensure_ascii=False) if record.get("progress") is not None else None,
        "used": _used(record),
        "log": _log(record, found),
        "output": json.dumps(record["output"], ensure_ascii=False) if record.get("output") is not None else None,
    }
    return [f"job {job_id} of {tenant}: {state}", *facts(told)]


def _code(record: Mapping[str, Any]) -> str:
    if record.get("signal"):
        return f" (signal {record['signal']})"
    return f" (exit code {record['exit_code']})" if record.get("exit_code") else ""


def _times(record: Mapping[str, Any], state: str) -> dict[str, str | None]:
    times, seconds = record.get("times", {}), record.get("seconds", {})
    told = {name: clock(times.get(name)) for name in ("published", "claimed", "started", "ended")}
    if told["ended"] and isinstance(seconds.get("run"), int | float):
        told["ended"] = f"{told['ended']}, after {seconds['run']:.3f} s"
    if state == "running":
        told["deadline"] = clock(record.get("deadline"))
    if state in ("retrying", "deferred") and (again := later(record.get("time"), record.get("delay"))):
        told["again"] = f"not before {again:%Y-%m-%d %H:%M:%S}"
    return told


def _used(record: Mapping[str, Any]) -> str | None:
    usage = record.get("usage", {})
    cpu, memory = usage.get("cpu_seconds"), usage.get("memory_peak_bytes")
    parts = [f"{cpu:.2f} CPU seconds"] if cpu is not None else []
    parts += [f"{format_size(memory)} of memory at most"] if memory is not None else []
    return ", ".join(parts) or None


def _log(record: Mapping[str, Any], found: Found) -> str | None:
    logs = record.get("logs", {})
    if logs.get("stdout_bytes") is None:
        return f"kept by {found.worker}" if found.claims else None
    parts = [f"{logs['stdout_bytes']} bytes to stdout, {logs['stderr_bytes']} to stderr"]
    parts += [f"{logs['omitted_bytes']} left out"] if logs.get("omitted_bytes") else []
    return ", ".join(parts if logs.get("complete") else [*parts, "incomplete"])


def _joined(*words: object) -> str | None:
    return " ".join(str(word) for word in words if word) or None

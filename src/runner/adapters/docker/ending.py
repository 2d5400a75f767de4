"""How a container ended, from what the init reported, or else from what the engine knows. Pure."""

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from runner.adapters.docker.config import SCRATCH
from runner.init.wire import Place, Report
from runner.job import OUTPUT_MAX, Bytes, Exit, Usage
from runner.units import format_size

SIGNAL_BASE = 128
_HIGHEST_SIGNAL = 64
_MEBIBYTE = 2**20
_NEVER_EXECUTED = -1
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_STOPPING = frozenset({signal.SIGTERM, signal.SIGKILL})
_SOON = timedelta(seconds=30)
"""An engine that stops kills what still runs some 10 s after its SIGTERM."""
_OWN_LIMIT = 0.9
"""A job that its own limit killed was a few pages from it: below this part of it, somebody else was short of memory."""
_NEARLY = 32
_MOST_LEFT = 4 * _MEBIBYTE
"""A real disk is full for a write that is larger than what is left: up to a 32nd of it, and to this much."""


class Matter(StrEnum):
    """What init and engine can disagree on."""

    EXIT_CODE = "exit_code"
    OOM = "oom"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """What the init reported, and what the engine knows instead."""

    matter: Matter
    reported: int
    engine: int


@dataclass(frozen=True, slots=True)
class Full:
    """A place that was full, in words, and the limit to raise."""

    what: str
    limit: str


def reported(report: Report, *, disk: Bytes, output: bytes | None, complete: bool) -> Exit:
    """The end as the init saw it. `disk` is the job's limit for all places together."""
    code, by_signal = _status(report.status)
    full = full_place(report.places, disk)
    return Exit(
        code=code,
        signal=by_signal,
        exec_errno=report.exec_errno or None,
        oom_kills=report.oom_kills or 0,
        disk_full=full.what if full else None,
        full_limit=full.limit if full else "limits.disk",
        usage=Usage(cpu_seconds=report.cpu_seconds, memory_peak_bytes=report.memory_peak_bytes),
        output=output,
        complete=complete,
    )


def inspected(state: Mapping[str, Any], *, used: Usage, output: bytes | None) -> Exit:
    """The end as the engine knows it: the init's own exit code, 128 more than the signal where one ended the job.

    `used` is what the host told of it before, if anything.
    """
    status = int(state["ExitCode"])
    by_signal = status - SIGNAL_BASE if SIGNAL_BASE < status <= SIGNAL_BASE + _HIGHEST_SIGNAL else None
    return Exit(
        code=None if by_signal else status,
        signal=by_signal,
        oom_kills=1 if state.get("OOMKilled") else 0,
        usage=used,
        output=output,
    )


def disagreements(report: Report, state: Mapping[str, Any]) -> list[Disagreement]:
    """In what the engine contradicts the init, of a container that is over.

    That the engine saw no process killed for memory says nothing: it may miss one, or tell late.
    """
    found = []
    code, told = int(state["ExitCode"]), _own_code(report)
    if code != told:
        found.append(Disagreement(Matter.EXIT_CODE, told, code))
    if state.get("OOMKilled") and report.oom_kills == 0:
        found.append(Disagreement(Matter.OOM, 0, 1))
    return found


def over(state: Mapping[str, Any]) -> bool:
    """Whether a container has run and ended. One that was never started has an exit code, too."""
    never = str(state.get("StartedAt", "")).startswith("0001-")
    return state.get("Status") in ("exited", "dead") and not never


def stopped_from_outside(end: Exit, report: Report | None = None) -> bool:
    """Whether a job ended the way that one ends when the engine stops, and nothing else explains it.

    One that handles SIGTERM ends as it likes; only the init knows that it had one from outside shortly before.
    """
    by_signal = end.signal in _STOPPING
    by_code = end.code is not None and end.code - SIGNAL_BASE in _STOPPING
    was_told = report is not None and report.told_to_end is not None and report.ended - report.told_to_end < _SOON
    return (by_signal or by_code or was_told) and not end.oom_kills


def killed_by_host(end: Exit, limit: Bytes) -> bool:
    """Whether it was the host that was short of memory: the job failed of it and was never near its own limit.

    The kernel counts what it kills for want of memory anywhere, and our jobs are the first to go. Nothing is concluded
    where the peak is not known; a job that had filled its memory before, if only with cached files, is not told apart.
    """
    peak = end.usage.memory_peak_bytes
    failed = end.code != 0 and end.exec_errno is None
    return failed and end.oom_kills > 0 and peak is not None and peak < _OWN_LIMIT * limit


def with_results(end: Exit, places: Sequence[Place], taken: Mapping[str, Bytes], disk: Bytes) -> Exit:
    """The end of a job whose results count as its memory, told so where they, or all of its files, filled it.

    `taken` is what each of its results takes of that memory.
    """
    if not end.oom_kills or end.disk_full:
        return end
    most = max(disk, OUTPUT_MAX)
    name, size = max(taken.items(), key=lambda each: each[1], default=("", Bytes(0)))
    if size > most:
        return replace(end, disk_full=f"/job/{name} held {format_size(size)}")
    inner = {place.path: place.bytes_total - place.bytes_free for place in places if place.path != SCRATCH}
    held = inner | {f"/job/{each}": size for each, size in taken.items()}
    if sum(held.values()) > most:
        return replace(end, disk_full=f"{', '.join(held)} together held more than {format_size(Bytes(most))}")
    return end


def full_place(places: Sequence[Place], disk: Bytes) -> Full | None:
    """The place that was full, or all that `disk` bounds together; None if there was room."""
    for place in places:
        limit = "limits.scratch" if place.path == SCRATCH else "limits.disk"
        if place.bytes_total and place.bytes_free <= _too_little(place):
            return Full(f"{place.path} was full ({_size(place.bytes_total)})", limit)
        if place.inodes_total and not place.inodes_free:
            return Full(f"{place.path} had no room for another file (it had {place.inodes_total})", limit)
    inner = [place for place in places if place.path != SCRATCH]
    if sum(place.bytes_total - place.bytes_free for place in inner) > disk:
        names = ", ".join(place.path for place in inner)
        return Full(f"{names} together held more than {_size(disk)}", "limits.disk")
    return None


def _too_little(place: Place) -> int:
    return min(place.bytes_total // _NEARLY, _MOST_LEFT) if place.path == SCRATCH else 0


def _status(status: int) -> tuple[int | None, int | None]:
    """Exit code and signal of a raw wait status; neither if nothing was executed."""
    if status == _NEVER_EXECUTED:
        return None, None
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def _own_code(report: Report) -> int:
    """The code that the init itself exits with after such a report; see `exit_code` in init.c."""
    code, by_signal = _status(report.status)
    if report.exec_errno:
        return _NOT_FOUND if report.exec_errno in (errno.ENOENT, errno.ENOTDIR) else _NOT_EXECUTABLE
    return SIGNAL_BASE + by_signal if by_signal else code or 0


def _size(count: int) -> str:
    return f"{count // _MEBIBYTE} MiB" if count >= _MEBIBYTE else f"{count // 1024} KiB"

"""How a job ended, from what is known of its end. Pure.

The first that applies decides: our own intent, an error at the start, a loss of the platform, memory, disk, exit code.
"""

import errno
import json
import signal
from typing import assert_never

from runner.job import OUTPUT_MAX, Blame, Exit, Json, Outcome, Plan, StopReason, Verdict
from runner.units import format_duration, format_size

_DEPTH_MAX = 64
"""How deep a job's JSON may be nested: whoever reads the event around it has a limit, too."""

_STOPPED: dict[StopReason, tuple[Outcome, Blame]] = {
    StopReason.TIMEOUT: (Outcome.TIMED_OUT, Blame.JOB),
    StopReason.CANCELLED: (Outcome.CANCELLED, Blame.NONE),
    StopReason.SHUTDOWN: (Outcome.LOST, Blame.NONE),
    StopReason.DISK_LIMIT: (Outcome.DISK_LIMIT, Blame.JOB),
    StopReason.OUTPUT_LIMIT: (Outcome.OUTPUT_LIMIT, Blame.JOB),
    StopReason.SUPERSEDED: (Outcome.LOST, Blame.PLATFORM),
}


def judge(plan: Plan, end: Exit, stop: StopReason | None, detail: str = "") -> Verdict:
    """The verdict on one attempt. `stop` is why we ended it, if we did, and `detail` what the asker said."""
    if stop is not None:
        return _stopped(plan, end, stop, detail)
    if end.exec_errno is not None:
        return _not_executed(plan, end.exec_errno)
    if end.lost is not None:
        return Verdict(outcome=Outcome.LOST, reason=end.lost, blame=Blame.PLATFORM, oom_seen=end.oom_kills > 0)
    if end.code == 0:
        return _exited_well(end)
    return _failed(plan, end)


def _stopped(plan: Plan, end: Exit, stop: StopReason, detail: str) -> Verdict:
    outcome, blame = _STOPPED[stop]
    return Verdict(
        outcome=outcome,
        reason="; ".join(filter(None, (_stop_sentence(plan, stop, detail), end.remains))),
        blame=blame,
        exit_code=end.code,
        signal=end.signal,
        oom_seen=end.oom_kills > 0,
    )


def _stop_sentence(plan: Plan, stop: StopReason, detail: str) -> str:
    match stop:
        case StopReason.TIMEOUT:
            limit = format_duration(plan.limits.timeout)
            return f"ran for {limit}, its time-out; give it more with limits.timeout"
        case StopReason.CANCELLED:
            return f"cancelled: {detail}" if detail else "cancelled"
        case StopReason.SHUTDOWN:
            return "its worker was shut down before the job ended"
        case StopReason.DISK_LIMIT:
            return detail or f"wrote more than {format_size(plan.limits.disk)}, its disk limit"
        case StopReason.OUTPUT_LIMIT:
            limit = format_size(plan.limits.log_bytes)
            return f"wrote more than {limit} of log, its limit, and its stack ends a job for that"
        case StopReason.SUPERSEDED:
            return detail or "another worker has taken the job over"
        case _:
            assert_never(stop)


def _not_executed(plan: Plan, number: int) -> Verdict:
    word = plan.command[0]
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    what = "not found" if missing else f"cannot be executed ({errno.errorcode.get(number, number)})"
    if number == errno.E2BIG:
        what = "was given more arguments and environment than the kernel passes on (E2BIG)"
    own = plan.job.command is None
    whose = f"the command of stack {plan.stack.name}" if own else "the command"
    return Verdict(
        outcome=Outcome.FAILED,
        reason=f"{whose}, {word!r}, {what} in stack {plan.stack.name}",
        blame=Blame.OPERATOR if own else Blame.REQUEST,
        exit_code=127 if missing else 126,
    )


def _exited_well(end: Exit) -> Verdict:
    seen = end.oom_kills > 0
    try:
        output = _parse_output(end.output)
    except ValueError as error:
        return Verdict(
            outcome=Outcome.FAILED,
            reason=f"exited with code 0, but {error}",
            blame=Blame.JOB,
            exit_code=0,
            oom_seen=seen,
        )
    reason = (
        "exited with code 0; one of its processes was killed for memory on the way" if seen else "exited with code 0"
    )
    return Verdict(
        outcome=Outcome.SUCCEEDED, reason=reason, blame=Blame.NONE, exit_code=0, oom_seen=seen, output=output
    )


def _failed(plan: Plan, end: Exit) -> Verdict:
    try:
        output = _parse_output(end.output)
    except ValueError:
        output = None  # it failed anyway, and says why by other means
    outcome, reason = Outcome.FAILED, _end_sentence(end)
    if end.oom_kills > 0:
        outcome, reason = Outcome.OOM_KILLED, _memory_sentence(plan, end)
    elif end.signal == signal.SIGXFSZ:
        outcome = Outcome.DISK_LIMIT
        reason = _too_long_sentence(plan)
    elif end.disk_full is not None:
        outcome = Outcome.DISK_LIMIT
        reason = f"failed while {end.disk_full}; raise {end.full_limit}"
    return Verdict(
        outcome=outcome,
        reason=reason,
        blame=Blame.JOB,
        exit_code=end.code,
        signal=end.signal,
        oom_seen=end.oom_kills > 0,
        output=output,
    )


def _too_long_sentence(plan: Plan) -> str:
    name = "scratch" if plan.limits.scratch > plan.limits.disk else "disk"
    limit = format_size(max(plan.limits.scratch, plan.limits.disk))
    return f"was ended by SIGXFSZ for a file longer than {limit}, its {name} limit; raise limits.{name}"


def _memory_sentence(plan: Plan, end: Exit) -> str:
    """Its files are memory, too: where they were what filled it, more memory for processes would not help."""
    if end.disk_full is not None and end.full_limit == "limits.disk":
        return f"a process was killed for memory while {end.disk_full}; its files count as memory: raise limits.disk"
    limit = format_size(plan.limits.memory)
    return f"a process was killed for using more than {limit} of memory, the limit; raise limits.memory"


def _end_sentence(end: Exit) -> str:
    if end.signal is None:
        return f"exited with code {end.code}"
    try:
        name = signal.Signals(end.signal).name
    except ValueError:
        name = f"signal {end.signal}"
    return f"was ended by {name}, which did not come from its worker"


def _parse_output(raw: bytes | None) -> Json:
    if not raw:
        return None
    if len(raw) > OUTPUT_MAX:
        raise ValueError(f"JOB_OUTPUT_FILE holds more than {format_size(OUTPUT_MAX)}; pass on large results elsewhere")
    try:
        return parse_told(raw)
    except ValueError as error:
        raise ValueError(f"JOB_OUTPUT_FILE is not valid JSON ({error})") from error


def parse_told(raw: bytes | str) -> Json:
    """The JSON that a job wrote. Raises `ValueError` when it is none that an event can carry."""
    try:
        told: Json = json.loads(raw, parse_constant=_refuse_constant)
        # A lone surrogate cannot be sent on, nor can 1e999, which has become infinite.
        json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not _is_within(told, _DEPTH_MAX):
        raise ValueError(f"it is nested more than {_DEPTH_MAX} levels deep")
    return told


def _is_within(value: Json, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_within(each, levels - 1) for each in inner)


def _refuse_constant(word: str) -> Json:
    raise ValueError(f"{word} is not JSON")

"""Whether and when a job is started again. Pure."""

from dataclasses import dataclass
from datetime import timedelta

from runner.job import Blame, Outcome, RetryPolicy, Verdict

_FIRST_DEFERRAL = timedelta(seconds=1)
_LONGEST_DEFERRAL = timedelta(seconds=60)
_LOST_DELAY = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """The job is over; this is the last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The job starts again, not before `delay` from now; whom that is counted against, the verdict's blame says."""

    delay: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened before: `attempts` counts this one, `lost` those that the platform lost before it.

    `given_back` are those that a worker on its way out stopped: nobody's failure, and no bound but the operator's.
    """

    attempts: int
    lost: int
    given_back: int


def decide(verdict: Verdict, policy: RetryPolicy, history: History, max_lost: int) -> Settle | Retry:
    """What follows from a verdict. A job that is cancelled or rejected is never started again."""
    if verdict.outcome is Outcome.LOST:
        again = verdict.blame is Blame.NONE or history.lost < max_lost
        return Retry(delay=_LOST_DELAY) if again else Settle()
    if verdict.blame is not Blame.JOB or not _retries(verdict, policy):
        return Settle()
    used = history.attempts - history.lost - history.given_back
    if used > policy.max:
        return Settle()
    return Retry(delay=_backoff(policy, used))


def deferral(number: int, longest: timedelta) -> timedelta | None:
    """The delay of a job's `number`-th deferral, from 1; None when it was passed on for `longest` already."""
    before = sum((_deferral(earlier) for earlier in range(1, number)), timedelta())
    return _deferral(number) if before < longest else None


def _deferral(number: int) -> timedelta:
    return min(_LONGEST_DEFERRAL, _FIRST_DEFERRAL * int(2 ** min(number - 1, 6)))


def _retries(verdict: Verdict, policy: RetryPolicy) -> bool:
    return verdict.outcome in policy.outcomes or verdict.exit_code in policy.exits


def _backoff(policy: RetryPolicy, used: int) -> timedelta:
    try:
        factor = float(policy.factor ** (used - 1))
        return min(policy.max_delay, policy.delay * factor)
    except OverflowError:
        return policy.max_delay

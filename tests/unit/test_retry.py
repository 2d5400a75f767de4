"""Whether a job starts again, and when."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.job import Blame, Outcome, RetryPolicy, Verdict
from runner.retry import History, Retry, Settle, decide, deferral

FAILED = Verdict(outcome=Outcome.FAILED, reason="", blame=Blame.JOB, exit_code=1)
LOST = Verdict(outcome=Outcome.LOST, reason="", blame=Blame.PLATFORM)
GIVEN_BACK = Verdict(outcome=Outcome.LOST, reason="", blame=Blame.NONE)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def again(
    verdict: Verdict, policy: RetryPolicy, attempts: int = 1, lost: int = 0, given_back: int = 0
) -> timedelta | None:
    """The delay until the next start; None when the job is over."""
    decision = decide(verdict, policy, History(attempts=attempts, lost=lost, given_back=given_back), max_lost=3)
    return decision.delay if isinstance(decision, Retry) else None


def test_a_job_starts_once_more_than_its_retries() -> None:
    policy = RetryPolicy(max=2)
    assert [again(FAILED, policy, attempts) is not None for attempts in (1, 2, 3, 4)] == [True, True, False, False]


def test_without_retries_a_job_is_over_after_one_attempt() -> None:
    assert decide(FAILED, RetryPolicy(), History(attempts=1, lost=0, given_back=0), max_lost=3) == Settle()


def test_delays_grow_by_the_factor_up_to_the_longest() -> None:
    policy = RetryPolicy(max=9, delay=seconds(1), factor=3, max_delay=seconds(20))
    assert [again(FAILED, policy, attempts) for attempts in (1, 2, 3, 4)] == [
        seconds(1),
        seconds(3),
        seconds(9),
        seconds(20),
    ]


@pytest.mark.parametrize("factor", [2.0, 100.0])
def test_delays_do_not_overflow(factor: float) -> None:
    policy = RetryPolicy(max=100_000, delay=timedelta(days=3650), factor=factor, max_delay=timedelta(minutes=10))
    assert again(FAILED, policy, 90_000) == timedelta(minutes=10)
    assert again(FAILED, policy, 150) == timedelta(minutes=10)


def test_what_the_platform_lost_uses_up_no_retry() -> None:
    policy = RetryPolicy(max=1)
    assert again(FAILED, policy, attempts=4, lost=3) == seconds(10)
    assert again(FAILED, policy, attempts=5, lost=3) is None


def test_the_platform_has_a_budget_of_its_own() -> None:
    delays = [again(LOST, RetryPolicy(), attempts=lost + 1, lost=lost) for lost in range(5)]
    assert delays == [seconds(1), seconds(1), seconds(1), None, None]


def test_what_a_worker_gave_back_is_on_nobodys_budget() -> None:
    policy = RetryPolicy(max=1)
    assert again(GIVEN_BACK, policy, attempts=50, lost=3, given_back=46) == seconds(1)
    assert decide(GIVEN_BACK, policy, History(attempts=1, lost=0, given_back=0), max_lost=0) == Retry(delay=seconds(1))
    assert again(FAILED, policy, attempts=51, lost=3, given_back=47) == seconds(10)
    assert again(FAILED, policy, attempts=52, lost=3, given_back=47) is None


def test_a_platform_without_a_budget_gives_up_at_once() -> None:
    assert decide(LOST, RetryPolicy(max=9), History(attempts=1, lost=0, given_back=0), max_lost=0) == Settle()


@pytest.mark.parametrize(
    ("outcome", "blame"),
    [
        (Outcome.SUCCEEDED, Blame.NONE),
        (Outcome.CANCELLED, Blame.NONE),
        (Outcome.REJECTED, Blame.REQUEST),
        (Outcome.EXPIRED, Blame.PLATFORM),
        (Outcome.FAILED, Blame.REQUEST),
        (Outcome.FAILED, Blame.OPERATOR),
    ],
)
def test_what_another_start_would_not_mend_is_over(outcome: Outcome, blame: Blame) -> None:
    policy = RetryPolicy(max=9, outcomes=frozenset(Outcome), exits=frozenset(range(256)))
    assert again(Verdict(outcome=outcome, reason="", blame=blame, exit_code=1), policy) is None


@pytest.mark.parametrize(
    ("policy", "verdict", "retried"),
    [
        (RetryPolicy(max=1), Verdict(outcome=Outcome.TIMED_OUT, reason="", blame=Blame.JOB), True),
        (RetryPolicy(max=1), Verdict(outcome=Outcome.DISK_LIMIT, reason="", blame=Blame.JOB), False),
        (RetryPolicy(max=1, outcomes=frozenset()), FAILED, False),
        (RetryPolicy(max=1, outcomes=frozenset(), exits=frozenset({1})), FAILED, True),
        (RetryPolicy(max=1, outcomes=frozenset(), exits=frozenset({75})), FAILED, False),
    ],
)
def test_only_what_the_job_names_is_retried(policy: RetryPolicy, verdict: Verdict, *, retried: bool) -> None:
    assert (again(verdict, policy) is not None) is retried


def test_a_job_is_passed_on_after_growing_pauses() -> None:
    pauses = [deferral(number, timedelta(hours=1)) for number in range(1, 9)]
    assert pauses == [seconds(count) for count in (1, 2, 4, 8, 16, 32, 60, 60)]


@given(st.integers(0, 7200))
def test_a_job_is_passed_on_for_as_long_as_it_may_and_little_longer(longest: int) -> None:
    waited, number = timedelta(), 0
    while (pause := deferral(number + 1, seconds(longest))) is not None:
        waited, number = waited + pause, number + 1
    assert seconds(longest) <= waited < seconds(longest + 60)
    assert deferral(number + 2, seconds(longest)) is None

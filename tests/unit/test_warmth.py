"""How many containers wait for jobs: what an operator asks for, and what jobs keep coming for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.warmth import Setbacks, Sizes, Warmth


def test_what_an_operator_asks_for_is_kept_although_no_job_comes() -> None:
    assert Warmth(8).wanted({"a": 3, "b": 2}, now=0.0) == {"a": 3, "b": 2}


def test_there_is_never_more_than_there_is_memory_for() -> None:
    assert Warmth(4).wanted({"a": 3, "b": 2}, now=0.0) == {"a": 3, "b": 1}
    assert Warmth(0).wanted({"a": 3}, now=0.0) == {"a": 0}


def test_a_few_jobs_make_no_pool() -> None:
    warmth = Warmth(8)
    for second in range(5):
        warmth.started("a", float(second))
    assert warmth.wanted({}, now=5.0) == {}


def test_jobs_that_keep_coming_do_for_as_long_as_they_come() -> None:
    warmth = Warmth(8)
    for second in range(30):
        warmth.started("a", float(second))
    assert warmth.wanted({}, now=30.0) == {"a": 3}
    assert warmth.wanted({}, now=75.0) == {"a": 2}
    assert warmth.wanted({}, now=90.0) == {}
    assert warmth.recent(now=90.0) == set()


def test_what_comes_is_kept_beside_what_is_asked_for_not_on_top_of_it() -> None:
    warmth = Warmth(8)
    for _ in range(50):
        warmth.started("a", 0.0)
    assert warmth.wanted({"a": 2}, now=1.0) == {"a": 5}
    assert warmth.wanted({"a": 7}, now=1.0) == {"a": 7}


def test_the_busiest_kind_comes_first() -> None:
    warmth = Warmth(5)
    for kind, jobs in (("a", 20), ("b", 40)):
        for _ in range(jobs):
            warmth.started(kind, 0.0)
    assert warmth.wanted({}, now=1.0) == {"b": 4, "a": 1}


def test_nothing_is_made_during_a_burst_unless_it_goes_on_and_on() -> None:
    warmth = Warmth(8)
    assert warmth.hold_back(now=0.0) == 0.0
    warmth.started("a", 10.0)
    assert warmth.hold_back(now=10.0) == 0.25
    assert warmth.hold_back(now=10.3) == 0.0
    for tenth in range(200, 210):
        warmth.started("a", tenth / 10)
    assert warmth.hold_back(now=20.9) == pytest.approx(0.1), "a second after the first"
    warmth.started("a", 21.1)
    assert warmth.hold_back(now=21.1) == 0.0, "this is no burst any more"
    warmth.started("a", 22.0)
    assert warmth.hold_back(now=22.0) == 0.25


def test_a_kind_that_fails_is_left_alone_longer_each_time_until_it_serves() -> None:
    setbacks = Setbacks()
    assert setbacks.may("a", 0.0)
    setbacks.failed("a", 0.0)
    assert not setbacks.may("a", 9.0)
    assert setbacks.pending("a")
    assert setbacks.may("b", 9.0)
    assert setbacks.may("a", 10.0)
    setbacks.failed("a", 10.0)
    assert not setbacks.may("a", 29.0)
    for _ in range(20):
        setbacks.failed("a", 30.0)
    assert setbacks.may("a", 330.0)
    setbacks.served("a")
    assert not setbacks.pending("a")
    setbacks.failed("a", 400.0)
    assert setbacks.may("a", 410.0)


def test_what_is_made_has_the_size_that_jobs_come_in() -> None:
    sizes = Sizes[str]()
    assert sizes.due("a", []) is None
    sizes.came("a", "small")
    assert sizes.due("a", []) == "small"
    assert sizes.due("a", ["standing", "standing"]) == "small"
    assert sizes.due("b", []) is None
    for _ in range(40):
        sizes.came("a", "large")
    assert sizes.due("a", ["large"] * 5) == "large", "what came long ago does not count"


def test_sizes_wait_in_the_proportion_in_which_jobs_come() -> None:
    sizes, waiting = Sizes[str](), list[str]()
    for size in ("small", "large", "small", "small"):
        sizes.came("a", size)
    for _ in range(8):
        due = sizes.due("a", waiting)
        assert due is not None
        waiting.append(due)
    assert (waiting.count("small"), waiting.count("large")) == (6, 2)
    assert waiting[0] == "small"


def test_sizes_of_kinds_that_nobody_wants_are_forgotten() -> None:
    sizes = Sizes[str]()
    sizes.came("a", "small")
    sizes.came("b", "small")
    sizes.keep({"b"})
    assert (sizes.due("a", []), sizes.due("b", [])) == (None, "small")


def test_setbacks_of_kinds_that_nobody_wants_are_forgotten() -> None:
    setbacks = Setbacks()
    setbacks.failed("a", 0.0)
    setbacks.keep({"b"})
    assert setbacks.may("a", 1.0)


@given(
    most=st.integers(0, 50),
    standing=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 40)),
    starts=st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 120)), max_size=200),
)
def test_whatever_comes_the_bound_holds(most: int, standing: dict[str, int], starts: list[tuple[str, float]]) -> None:
    warmth = Warmth(most)
    for kind, at in sorted(starts, key=lambda start: start[1]):
        warmth.started(kind, at)
    wanted = warmth.wanted(standing, now=120.0)
    assert sum(wanted.values()) <= most
    assert all(count >= 0 for count in wanted.values())

import contextlib
import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.job import Bytes
from runner.units import (
    DURATION_MAX,
    SIZE_MAX,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    quoted,
    spell_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("7d", 604800), ("0s", 0), ("1.5s", 1.5), (90, 90), (0.25, 0.25), (0, 0)],
)
def test_a_duration_is_a_number_with_a_unit_or_a_number_of_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 * 2**20), ("1g", 2**30), ("1.5k", 1536), ("2t", 2**41), (4096, 4096), (4096.0, 4096), (0, 0)],
)
def test_a_size_is_a_number_with_a_unit_or_a_number_of_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


WRONG: list[object] = [
    True,
    False,
    None,
    "",
    "90",
    "abc",
    "-1s",
    "1 s",
    "1h30m",
    "10min",
    "1e3s",
    "١s",
    "9" * 5000 + "s",
    [],
    {"s": 1},
    -1,
    -0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**400,
]


@pytest.mark.parametrize("value", [*WRONG, "1g", "90x"], ids=lambda value: repr(value)[:20])
def test_what_is_no_duration_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration") as refused:
        parse_duration(value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("value", [*WRONG, "90s", "64mb", "0.3k", 1.5], ids=lambda value: repr(value)[:20])
def test_what_is_no_size_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size") as refused:
        parse_size(value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_refusal_shows_the_value_and_an_example() -> None:
    with pytest.raises(ValueError, match=r'^"abc" is not a duration; write for example "90s"'):
        parse_duration("abc")
    with pytest.raises(ValueError, match=r'^"abc" is not a size; write for example "64m"'):
        parse_size("abc")


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (600, "10m"), (3600, "1h"), (86400, "1d"), (0, "0s"), (0.5, "0.5s"), (61, "61s")]
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (17, "17 bytes"), (2**20 * 256, "256 MiB"), (2**29 * 3, "1.5 GiB")]
)
def test_a_size_for_a_sentence(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=300)))
def test_a_duration_that_was_written_reads_the_same(value: timedelta) -> None:
    assert abs(parse_duration(format_duration(value)) - value) <= timedelta(microseconds=1)


@given(st.integers(min_value=0, max_value=SIZE_MAX))
def test_a_size_that_was_written_reads_the_same(value: int) -> None:
    assert parse_size(spell_size(Bytes(value))) == value


@given(st.booleans() | st.floats() | st.integers() | st.text() | st.from_regex(r"[0-9]{1,25}[smhdkgt]", fullmatch=True))
def test_any_value_either_parses_within_the_bounds_or_is_refused(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert timedelta(0) <= parse_duration(value) <= DURATION_MAX
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(value) <= SIZE_MAX


def test_a_quoted_value_is_short_and_on_one_line() -> None:
    assert quoted("a\nb") == json.dumps("a\nb")
    assert len(quoted("x" * 1000)) == 60
    assert quoted("\ud800").isascii()

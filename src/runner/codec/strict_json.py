"""JSON as a submitter has to write it: one object, nothing twice, nothing that others would read in another way."""

import json
import math
from typing import Any

from runner.job import (
    Json,
)
from runner.units import quoted

MESSAGE_MAX = 512 * 1024
"""The most bytes that a job's message may have."""
_DIGITS_MAX = 1000


def parse_object(body: bytes) -> dict[str, Any]:
    """The one object that a message holds. Raises `ValueError` that says what is wrong and what would be right."""
    if len(body) > MESSAGE_MAX:
        raise ValueError(f"the message has {len(body)} bytes, more than {MESSAGE_MAX}; pass on large input elsewhere")
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"the message is not UTF-8 (byte {error.start}); publish JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the message is not JSON: {error}") from error
    except RecursionError:
        raise ValueError("the message is nested too deeply; publish a flat JSON object") from None
    if not isinstance(value, dict):
        raise ValueError('the message is not a JSON object; publish for example {"stack": "busybox"}')  # noqa: TRY004
    return value


def _no_constant(word: str) -> Json:
    raise ValueError(f"the message is not JSON: {word} is no JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, inner in pairs:
        if name in value:
            raise ValueError(f"field {quoted(name)} stands twice in one object; leave one")
        value[name] = inner
    return value


def _integer(word: str) -> int:
    if len(word) > _DIGITS_MAX:
        raise ValueError(f"the message holds a number of {len(word)} digits; the most is {_DIGITS_MAX}")
    return int(word)


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"the message is not usable JSON: {quoted(word)} is beyond all numbers; write it as a string")
    return number

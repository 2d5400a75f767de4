"""What is wrong with a message, in sentences that name the field and say what would be right."""

from collections.abc import Mapping
from typing import Any

from pydantic import (
    ValidationError,
)

from runner.codec.message import PARTS, JobMessage
from runner.units import quoted

_FAULTS_TOLD = 5
_FIELD_MAX = 80
"""Of the name of a field, which the message chose, so many characters are told."""


def describe(error: ValidationError) -> str:
    """One sentence from what pydantic found: the fields, what is wrong, what would be right."""
    faults = error.errors(include_url=False)
    told = [_fault(fault) for fault in faults[:_FAULTS_TOLD]]
    if len(faults) > _FAULTS_TOLD:
        told.append(f"and {len(faults) - _FAULTS_TOLD} more")
    return "; ".join(told)


def _fault(fault: Any) -> str:
    # Strings that pydantic quotes from the message may be any size or no valid text.
    field = ".".join(_step(step) for step in fault["loc"] if step != "[key]")
    if fault["type"] == "extra_forbidden":
        parent = PARTS.get(field.partition(".")[0], JobMessage) if "." in field else JobMessage
        return f"{field}: is not a field; known here are {', '.join(parent.model_fields)}"
    if fault["type"] == "missing":
        return f"{field}: is required"
    words = _WORDS.get(fault["type"])
    told = words.format(**fault.get("ctx", {})) if words else str(fault["msg"]).removeprefix("Value error, ")
    return f"{field}: {told}".encode(errors="replace").decode()


def _step(step: object) -> str:
    """A part of a field's name; one that the message chose may hold anything, also what ends a line."""
    text = str(step)
    return text[:_FIELD_MAX] if text.isascii() and text.isprintable() else quoted(text)


_WORDS: Mapping[str, str] = {
    "string_type": "is not a string",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "list_type": 'is not a list; write for example ["echo", "hi"]',
    "dict_type": 'is not an object; write for example {{"NAME": "value"}}',
    "model_type": "is not an object; leave it out, or write its fields",
    "enum": "is none; choose from {expected}",
    "too_long": "has {actual_length} entries; the most is {max_length}",
    "too_short": "is empty; leave it out, or name at least {min_length}",
    "greater_than_equal": "is too little; the least is {ge}",
    "less_than_equal": "is too much; the most is {le}",
    "finite_number": "is not a finite number",
}
"""What a field should have been, by pydantic's name for the fault; what is not here is a sentence of ours already."""

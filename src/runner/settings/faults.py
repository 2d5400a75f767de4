"""Tells the operator what is wrong with a configuration file: a line a fault, with the remedy."""

import difflib
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.units import quoted

_SECRET = {("amqp", "url")}

_REMEDIES = {
    "missing": "is missing",
    "int_type": "{value} is not a whole number",
    "int_parsing": "{value} is not a whole number",
    "int_parsing_size": "{value} is too large",
    "int_from_float": "{value} is not a whole number",
    "float_type": "{value} is not a number",
    "float_parsing": "{value} is not a number",
    "finite_number": "{value} is not a number",
    "bool_type": "{value} is neither true nor false",
    "bool_parsing": "{value} is neither true nor false",
    "string_type": "{value} is not text; put it in quotes",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "{value} has the wrong form; it must match {pattern}",
    "tuple_type": '{value} is not a list; write for example ["a", "b"]',
    "list_type": '{value} is not a list; write for example ["a", "b"]',
    "too_short": "must not be empty",
    "model_type": "{value} is not a table of settings",
    "dict_type": "{value} is not a table",
    "mapping_type": "{value} is not a table",
    "path_type": "{value} is not a path; write it in quotes",
    "enum": "{value} is none of {expected}",
    "literal_error": "{value} is none of {expected}",
    "greater_than": "{value} is too low; it must be above {gt}",
    "greater_than_equal": "{value} is too low; the least is {ge}",
    "less_than_equal": "{value} is too high; the most is {le}",
    "value_error": "{error}",
}


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each fault that `model` found: where, what is wrong, and what would be right."""
    faults = error.errors(include_url=False)
    within = {fault["loc"][:-1] for fault in faults}
    # A list whose only item is wrong counts as empty, too; that would be one fault told twice.
    return [_describe(fault, model) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in within]


def _describe(fault: ErrorDetails, model: type[BaseModel]) -> str:
    where = fault["loc"]
    if fault["type"] == "extra_forbidden":
        return f"{_path(where)}: {_unknown(str(where[-1]), _names(model, where[:-1]))}"
    hidden = where[:2] in _SECRET
    context = {"value": "the value" if hidden else quoted(fault["input"]), **fault.get("ctx", {})}
    remedy = _REMEDIES.get(fault["type"])
    return f"{_path(where)}: {remedy.format(**context) if remedy else fault['msg'].lower()}"


def _path(where: Sequence[str | int]) -> str:
    """`worker.pools[0]`; pydantic's mark of a mapping's key is left out."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where if part != "[key]")
    return text.removeprefix(".")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f'is unknown; did you mean "{near[0]}"?'
    return f"is unknown; known here are {', '.join(known)}"


def _names(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The names that the table at `path` may have."""
    parts = iter(path)
    for part in parts:
        kind = next(field.annotation for name, field in model.model_fields.items() if part in (field.alias, name))
        if get_args(kind):
            next(parts, None)  # the key or index of one of several tables
        model = _model_in(kind) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(kind: object) -> type[BaseModel] | None:
    """The model that a type is made of, such as that of `Mapping[str, Tenant]`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(filter(None, map(_model_in, get_args(kind))), None)

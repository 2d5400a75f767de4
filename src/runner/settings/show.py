"""Writes a tree of plain values as TOML."""

import json
from collections.abc import Mapping
from typing import Any


def to_toml(tree: Mapping[str, Any]) -> str:
    """The tree as a TOML document, a blank line between tables. What is None has no spelling and is a comment."""
    return "\n\n".join(_tables(tree, "")) + "\n"


def _tables(table: Mapping[str, Any], path: str) -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{path}]"] if path and values else []
    lines += [
        f"# {key} is not set" if value is None else f"{_key(key)} = {_value(value)}" for key, value in values.items()
    ]
    blocks = ["\n".join(lines)] if lines else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            blocks += _tables(value, f"{path}.{_key(key)}" if path else _key(key))
    return blocks


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("-", "_").isidentifier() else json.dumps(key)


def _value(value: Any) -> str:
    """JSON's spelling of text, numbers, truth and lists of them is TOML's too."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)

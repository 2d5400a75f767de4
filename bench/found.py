"""What a part of the run has measured: numbers for the record, a table for people, and the targets that it decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A number that was promised."""

    what: str
    wanted: str
    found: str
    met: bool


def at_most(what: str, found: float, most: float, unit: str) -> Target:
    """A number that has to be small."""
    return Target(what=what, wanted=f"≤ {_text(most, unit)}", found=_text(found, unit), met=found <= most)


def at_least(what: str, found: float, least: float, unit: str) -> Target:
    """A number that has to be large."""
    return Target(what=what, wanted=f"≥ {_text(least, unit)}", found=_text(found, unit), met=found >= least)


def _text(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One more table for people."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`rows` begin with the subject's name; `raw` is what JSON can hold; `pictures` are SVG by name.

    `notes` are what one has to know to read the numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)

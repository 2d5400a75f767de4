"""The record of a run: JSON with all numbers, SVG, and a page of tables for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.found import Found
from bench.subject import ROOT

OUT = ROOT / "docs" / "bench"
_RESULTS, _PAGE = "results.json", "results.md"


def keep(part: str, found: Found, seconds: float, machine: Mapping[str, Any], out: Path = OUT) -> None:
    """Put a part's numbers on record, beside those of the parts that were run before, and write the page anew."""
    out.mkdir(parents=True, exist_ok=True)
    record = _read(out / _RESULTS)
    entry = {key: value for key, value in asdict(found).items() if key != "pictures"}
    record[part] = {**entry, "machine": machine, "seconds": round(seconds), "pictures": sorted(found.pictures)}
    (out / _RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name, picture in found.pictures.items():
        (out / f"{name}.svg").write_text(picture)
    (out / _PAGE).write_text(page(record))


def page(record: Mapping[str, Any]) -> str:
    """All tables, those of the targets first."""
    lines = ["# Measured", "", *_targets(record)]
    for part, each in record.items():
        machine = each["machine"]
        where = f"{machine['cpus']} CPUs, engine {machine['engine']}, {machine['time']}, {each['seconds']} s"
        lines += [f"## {each['title']}", "", f"`python -m bench {part}`: {where}.", ""]
        lines += _body(each)
        lines += [f"![{name}]({name}.svg)" for name in each["pictures"]] + [""] * bool(each["pictures"])
    return "\n".join(lines)


def tables(found: Found) -> str:
    """A part's tables, for the terminal."""
    lines = [found.title, "", *_body(asdict(found))]
    lines += _table(["target", "", "found", "met"], [_target(asdict(each)) for each in found.targets])
    return "\n".join([*lines, ""])


def _body(found: Mapping[str, Any]) -> list[str]:
    """The tables of a part, and what one has to know to read them."""
    lines = [*_table(found["columns"], found["rows"]), ""]
    for note in found["notes"]:
        lines += [note, ""]
    for table in found["tables"]:
        lines += [f"### {table['title']}", "", *_table(table["columns"], table["rows"]), ""]
    return lines


def _targets(record: Mapping[str, Any]) -> Iterable[str]:
    rows = [_target(target) for each in record.values() for target in each["targets"]]
    return [*_table(["target", "", "found", "met"], rows), ""]


def _target(target: Mapping[str, Any]) -> list[str]:
    return [target["what"], target["wanted"], target["found"], "yes" if target["met"] else "no"]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found

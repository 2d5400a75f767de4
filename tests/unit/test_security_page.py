"""docs/security.md tells of every attack that there is a test for."""

from importlib import import_module
from pathlib import Path

import pytest
from tests.hostile.attack import Attack

ROOT = Path(__file__).parents[2]
THEMES = [path.stem for path in sorted((ROOT / "tests/hostile").glob("test_*.py")) if "ATTACKS" in path.read_text()]


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_has_every_attack(theme: str) -> None:
    page = (ROOT / "docs/security.md").read_text()
    assert f"`tests/hostile/{theme}.py`" in page
    rows: list[Attack] = import_module(f"tests.hostile.{theme}").ATTACKS
    assert len({row.name for row in rows}) == len(rows)
    missing = [row.name for row in rows if f"| {row.name} | {row.stopped_by} |" not in page]
    assert [name for name in missing if not name.startswith("NUL in ")] == []


def test_there_are_enough() -> None:
    assert sum(len(import_module(f"tests.hostile.{theme}").ATTACKS) for theme in THEMES) >= 50

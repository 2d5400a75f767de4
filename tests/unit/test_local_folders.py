"""The folders of local workers, which come and go while one looks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.app.local import _killed, _only


def test_a_folder_that_its_owner_has_just_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    os.utime(old, (0, 0))

    def listed(folder: Path) -> Iterator[Path]:
        return iter([folder / "gone", folder / "old"])

    monkeypatch.setattr(Path, "iterdir", listed)
    assert _killed(tmp_path) == [old]


def test_a_fault_of_one_task_is_told_as_what_it_is() -> None:
    error = OSError("full")
    assert _only(ExceptionGroup("", [ExceptionGroup("", [error])])) is error
    assert _only(ExceptionGroup("", [error, ValueError()])) is None

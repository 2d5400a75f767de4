"""What is unaccounted for, and what cannot be told."""

import logging

import pytest
from tests.engine_log import EngineLog

from runner.adapters.docker.audit import Audit

NOTHING: frozenset[str] = frozenset()
ONE = frozenset({"runner-vm-1-a"})
OTHER = frozenset({"runner-vm-1-b"})


class Books:
    """An audit, and the counts that it reads."""

    def __init__(self) -> None:
        self.log = EngineLog()
        self.audit = Audit(self.log)

    def look(self, listed: frozenset[str] = NOTHING, *, counted: int = 0, idle: bool = True) -> int:
        self.log.created, self.log.removed = 5 + counted, 5
        self.audit.look(idle=idle, listed=listed)
        assert self.log.unaccounted == self.audit.unaccounted
        return self.audit.unaccounted


@pytest.mark.parametrize(
    ("listed", "counted", "unaccounted"),
    [
        pytest.param(NOTHING, 0, 0, id="all is well"),
        pytest.param(ONE, 1, 1, id="one is left"),
        pytest.param(ONE, 0, 1, id="one too many, which nobody counted"),
        pytest.param(NOTHING, 1, 1, id="one is missing, and not counted out"),
        pytest.param(NOTHING, -2, 2, id="two were counted out twice"),
        pytest.param(ONE | OTHER, 1, 2, id="two are left, and one of them was counted"),
        pytest.param(ONE, 3, 3, id="one is left, and two more were counted"),
    ],
)
def test_what_two_looks_find(listed: frozenset[str], counted: int, unaccounted: int) -> None:
    books = Books()
    assert books.look(listed, counted=counted) == 0
    assert books.look(listed, counted=counted) == unaccounted


def test_what_only_one_look_finds_was_on_its_way() -> None:
    books = Books()
    found = [books.look(ONE, counted=1), books.look(OTHER, counted=-1), books.look(), books.look(ONE, counted=1)]
    assert found == [0, 0, 0, 0]


def test_nothing_is_judged_while_there_are_jobs() -> None:
    books = Books()
    assert [books.look(ONE, counted=1, idle=False) for _ in range(3)] == [0, 0, 0]
    assert books.look(ONE, counted=1) == 0


def test_the_judgement_stands_until_there_can_be_another() -> None:
    books = Books()
    found = [books.look(ONE, counted=1), books.look(ONE, counted=1), books.look(idle=False), books.look()]
    assert found == [0, 1, 1, 0]


def test_it_is_told_once_and_taken_back_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runner.adapters.docker.audit")
    books = Books()
    for listed in (ONE, ONE, ONE, NOTHING, NOTHING):
        books.look(listed, counted=len(listed))
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.ERROR, logging.INFO]
    assert vars(caplog.records[0])["containers"] == sorted(ONE)

"""Which removals wait for jobs that are on their way, and for how long."""

import asyncio

import pytest
from tests.fakes import until

from runner.adapters.docker import rush as rush_module
from runner.adapters.docker.rush import Rush


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that no test sees the end of it."""
    for limit in ("_HELD_FOR", "_COMING_FOR"):
        monkeypatch.setattr(rush_module, limit, 1000.0)


async def test_nothing_is_held_while_no_job_is_on_its_way() -> None:
    await Rush().over()


async def test_all_that_is_held_goes_on_when_the_last_job_has_left() -> None:
    rush = Rush()
    for name in ("a", "b"):
        rush.joined(name)
    held = [asyncio.create_task(rush.over()) for _ in range(3)]
    await until(lambda: rush._held == 3)
    rush.left("a")
    rush.left("of another launch")
    await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    rush.left("b")
    await asyncio.gather(*held)
    assert rush._held == 0


async def test_a_job_that_has_begun_holds_nothing_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rush_module, "_BEGINNING", 0.0)
    rush = Rush()
    rush.joined("a")
    held = asyncio.create_task(rush.over())
    await until(lambda: rush._held == 1)
    rush.began("a")
    await held


async def test_who_is_held_goes_on_when_its_room_is_wanted() -> None:
    rush = Rush()
    rush.joined("a")
    held = [asyncio.create_task(rush.over()) for _ in range(3)]
    await until(lambda: rush._held == 3)
    rush.hurry()
    await asyncio.gather(*held)
    again = asyncio.create_task(rush.over())
    await until(lambda: rush._held == 1)
    rush.left("a")
    await again


async def test_a_job_that_takes_long_to_begin_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rush_module, "_COMING_FOR", 0.0)
    rush = Rush()
    rush.joined("a")
    await until(lambda: not rush._coming)
    await rush.over()


async def test_one_that_never_begins_holds_nothing_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rush_module, "_HELD_FOR", 0.0)
    rush = Rush()
    rush.joined("a")
    await rush.over()
    assert rush._held == 0


async def test_no_more_are_held_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rush_module, "_HELD_MOST", 1)
    rush = Rush()
    rush.joined("a")
    held = asyncio.create_task(rush.over())
    await until(lambda: rush._held == 1)
    await rush.over()
    assert not held.done()
    rush.left("a")
    await held

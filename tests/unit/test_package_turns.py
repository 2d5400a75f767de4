"""Whose turn it is, and what becomes of work that hangs."""

import asyncio
import threading
from datetime import timedelta

import pytest
from tests.fakes import until

from runner.adapters.packages import threads
from runner.adapters.packages.threads import Threads
from runner.adapters.packages.tree import GoOn
from runner.adapters.packages.turns import Turns
from runner.errors import DeferredError

SOON = timedelta(milliseconds=20)


async def test_an_owner_has_its_share_and_not_that_of_others() -> None:
    turns = Turns(most=3, each=2, wait=SOON)
    for _ in range(2):
        await turns.take("acme")
    with pytest.raises(DeferredError, match=r"busy with the code of other jobs for 0\.02s"):
        await turns.take("acme")
    async with turns.turn("other"):
        with pytest.raises(DeferredError):
            await turns.take("third")
    await turns.take("third")


async def test_whoever_waits_has_the_turn_that_is_given_back() -> None:
    turns = Turns(most=1, each=1)
    await turns.take("acme")
    waits = asyncio.create_task(turns.take("other"))
    gives_up = asyncio.create_task(turns.take("acme"))
    await asyncio.sleep(0)
    gives_up.cancel()
    turns.give_back("acme")
    async with asyncio.timeout(30):
        await waits


async def test_work_gives_its_result_or_its_error() -> None:
    def fails(_: GoOn) -> None:
        raise OSError("broken")

    pool = Threads(Turns(most=1, each=1))
    assert await pool.run(lambda _: 7, owner="acme") == 7
    with pytest.raises(OSError, match="broken"):
        await pool.run(fails, owner="acme")
    assert await pool.run(lambda _: 8, owner="acme") == 8


async def test_work_ends_when_it_is_called_off() -> None:
    ended = threading.Event()

    def goes_on(go_on: GoOn) -> None:
        began.set()
        try:
            while True:
                go_on()
        finally:
            ended.set()

    began = threading.Event()
    task = asyncio.create_task(Threads().run(goes_on, owner="acme"))
    await until(began.is_set)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert ended.is_set()


async def test_work_that_hangs_keeps_its_place_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PARTING", SOON)
    began, answers = threading.Event(), threading.Event()

    def hang(_: GoOn) -> None:
        assert threading.current_thread().daemon
        began.set()
        answers.wait()

    pool = Threads(Turns(most=2, each=1, wait=SOON))
    hangs = asyncio.create_task(pool.run(hang, owner="slow"))
    await until(began.is_set)
    hangs.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait({hangs})
        assert hangs.cancelled()
        assert await pool.run(lambda _: 7, owner="other") == 7
        with pytest.raises(DeferredError):
            await pool.run(lambda _: 7, owner="slow")
        answers.set()
        await until(lambda: not any(thread.name == "packages" for thread in threading.enumerate()))
        assert await pool.run(lambda _: 7, owner="slow") == 7

"""A flag wakes whoever waits for it, and keeps nothing of those who have gone."""

import asyncio

from runner.flag import Flag


async def turns() -> None:
    """Let all others go on as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_wait_go_on_when_it_is_set_and_none_before() -> None:
    flag = Flag()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(flag.wait()) for _ in range(3)]
        await turns()
        assert not flag.is_set()
        assert not any(task.done() for task in waiting)
        flag.set()
        await turns()
        assert all(task.done() for task in waiting)
    assert flag.is_set()


async def test_nobody_waits_for_what_has_come_about() -> None:
    flag = Flag()
    flag.set()
    flag.set()
    await asyncio.wait_for(flag.wait(), 30)


async def test_who_waited_goes_on_although_it_was_cleared_at_once_and_who_comes_later_waits() -> None:
    flag = Flag()
    async with asyncio.TaskGroup() as tasks:
        early = tasks.create_task(flag.wait())
        await turns()
        flag.set()
        flag.clear()
        late = tasks.create_task(flag.wait())
        await turns()
        assert (early.done(), late.done(), flag.is_set()) == (True, False, False)
        flag.set()


async def test_one_who_gives_up_takes_nobody_along() -> None:
    flag = Flag()
    async with asyncio.TaskGroup() as tasks:
        patient, other = tasks.create_task(flag.wait()), asyncio.create_task(flag.wait())
        await turns()
        other.cancel()
        await turns()
        assert other.cancelled()
        assert not patient.done()
        assert len(flag._waiters) == 1
        flag.set()
    assert not flag._waiters

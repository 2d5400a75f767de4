"""No job runs twice while its worker lives, and none is lost when it does not.

All of this goes on under a broker that allows nobody to hold a delivery for longer than ten seconds.
"""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from tests.e2e.daemon import eventually
from tests.faults.conftest import OpenFleet
from tests.faults.fleet import Fleet
from tests.proxy import Proxy
from tests.services import Broker

pytestmark = [pytest.mark.broker, pytest.mark.engine]

SHORT = 6
"""Seconds: a lease that expires while the broker is away."""


async def idle(fleet: Fleet) -> None:
    await eventually(fleet.idle, "no container is left")


async def empty(fleet: Fleet) -> None:
    await eventually(fleet.no_message, "no message is left")


async def test_a_broker_that_was_away_has_no_job_run_twice(fleets: OpenFleet, strict: Broker) -> None:
    """Away for longer than one fleet's leases last, and for less than the other's."""
    calm, hasty = await fleets(strict), await fleets(strict)
    async with AsyncExitStack() as stack:
        for fleet, lease in ((calm, "120s"), (hasty, f"{SHORT}s")):
            for letter in "ab":
                await fleet.start(letter, stack, worker__lease=lease, capacity__max_jobs="10")
        kept = await calm.submit(20, "sleep 600")
        expired = await hasty.submit(6, "sleep 600")
        await asyncio.gather(calm.all_have("started", kept, 90), hasty.all_have("started", expired, 90))
        assert {event["worker"] for event in calm.of("started", kept)} == {calm.name("a"), calm.name("b")}
        await strict.kill()
        await asyncio.sleep(SHORT)  # else they might be back before one has expired
        await strict.start()
        for fleet in (calm, hasty):
            for daemon in fleet.daemons.values():
                await daemon.ready()
        # Each worker tells the end of a job only when it knows that the job is its own.
        await asyncio.gather(calm.cancel(kept), hasty.cancel(expired))
        await asyncio.gather(calm.all_have("finished", kept, 90), hasty.all_have("finished", expired, 90))
        await asyncio.gather(idle(calm), idle(hasty))
        calm.ran_once(kept, "cancelled")
        hasty.ran_once(expired, "cancelled")
        # They had expired, indeed. The broker may be stuck with some for 3 min, for which their owners don't wait.
        assert sum(hasty.said(letter, "expired lease offered to its owner") for letter in "ab") > 0
        assert sum(calm.said(letter, "expired lease offered to its owner") for letter in "ab") == 0
    await asyncio.gather(empty(calm), empty(hasty))


@pytest.mark.parametrize("seconds", [12, pytest.param(30, marks=pytest.mark.slow)])
async def test_a_cut_network_has_no_job_run_twice(fleets: OpenFleet, strict: Broker, seconds: int) -> None:
    fleet = await fleets(strict)
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Proxy(strict.url))
        await fleet.start("a", stack, url=wire.url, worker__lease="40s")
        ids = await fleet.submit(3, f"sleep {seconds + 5}; echo done")
        await fleet.all_have("started", ids, 60)
        await fleet.start("b", stack, worker__lease="40s")
        wire.black_hole()
        await asyncio.sleep(seconds)
        wire.heal()
        await fleet.all_have("finished", ids, 60)
        await idle(fleet)
        fleet.ran_once(ids)
    await empty(fleet)


async def test_workers_that_vanish(fleets: OpenFleet, strict: Broker) -> None:
    """One is killed for good; one is cut off, with a job that must not run twice and others that may."""
    fleet = await fleets(strict)
    lease = 12
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Proxy(strict.url))
        dead = await fleet.start("dead", stack, worker__lease=f"{lease}s")
        killed = await fleet.submit(3, 'test "$JOB_ATTEMPT" -gt 1 || exec sleep 600; exec sleep 10')
        await fleet.all_have("started", killed, 60)
        # What follows must not go to it.
        await fleet.start("cut", stack, url=wire.url, worker__lease=f"{lease}s", capacity__max_jobs="2")
        await dead.kill()
        at = time.monotonic()
        limits = {"cpus": 0.05, "timeout": "100s", "grace": "1s"}
        fenced = await fleet.submit(1, "trap '' TERM; while :; do sleep 1; done", fence=True, limits=limits)
        plain = await fleet.submit(1, "sleep 60", limits=limits)
        await fleet.all_have("started", [*fenced, *plain], 60)
        await fleet.start("heir", stack, worker__lease=f"{lease}s")
        wire.black_hole()
        await asyncio.gather(
            _starts_again(fleet, killed, at + lease + 30),
            _dead_before_its_next_start(fleet, fenced[0]),
            fleet.all_have("lost", [*killed, *fenced, *plain], lease + 40),
        )
        wire.heal()
        await eventually(lambda: _has_none(fleet, "cut"), "the one that was cut off has given its jobs up", 40)
        stopping = fleet.of("stopping", [*fenced, *plain])
        assert {event["reason"] for event in stopping if event["worker"] == fleet.name("cut")} == {"superseded"}
        assert {event["worker"] for event in fleet.of("finished", killed)} <= {fleet.name("heir")}
        assert [event["worker"] for event in fleet.of("finished", [*fenced, *plain])] == []
        for event in fleet.of("started", [*killed, *fenced, *plain]):
            assert event["attempt"] == (2 if event["worker"] == fleet.name("heir") else 1)
        assert (await fleet.daemons["cut"].metrics())["runner_leases_lost_total"] == 2


async def _starts_again(fleet: Fleet, ids: list[str], at: float) -> None:
    async def again() -> bool:
        return all(count == 2 for count in fleet.count("started", ids).values())

    await eventually(again, "the jobs of the dead worker run again", at - time.monotonic())


async def _dead_before_its_next_start(fleet: Fleet, job_id: str) -> None:
    """The fenced job's process ends on the worker that is cut off, and only then the job starts elsewhere."""
    (claim,) = (event["claim"] for event in fleet.of("started", [job_id]))
    container = f"runner-{fleet.name('cut')}-{claim}"

    async def ended() -> bool:
        return container not in await fleet.containers("cut", running=True)

    async def started_twice() -> bool:
        return fleet.count("started", [job_id])[job_id] == 2

    await eventually(ended, "the fenced job is dead", 40)
    assert not await started_twice()
    await eventually(started_twice, "the fenced job runs elsewhere", 40)


async def _has_none(fleet: Fleet, letter: str) -> bool:
    return not await fleet.containers(letter)


@pytest.mark.slow
async def test_a_job_of_three_minutes_under_a_broker_that_allows_one(fleets: OpenFleet, usual: Broker) -> None:
    fleet = await fleets(usual)
    async with AsyncExitStack() as stack:
        for letter in "ab":
            await fleet.start(letter, stack)
        ids = await fleet.submit(2, "sleep 180")
        await fleet.all_have("finished", ids, 300)
        await idle(fleet)
        fleet.ran_once(ids)
    await empty(fleet)

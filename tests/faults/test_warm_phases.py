"""The engine, or one container's shim, fails where a container waits for a job, or is being given to one.

Nothing of the job was begun, so that none is lost: it gets a container of its own, here or elsewhere.
"""

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable

import aiodocker
import pytest
from tests.e2e.daemon import eventually
from tests.e2e.submitter import STACK, Followed
from tests.engine_proxy import after
from tests.faults.phases import UPDATE, Pinned, pin_answer, pin_request
from tests.faults.place import GO, Place
from tests.faults.test_engine_phases import kill
from tests.shims import shim_of

WARM = 1

_SIZES = itertools.count(0.1, 0.01)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.broker,
    pytest.mark.parametrize(
        "lasting", [pytest.param((), id="usual"), pytest.param(("--live-restore",), id="live-restore")], indirect=True
    ),
]


async def _one_waits(place: Place) -> None:
    async def one() -> bool:
        return await place.daemon.waiting(STACK) == 1

    await eventually(one, "a container waits")


async def _pin(place: Place, hold: Callable[..., Awaitable[Pinned]]) -> Pinned:
    """A job that is being given the container that waits; of a size that none had before, as those that wait follow."""
    await _one_waits(place)
    pinned = await hold(place, UPDATE, limits={"cpus": next(_SIZES)})
    await pinned.job.event("claimed")
    return pinned


async def _ran_once(job: Followed) -> None:
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0)
    assert {kind: job.kinds.count(kind) for kind in ("started", "retrying", "lost", "finished")} == {
        "started": 1,
        "retrying": 0,
        "lost": 0,
        "finished": 1,
    }, job.events


async def test_the_engine_is_killed_while_containers_are_given_to_jobs(place: Place) -> None:
    pinned = [await _pin(place, pin_answer), await _pin(place, pin_request)]
    await kill(place, pinned)
    place.proxy.heal()
    for each in pinned:
        await _ran_once(each.job)
    await place.daemon.clean()


async def test_a_shim_is_killed_while_its_container_is_given_to_a_job(place: Place) -> None:
    pinned = await _pin(place, pin_answer)
    (update,) = [line for line in place.proxy.open if "/update" in line]
    container = update.split("/")[-2]

    async def known() -> bool:
        return not any(f"/{container}/attach" in line for line in place.proxy.open)

    assert not await known()
    os.kill(shim_of(container), signal.SIGKILL)
    await eventually(known, "the daemon has heard of it")
    pinned.go_on()
    await _ran_once(pinned.job)
    await place.daemon.clean()


async def test_a_shim_is_killed_whose_container_waits(place: Place) -> None:
    await _one_waits(place)
    (name,) = await place.site.warm_containers()
    async with aiodocker.Docker(url=place.engine.url) as docker:
        container = (await docker.containers.get(name)).id
    os.kill(shim_of(container), signal.SIGKILL)

    async def replaced() -> bool:
        return name not in await place.site.warm_containers()

    await eventually(replaced, "the dead container is gone")
    await _ran_once(await place.acme.submit(["true"]))
    await place.daemon.clean()


async def test_the_engine_hangs_while_it_renames_a_container_and_the_job_goes_on(place: Place) -> None:
    await _one_waits(place)
    let_go = asyncio.Event()
    fault = place.proxy.fault("POST .*/rename", after(let_go), times=1)
    job = await place.running(f"echo up; {GO}; echo end")

    async def met() -> bool:
        return fault.met == 1

    await eventually(met, "the rename is on its way")
    assert f"runner-{place.site.ns}-{job.events[-1]['claim']}" not in await place.site.containers()
    place.let_go(job)
    await _ran_once(job)
    assert job.text() == "up\nend\n"
    let_go.set()
    await place.daemon.clean()

"""The engine or a shim fails for longer than a job can wait: deadlines hold, places are kept, no other job notices.

What becomes of a job in each of its phases is in `test_engine_phases.py`.
"""

import os
import signal
from pathlib import Path

import pytest
from tests.e2e.daemon import eventually
from tests.engine_proxy import refuse
from tests.faults.place import GO, IMPATIENT, STUBBORN, Place, open_place
from tests.services import Endpoint
from tests.shims import shim_of, stop_shim

pytestmark = [pytest.mark.engine, pytest.mark.broker]

START = "POST .*/start$"


async def test_an_engine_whose_disk_is_full_costs_no_job_anything(place: Place) -> None:
    place.proxy.fault(START, refuse(500, "mkdir /run/containerd: no space left on device"))
    jobs = [await place.acme.submit(["true"], retry={"max": 0}) for _ in range(3)]
    await jobs[0].event("deferred")
    await place.says("no space left on device")
    assert (await place.status())["state"] == "paused"
    place.proxy.heal()
    for job in jobs:
        await job.finished()
        job.ended("succeeded", blame="none", exit_code=0, attempt=1)
        assert "retrying" not in job.kinds
    await place.daemon.ready()


async def test_deadlines_and_cancels_hold_while_the_engine_hangs(place: Place) -> None:
    cancelled = await place.running(STUBBORN, limits={"grace": "1s"})
    late = await place.running(STUBBORN, limits={"timeout": "4s", "grace": "1s"})
    await place.engine.pause()
    await place.acme.cancel(cancelled, "enough")
    await late.finished()
    await cancelled.finished()
    late.ended("timed_out", blame="job", reason="could not be ended within 2s, and what is in it may still run")
    cancelled.ended("cancelled", blame="none", reason="enough")
    await place.engine.resume()
    await place.daemon.ready()


async def test_a_shim_that_hangs_for_a_while_costs_its_job_nothing(place: Place) -> None:
    job = await place.running(f"echo up; {GO}; i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; done; exit 3")
    shim = shim_of((await job.event("started"))["container"])
    await stop_shim(shim)
    try:
        place.let_go(job)
        (await place.acme.run(["true"])).ended("succeeded", blame="none", exit_code=0)
        assert "finished" not in job.kinds
    finally:
        os.kill(shim, signal.SIGCONT)
    await job.finished()
    job.ended("failed", blame="job", exit_code=3, attempt=1)
    assert job.text() == "up\n" + "".join(f"{number}\n" for number in range(1, 201))
    assert job.result["logs"]["complete"] is True


async def test_a_shim_that_hangs_keeps_its_place_and_nothing_else(place: Place) -> None:
    late = await place.running(STUBBORN, limits={"timeout": "4s", "grace": "1s"})
    shim = shim_of((await late.event("started"))["container"])
    await stop_shim(shim)
    try:
        async with place.unhindered():
            await late.finished()
            late.ended("timed_out", blame="job", reason="may still run")

            await place.quarantined(late)
            for _ in range(3):
                (await place.acme.run(["true"])).ended("succeeded", blame="none", exit_code=0)

        async def alone() -> bool:
            metrics = await place.daemon.metrics()
            return (metrics["runner_claimed_cpus"], metrics["runner_containers_live"]) == (0.5, 1)

        await eventually(alone, "only its claim is left")

        async def failed() -> bool:
            return (await place.daemon.metrics())["runner_cleanup_failures_total"] > 0

        await eventually(failed, "its removal has failed")
    finally:
        os.kill(shim, signal.SIGCONT)


@pytest.mark.slow
async def test_a_shim_that_hangs_does_not_hold_up_the_end_of_the_daemon(
    lasting: Place, broker: Endpoint, tmp_path: Path
) -> None:
    async with open_place(lasting.engine, broker, tmp_path) as place:
        late = await place.running(STUBBORN, limits={"timeout": "2s", "grace": "0s"})
        shim = shim_of((await late.event("started"))["container"])
        await stop_shim(shim)
        try:
            await late.finished()
            place.daemon.terminate()
            assert await place.daemon.exited() == 0
        finally:
            os.kill(shim, signal.SIGCONT)
        async with place.site.daemon(program=IMPATIENT) as second:
            await second.ready()
            await second.clean()
            await second.stop()
        assert late.kinds.count("finished") == 1

"""Who goes first, and who waits, where there is little room: two jobs at once, and one CPU."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.submitter import STACK, Followed, Submitter, open_submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

TINY = {"cpus": 0.1}
SMALL = {"cpus": 0.5}
BIG = {"cpus": 1}


@pytest.fixture(scope="module")
async def narrow(at: OpenSite, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Daemon, Submitter]]:
    folder = tmp_path_factory.mktemp("narrow")
    settings = {"capacity__cpus": "1", "capacity__max_jobs": "2", "worker__max_deferred": "0"}
    async with at(folder) as site, site.daemon(**settings) as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as submitter:
            yield daemon, submitter
        await daemon.stop()
        assert await site.messages() == {}


@pytest.fixture
async def acme(narrow: tuple[Daemon, Submitter]) -> AsyncIterator[Submitter]:
    daemon, submitter = narrow
    yield submitter
    await submitter.cancel_all()
    await daemon.clean()
    assert await submitter.purge("dead") == 0


async def occupy(acme: Submitter, **limits: float) -> Followed:
    """A job that runs until it is cancelled."""
    job = await acme.submit(sh("echo up; exec sleep 600"), limits={"timeout": "20m", **limits})
    await job.wrote("up\n")
    return job


async def end(acme: Submitter, *jobs: Followed) -> None:
    """Cancel jobs and see them end."""
    for job in jobs:
        await acme.cancel(job)
    for job in jobs:
        await job.finished()


async def test_no_job_is_taken_that_there_is_no_room_for(acme: Submitter) -> None:
    waits, queue = 4, "q.default.normal"
    jobs = [await acme.submit(sh("echo up; exec sleep 600"), limits=SMALL) for _ in range(2 + waits)]
    # A message that was taken, and not acked yet, is not ready either.
    for left in reversed(range(waits + 1)):
        for job in jobs[:2]:
            await job.wrote("up\n")
        await wait_for_depth(acme, queue, left)
        assert all(job.events == [] for job in jobs[2:])
        await end(acme, jobs.pop(0))
    await end(acme, *jobs)


async def test_the_most_urgent_go_first_and_the_least_urgent_go_on(acme: Submitter) -> None:
    gates = [await occupy(acme, **TINY) for _ in range(2)]
    jobs = {
        priority: [await acme.submit(["true"], to=f"default.{priority}.acme", limits=TINY) for _ in range(24)]
        for priority in ("low", "normal", "high")
    }
    for priority in jobs:
        await wait_for_depth(acme, f"q.default.{priority}", 24)
    await end(acme, gates[0])
    order = await claims(jobs, 26)
    assert order[0] == "high"
    shares = Counter(order[:26])
    assert 14 <= shares["high"] <= 18, order
    assert 6 <= shares["normal"] <= 10, order
    assert 1 <= shares["low"] <= 4, order
    for priority in jobs:
        await acme.purge(f"q.default.{priority}")
    await end(acme, gates[1])
    await asyncio.gather(*(job.finished() for theirs in jobs.values() for job in theirs if job.events))


async def wait_for_depth(acme: Submitter, queue: str, depth: int) -> None:
    async def is_so() -> bool:
        return await acme.waiting(queue) == depth

    await eventually(is_so, f"{depth} messages are ready in {queue}")


async def claims(jobs: dict[str, list[Followed]], count: int) -> list[str]:
    """The priorities of the first jobs to be claimed, in this order."""

    def claimed() -> list[tuple[str, str]]:
        return sorted((job.events[0]["time"], name) for name, theirs in jobs.items() for job in theirs if job.events)

    async def enough() -> bool:
        return len(claimed()) >= count

    await eventually(enough, f"{count} jobs are claimed", 240)
    return [name for _, name in claimed()]


async def test_a_big_job_neither_blocks_small_ones_nor_waits_for_ever(acme: Submitter) -> None:
    gate = await occupy(acme, **SMALL)
    big = await acme.submit(["true"], limits=BIG, to="default.high.acme")
    await wait_for_depth(acme, "q.default.high", 0)  # it is taken, and waits for room
    for _ in range(3):
        small = await acme.run(["true"], limits=SMALL)
        small.ended("succeeded", blame="none", exit_code=0)
    assert big.events == []
    await end(acme, gate)
    await big.finished()
    big.ended("succeeded", blame="none", exit_code=0)


async def test_a_job_that_waits_for_room_is_cancelled(acme: Submitter) -> None:
    gate = await occupy(acme, **SMALL)
    big = await acme.submit(["true"], limits=BIG)
    await wait_for_depth(acme, "q.default.normal", 0)
    await acme.cancel(big, "too late")
    await big.finished()
    big.ended("cancelled", blame="none", reason="cancelled: too late", tail=[])
    assert big.kinds == ["finished"]
    await end(acme, gate)


async def test_a_job_that_is_still_queued_is_cancelled_when_it_is_taken(acme: Submitter) -> None:
    gates = [await occupy(acme, **SMALL) for _ in range(2)]
    queued = await acme.submit(["true"], limits=SMALL)
    await acme.cancel(queued)
    await end(acme, *gates)
    await queued.finished()
    queued.ended("cancelled", blame="none")
    assert queued.kinds == ["finished"]


async def test_a_job_that_waits_for_room_too_long_expires(acme: Submitter) -> None:
    gate = await occupy(acme, **SMALL)
    big = await acme.run(["true"], limits=BIG, start_within="3s")
    big.ended("expired", blame="platform", reason="not started within 3s, its start_within: needs 1 CPUs, 0.5 are free")
    assert big.kinds == ["finished"]
    await end(acme, gate)


async def test_a_job_that_was_queued_too_long_expires(acme: Submitter) -> None:
    published = datetime.now(UTC) - timedelta(seconds=30)
    body = json.dumps({"id": "stale", "stack": STACK, "command": ["true"], "start_within": "20s"}).encode()
    stale = await acme.publish(body, job_id="stale", timestamp=published)
    await stale.finished()
    stale.ended("expired", blame="platform", reason="not started within 20s, its start_within")
    assert stale.kinds == ["finished"]
    assert stale.result["seconds"]["total"] >= 29


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stack": "e2e-nowhere"}, 'this worker has no stack "e2e-nowhere"; not passed on'),
        ({"stack": STACK, "limits": {"cpus": 2}}, "needs 2 CPUs, this worker has 1; not passed on"),
        ({"stack": STACK, "limits": {"memory": "5g"}}, "needs 5"),
    ],
    ids=["stack", "cpus", "memory"],
)
async def test_what_may_not_be_passed_on_is_rejected(acme: Submitter, fields: dict[str, str], reason: str) -> None:
    job = await acme.run(["true"], **fields)
    job.ended("rejected", blame="request", reason=reason, attempt=0)
    assert job.kinds == ["rejected", "finished"]
    letter = await acme.dead_letter()
    assert letter.headers["x-code"] == "rejected"
    assert reason in str(letter.headers["x-reason"])

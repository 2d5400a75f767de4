"""The daemon is killed at each step of the protocol. The next life loses no job, and each has one end."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon, Site, eventually, open_site
from tests.e2e.submitter import STACK, Followed, open_submitter, sh
from tests.faults.place import GO
from tests.services import Endpoint

from runner.adapters.journal import open_journal

pytestmark = [pytest.mark.engine, pytest.mark.broker]

CRASH = str(Path(__file__).with_name("crash.py"))
LEASES = "runner.adapters.amqp.leases:Leases"
LEASE = "runner.adapters.amqp.delivery:JobLease"
INTAKE = "runner.adapters.amqp.intake:JobIntake"
JOURNAL = "runner.adapters.journal:SqliteJournal"
ENGINE = "runner.adapters.docker.engine:DockerEngine"
RUN = "runner.executor:Run"
SANDBOX = "runner.adapters.docker.sandbox:Sandbox"
CLIENT = "runner.adapters.docker.client:EngineClient"

ONCE = [
    ("before", f"{LEASES}.acquire"),
    ("after", f"{INTAKE}._settle"),
    ("before", f"{ENGINE}.launch"),
    ("after", f"{ENGINE}.launch"),
    ("after", f"{JOURNAL}.started"),
    ("after", f"{RUN}.execute"),
    ("before", f"{JOURNAL}.ended"),
    ("after", f"{JOURNAL}.ended"),
    ("before", f"{LEASE}.settle"),
    ("after", f"{LEASE}.settle"),
    ("before", f"{ENGINE}.discard"),
]
"""A job that is killed with its daemon here is not started a second time by the broker's giving it out again."""
WARM = [
    ("before", f"{SANDBOX}.run"),
    ("after", f"{SANDBOX}.run"),
    ("before", f"{CLIENT}.rename"),
    ("after", f"{CLIENT}.rename"),
]
"""The same, in a container that waited: from when it is the job's until it has the name."""
IN_A_WINDOW = [
    ("after", f"{LEASES}.acquire"),
    ("before", f"{JOURNAL}.claimed"),
    ("after", f"{JOURNAL}.claimed"),
]
"""The lease is on its way or confirmed, and the delivery is not acked: both come again (docs/decisions/0001-leases.md).

The claim is on record or not: what a later life finds there without its lease, it gives up.
"""
WRITTEN = ("written", "UPDATE claims SET container")
"""The start of the job is on the disk, and nobody has heard that it is."""
IN_A_RETRY = [("before", f"{LEASE}.retry"), ("after", f"{LEASE}.retry")]


@pytest.fixture
async def site(broker: Endpoint, engine: Endpoint, busybox_image: str, tmp_path: Path) -> AsyncIterator[Site]:
    ns = f"c{secrets.token_hex(5)}"
    async with open_site(broker=broker.url, engine=engine.url, image=busybox_image, folder=tmp_path, ns=ns) as site:
        yield site


def ends(job: Followed) -> set[str | None]:
    """The ids of the job's `finished`; one that came twice counts once."""
    told = zip(job.message_ids, job.events, strict=True)
    return {message_id for message_id, event in told if event["event"] == "finished"}


async def through_a_crash(
    site: Site, when: str, step: str, script: str, retries: int, *, warm: bool = False
) -> Followed:
    """The job, run by a daemon that is killed at that step and by its next life; in a container that waited."""
    # What no lease speaks for is removed once the lease that was must be over.
    lease = {"worker__lease": "10s"}
    if warm:
        site.keep_warm(STACK, 1)
    async with site.daemon(program=(CRASH, when, step), **lease, warm__enabled=str(warm)) as first:
        await first.ready()
        if warm:
            await eventually(lambda: _one_waits(first), "a container waits")
        async with open_submitter(site.broker, site.ns) as submitter:
            job = await submitter.submit(sh(script), retry={"max": retries, "delay": 0})
            assert await first.exited() == -9
            if warm and (when, step) in (*WARM, WRITTEN):
                async with open_journal(site.state_dir, lambda: datetime.now(UTC)) as journal:
                    assert await journal.names()  # it was given the container that waited
            if (when, step) == WRITTEN:
                async with open_journal(site.state_dir, lambda: datetime.now(UTC)) as journal:
                    [claim] = await journal.open_claims()
                assert claim.deadline is not None
                (site.state_dir / "jobs" / claim.record.claim / "progress").write_text("go on")
            async with site.daemon(**lease) as second:
                await second.ready()
                await job.event("finished", timeout=60)
                await second.clean()
                await second.stop()
            await eventually(lambda: _empty(site), "nothing is left in the broker")
    return job


async def _empty(site: Site) -> bool:
    return await site.messages() == {}


async def _one_waits(daemon: Daemon) -> bool:
    return await daemon.waiting(STACK) == 1


@pytest.mark.parametrize(("when", "step"), WARM)
async def test_killed_where_a_container_that_waited_is_given_to_a_job_it_ends_once(
    site: Site, when: str, step: str
) -> None:
    job = await through_a_crash(site, when, step, "echo up; sleep 0.5; echo done", 0, warm=True)
    assert len(ends(job)) == 1, job.events
    assert {event["outcome"] for event in job.events if event["event"] == "finished"} == {"succeeded"}
    assert {"claimed", "started"} <= set(job.kinds), "whatever was under way to the broker is told again"
    assert job.text() == "up\ndone\n"


@pytest.mark.parametrize(("when", "step"), ONCE)
async def test_killed_at_a_step_a_job_ends_once(site: Site, when: str, step: str) -> None:
    job = await through_a_crash(site, when, step, "sleep 0.3; echo done", 0)
    assert len(ends(job)) == 1, job.events
    assert {event["outcome"] for event in job.events if event["event"] == "finished"} == {"succeeded"}
    assert {"claimed", "started"} <= set(job.kinds), "whatever was under way to the broker is told again"


@pytest.mark.parametrize(
    ("when", "step", "warm"), [(*each, False) for each in IN_A_WINDOW] + [(*each, True) for each in IN_A_WINDOW[-1:]]
)
async def test_killed_in_the_window_of_the_claim_no_job_is_lost(
    site: Site, when: str, step: str, *, warm: bool
) -> None:
    job = await through_a_crash(site, when, step, "echo done", 0, warm=warm)
    assert 1 <= len(ends(job)) <= 2, job.events
    assert {event["outcome"] for event in job.events if event["event"] == "finished"} == {"succeeded"}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_killed_when_its_start_is_on_record_a_job_goes_on_and_nothing_of_it_is_told_twice(
    site: Site, *, warm: bool
) -> None:
    job = await through_a_crash(site, *WRITTEN, f"echo up; {GO}; echo done", 0, warm=warm)
    assert [kind for kind in job.kinds if kind != "progress"] == ["claimed", "started", "finished"]
    assert (job.result["outcome"], job.result["attempt"]) == ("succeeded", 1)
    assert job.text() == "up\ndone\n"


@pytest.mark.parametrize(("when", "step"), IN_A_RETRY)
async def test_killed_at_a_retry_the_job_is_tried_again_and_ends_once(site: Site, when: str, step: str) -> None:
    job = await through_a_crash(site, when, step, "test $JOB_ATTEMPT = 2", 1)
    assert len(ends(job)) == 1, job.events
    assert {event["outcome"] for event in job.events if event["event"] == "finished"} == {"succeeded"}

"""Jobs that start again when they fail, and jobs that wait: in the broker, not in a worker."""

from datetime import datetime, timedelta

import pytest
from tests.e2e.submitter import Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

ONE_RUN = ["claimed", "started"]


async def test_a_job_that_fails_is_started_again_until_it_succeeds(acme: Submitter) -> None:
    job = await acme.submit(sh('echo "try $JOB_ATTEMPT"; [ "$JOB_ATTEMPT" = 3 ]'), retry={"max": 4, "delay": "1s"})
    await job.finished()
    job.ended("succeeded", exit_code=0, attempt=3)
    assert job.kinds == [*ONE_RUN, "retrying", *ONE_RUN, "retrying", *ONE_RUN, "finished"]
    retrying = await job.event("retrying")
    assert (retrying["outcome"], retrying["delay"]) == ("failed", 1.0)


async def test_after_the_last_retry_the_job_has_failed(acme: Submitter) -> None:
    job = await acme.submit(sh("exit 3"), retry={"max": 1, "delay": "1s"})
    await job.finished()
    job.ended("failed", exit_code=3, attempt=2)


async def test_only_the_named_endings_are_tried_again(acme: Submitter) -> None:
    retry = {"max": 1, "delay": "1s", "on": ["exit:75"]}
    other = await acme.submit(sh("exit 3"), retry=retry)
    named = await acme.submit(sh("exit 75"), retry=retry)
    await other.finished()
    await named.finished()
    other.ended("failed", exit_code=3, attempt=1)
    named.ended("failed", exit_code=75, attempt=2)


async def test_a_delayed_job_starts_when_it_is_due(acme: Submitter) -> None:
    job = await acme.submit(sh("true"), delay="2s")
    await job.finished()
    job.ended("succeeded", exit_code=0, attempt=1)
    times = job.result["times"]
    waited = datetime.fromisoformat(times["started"]) - datetime.fromisoformat(times["published"])
    assert waited >= timedelta(seconds=2)
    assert job.kinds == [*ONE_RUN, "finished"], "nobody is told of the waiting"


async def test_a_job_that_waits_for_its_retry_can_be_cancelled(acme: Submitter) -> None:
    job = await acme.submit(sh("exit 1"), retry={"max": 1, "delay": "5s"})
    await job.event("retrying")
    await acme.cancel(job, "no more use")
    await job.finished()
    job.ended("cancelled", reason="no more use")
    assert job.kinds.count("started") == 1

"""The daemon is killed, or hands over, and its next life goes on with the jobs: none lost, none started twice."""

import asyncio
import random
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from tests.e2e.daemon import WAITS, Daemon, Site, eventually, open_site
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh
from tests.services import Endpoint

from runner.adapters.journal import open_journal
from runner.codec import encode_choices

pytestmark = [pytest.mark.engine, pytest.mark.broker]

COUNTS = 'i=0; until [ -s "$JOB_OUTPUT_FILE" ]; do i=$((i+1)); echo line $i; sleep 0.1; done'
STUBBORN = "trap 'echo no' TERM; echo started; while :; do sleep 0.1; done"


@pytest.fixture
async def site(broker: Endpoint, engine: Endpoint, busybox_image: str, tmp_path: Path) -> AsyncIterator[Site]:
    ns = f"a{secrets.token_hex(5)}"
    async with open_site(broker=broker.url, engine=engine.url, image=busybox_image, folder=tmp_path, ns=ns) as site:
        yield site


@pytest.fixture
async def acme(site: Site) -> AsyncIterator[Submitter]:
    """A client that hears all of the site's daemons."""
    async with site.daemon() as first:
        await first.ready()
        await first.stop()
    async with open_submitter(site.broker, site.ns) as submitter:
        yield submitter


def written(job: Followed, stream: str = "out") -> str:
    """The log, less what came twice; fails where a part is missing."""
    text = ""
    for batch in sorted(job.batches, key=lambda batch: int(batch["off"][stream])):
        mine = (line for line in batch["lines"] if line["s"] == stream)
        raw = "".join(line["m"] + ("" if line.get("p") else "\n") for line in mine)
        begin = batch["off"][stream]
        assert begin <= len(text), f"{begin - len(text)} bytes are missing before {raw!r}"
        assert raw.startswith(text[begin : begin + len(raw)]), (text[begin:], raw)
        text += raw[len(text) - begin :]
    return text


def distinct(job: Followed, kind: str) -> list[dict[str, Any]]:
    """The events of that kind."""
    return [event for event in job.events if event["event"] == kind]


def only(job: Followed, kind: str) -> dict[str, Any]:
    """The one event of that kind."""
    (event,) = distinct(job, kind)
    return event


async def has_exited(site: Site, job: Followed) -> None:
    """Return when the job's container has ended."""
    async with aiodocker.Docker(url=site.engine) as docker:
        container = docker.containers.container(only(job, "started")["container"])

        async def is_over() -> bool:
            return not (await container.show())["State"]["Running"]

        await eventually(is_over, "the container has ended")


async def on_record(site: Site, jobs: int) -> None:
    """Return when the daemon has written down the containers of so many jobs."""

    async def written_down() -> bool:
        async with open_journal(site.state_dir, lambda: datetime.now(UTC)) as journal:
            return [claim.container is not None for claim in await journal.open_claims()] == [True] * jobs

    await eventually(written_down, f"the containers of {jobs} jobs are on record")


async def shorten(site: Site, job: Followed, *, timeout: timedelta, grace: timedelta) -> None:
    """Give a job less time, from its start on, in the record that its daemon has left."""
    async with open_journal(site.state_dir, lambda: datetime.now(UTC)) as journal:
        (claim,) = [claim for claim in await journal.open_claims() if claim.record.key.id == job.id]
    choices = claim.record.choices
    assert choices is not None
    less = choices.limits.timeout + choices.limits.grace - timeout - grace
    choices = replace(choices, limits=replace(choices.limits, timeout=timeout, grace=grace))
    with closing(sqlite3.connect(site.state_dir / "journal.db", isolation_level=None)) as database:
        database.execute(
            "UPDATE claims SET choices = ?, deadline = deadline - ? WHERE claim = ?",
            (encode_choices(choices), less // timedelta(microseconds=1), claim.record.claim),
        )


async def leave(daemon: Daemon, *, how: str) -> None:
    """End the daemon's life; its jobs run on."""
    if how == "kill":
        await daemon.kill()
        return
    daemon.terminate()
    assert await daemon.exited() == 0
    assert daemon.faults() == []


@pytest.mark.parametrize("how", ["kill", "hand over"])
async def test_jobs_go_on_in_the_next_life(site: Site, acme: Submitter, how: str) -> None:
    async with site.daemon(worker__restart="adopt") as first:
        await first.ready()
        counter = await acme.submit(sh(f"echo started; {COUNTS}; printf end; exit 3"))
        silent = await acme.submit(sh(f"echo started >&2; {WAITS}; exit 4"))
        gone = await acme.submit(sh(f"echo started; {WAITS}; echo done; printf 42 > $JOB_OUTPUT_FILE"))
        stopped = await acme.submit(sh(STUBBORN), limits={"grace": "60s"})
        for job in (counter, silent, gone):
            await job.event("started")
        await stopped.wrote("started\n")
        late = await acme.submit(sh(STUBBORN), limits={"timeout": "10m", "grace": "1s"})
        await late.wrote("started\n")
        jobs = [counter, silent, gone, late, stopped]
        await acme.cancel(stopped, "enough")
        await stopped.event("stopping")
        running = set(await site.containers())
        await on_record(site, len(jobs))
        await leave(first, how=how)
        assert set(await site.containers()) == running
    site.let_go(gone)
    await has_exited(site, gone)
    over = datetime.now(UTC)
    # Now the deadline is over, and was not before, however long all of that took; nor does the grace take a minute.
    await shorten(site, late, timeout=timedelta(milliseconds=1), grace=timedelta(seconds=1))
    await shorten(site, stopped, timeout=timedelta(hours=1), grace=timedelta(seconds=1))
    async with site.daemon(worker__restart="adopt") as second:
        await second.ready()
        seen = len(counter.batches)
        await counter.until(lambda: len(counter.batches) > seen, "more of its log under the next life")
        for job in (counter, silent):
            site.let_go(job)
        for job in jobs:
            await job.event("finished")
        metrics = await second.metrics()
        assert metrics["runner_leases_adopted_total"] == len(jobs)
        await second.clean()
        await second.stop()
    for job in jobs:
        assert only(job, "started")["attempt"] == only(job, "finished")["attempt"] == 1
        assert only(job, "finished")["logs"]["complete"] is True
        assert only(job, "claimed")["claim"] == only(job, "finished")["claim"]
        assert (written(job) + written(job, "err")).count("started") == 1
    counter.ended("failed", exit_code=3)
    lines = "".join(f"line {number}\n" for number in range(1, 1 + written(counter).count("line")))
    assert written(counter) == f"started\n{lines}end"
    silent.ended("failed", exit_code=4)
    gone.ended("succeeded", exit_code=0, output=42)
    assert datetime.fromisoformat(gone.result["times"]["ended"]) <= over
    late.ended("timed_out", signal=9)
    stopped.ended("cancelled", signal=9, reason="enough")
    assert await site.messages() == {}


async def test_a_container_without_a_lease_is_removed(site: Site, acme: Submitter) -> None:
    async with site.daemon(worker__lease="8s") as first:
        await first.ready()
        job = await acme.submit(sh("echo started; sleep 1000"))
        await job.event("started")
        await first.kill()

    async def purged() -> bool:
        return await acme.purge(f"w.{site.ns}.lease") == 1

    await eventually(purged, "the broker has the lease back, and loses it")
    async with site.daemon(worker__lease="8s") as second:
        await second.ready()
        assert len(await site.containers()) == 1

        async def empty() -> bool:
            return not await site.containers() and not site.job_folders

        await eventually(empty, "the container is gone")
        await second.stop()
    assert job.kinds == ["claimed", "started"]


async def test_a_lease_without_a_container_is_a_lost_attempt(site: Site, acme: Submitter) -> None:
    async with site.daemon() as first:
        await first.ready()
        job = await acme.submit(sh('test "$JOB_ATTEMPT" -gt 1 || exec sleep 600'))
        await job.event("started")
        await on_record(site, 1)
        await first.kill()
    async with aiodocker.Docker(url=site.engine) as docker:
        for name in await site.containers():
            await docker.containers.container(name).delete(force=True)
    async with site.daemon() as second:
        await second.ready()
        await job.event("finished")
        await second.stop()
    assert only(job, "retrying")["outcome"] == "lost"
    assert [event["attempt"] for event in job.events if event["event"] == "started"] == [1, 2]
    job.ended("succeeded", exit_code=0)


@pytest.mark.parametrize("lives", [8, pytest.param(30, marks=pytest.mark.slow)])
async def test_killed_again_and_again_no_job_is_lost(site: Site, acme: Submitter, lives: int) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)  # noqa: S311
    jobs: list[Followed] = []
    # On a busy machine a job may meet the end of many short lives before it is started.
    patient = {"worker__max_lost": str(lives)}
    for life in range(lives):
        async with site.daemon(**patient) as daemon:
            await daemon.ready()
            for _ in range(2):
                seconds, code = round(chance.uniform(0, 2), 2), chance.choice([0, 3])
                jobs.append(await acme.submit(sh(f"echo started; sleep {seconds}; echo life {life}; exit {code}")))
            await asyncio.sleep(chance.uniform(0, 2))
            await daemon.kill()
    async with site.daemon(**patient) as daemon:
        await daemon.ready()
        for job in jobs:
            await job.event("finished", timeout=60)

        async def none_waits() -> bool:
            return await site.messages() == {}

        await eventually(none_waits, "no second copy of a job waits to be started again")
        # A claim that a crash has left between the ack of its lease and its end in the journal is given up after
        # `worker.lease`.
        await daemon.clean(timeout=120 + 30)
        await daemon.stop()
    assert await site.messages() == {}
    for job in jobs:
        assert distinct(job, "finished")[0]["outcome"] in ("succeeded", "failed"), job.events
        # A crash makes two of a job between the confirm of its lease, or of the copy that starts it again, and the ack
        # of what it was before: docs/decisions/0001-leases.md. These are milliseconds, and more on a busy machine.
        crossings = job.kinds.count("lost") + job.kinds.count("retrying")
        assert len(distinct(job, "finished")) <= 1 + crossings, job.kinds

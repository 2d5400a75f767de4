"""What people ask about jobs, answered by a real daemon: where is it, why does it wait, what did it write."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from tests.e2e.daemon import Daemon, Site, eventually, open_site
from tests.e2e.submitter import Submitter, open_submitter, sh
from tests.services import Endpoint

pytestmark = [pytest.mark.broker, pytest.mark.engine]

HOLD = "touch /work/here; while [ -e /work/here ]; do sleep 0.05; done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where people ask. `acme` is the tenant that submits."""

    site: Site
    daemon: Daemon
    acme: Submitter

    async def ask(self, *words: str, code: int = 0, **more: str) -> str:
        """What a command says on stdout."""
        env = {"RUNNER_AMQP__URL": self.site.broker, "RUNNER_AMQP__NAMESPACE": self.site.ns, "RUNNER_TENANT": "acme"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runner", *words, env=os.environ | env | more, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == code, (out, err)
        return out.decode()

    async def told(self, *words: str) -> list[dict[str, Any]]:
        """What a command says with --json."""
        return [json.loads(line) for line in (await self.ask(*words, "--json")).splitlines()]

    async def queue(self, name: str) -> dict[str, Any]:
        """What is said of a queue."""
        (queue,) = (told for told in await self.told("queues") if told.get("queue") == f"{self.site.ns}.{name}")
        return queue

    async def command(self, command: str) -> None:
        """Have an operator tell all workers something."""
        control = await self.acme.exchange(".control")
        await control.publish(aio_pika.Message(b""), f"all.{command}")


@pytest.fixture(scope="module")
async def site(
    broker: Endpoint, engine: Endpoint, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    folder: Path = tmp_path_factory.mktemp("desk")
    async with open_site(
        broker=broker.url, engine=engine.url, image=busybox_image, folder=folder, ns=f"t{token_hex(5)}"
    ) as site:
        yield site


@pytest.fixture(scope="module")
async def desk(site: Site) -> AsyncIterator[Desk]:
    """A daemon with two CPUs."""
    async with site.daemon(capacity__cpus="2") as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            yield Desk(site=site, daemon=daemon, acme=acme)


async def test_a_job_that_ended_is_known_with_its_log(desk: Desk) -> None:
    job = await desk.acme.run(sh("echo out; echo err >&2; exit 3"))
    text = await desk.ask("status", job.id)
    assert text.startswith(f"job {job.id} of acme: failed (exit code 3)\n")
    assert "exited with code 3" in text
    (record,) = await desk.told("status", job.id)
    assert record | job.result == record
    assert (record["state"], record["worker"]) == ("finished", desk.site.ns)
    assert await desk.ask("logs", job.id) == "out\n"
    assert await desk.told("logs", job.id) == job.batches
    assert await desk.ask("logs", "-f", job.id) == "out\n"


async def test_only_its_tenant_hears_of_a_job(desk: Desk) -> None:
    job = await desk.acme.run(sh("true"))
    for command in ("status", "logs"):
        assert await desk.ask(command, "--tenant", "other", job.id, code=1) == ""


async def test_a_job_that_runs_is_shown_from_its_first_line_to_its_last(desk: Desk) -> None:
    job = await desk.acme.submit(sh(f"echo first; {HOLD}; echo last"), limits={"timeout": "5m"})
    await job.wrote("first\n")
    (record,) = await desk.told("status", job.id)
    assert (record["state"], record["event"]) == ("running", "started")
    assert record["times"]["claimed"] < record["times"]["started"]
    assert await desk.ask("logs", job.id) == "first\n"
    following = asyncio.create_task(desk.ask("logs", "-f", job.id))
    listed = await desk.told("jobs", "--state", "running")
    assert [(one["id"], one["state"]) for one in listed] == [(job.id, "running")]
    await desk.acme.cancel(job)
    await job.finished()
    assert await following == "first\n"
    assert (await desk.ask("status", job.id)).startswith(f"job {job.id} of acme: cancelled")


async def test_a_log_is_followed_without_gaps_or_repeats(desk: Desk) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done"
    job = await desk.acme.submit(sh(script))
    await job.wrote("line 20\n")
    expected = "".join(f"line {number}\n" for number in range(300))
    texts = await asyncio.gather(*(desk.ask("logs", "-f", job.id) for _ in range(2)))
    assert texts == [expected, expected]
    assert await desk.ask("logs", job.id) == expected


async def test_a_job_that_waits_on_its_worker_says_for_what(desk: Desk) -> None:
    running = await desk.acme.submit(sh(f"echo here; {HOLD}"), limits={"cpus": 1.5})
    await running.wrote("here\n")
    waiting = await desk.acme.submit(sh("true"), limits={"cpus": 1})
    why = "needs 1 CPUs, 0.5 are free"

    async def held_back() -> bool:
        return {"worker": desk.site.ns, "tenant": "acme", "id": waiting.id, "why": why} in await desk.told("queues")

    await eventually(held_back, "the job waits on its worker")
    assert (await desk.ask("status", waiting.id)).splitlines()[0] == f"job {waiting.id} of acme: queued"
    assert (await desk.told("status", waiting.id))[0]["why"] == why
    assert [one["id"] for one in await desk.told("jobs", "--state", "queued")] == [waiting.id]
    (worker,) = await desk.told("workers")
    assert (worker["state"], worker["running"], worker["free"]["cpus"]) == ("taking", 1, 0.5)
    await desk.acme.cancel(running)
    await waiting.finished()


async def test_jobs_that_are_passed_on_are_told_with_the_reason(desk: Desk) -> None:
    job = await desk.acme.submit(sh("true"), stack="elsewhere")
    reason = (await job.event("deferred"))["reason"]
    assert reason == 'this worker has no stack "elsewhere"'
    rows = [line.split(maxsplit=3) for line in (await desk.ask("queues")).splitlines()]
    assert ["acme", job.id, "elsewhere", reason] in rows
    (told,) = [told for told in await desk.told("queues") if told.get("id") == job.id]
    assert (told["state"], told["reason"]) == ("deferred", reason)
    await desk.acme.cancel(job)
    await job.finished()


async def test_a_paused_worker_is_why_jobs_wait(desk: Desk) -> None:
    await desk.command("pause")

    async def paused() -> bool:
        states = [worker["state"] for worker in await desk.told("workers")]
        return states == ["paused"] and (await desk.queue("q.default.normal"))["consumers"] == 0

    await eventually(paused, "the worker is paused")
    job = await desk.acme.submit(sh("true"))
    queue = await desk.queue("q.default.normal")
    assert (queue["ready"], queue["consumers"]) == (1, 0)
    assert queue["why"].startswith(f"no worker of pool default takes jobs: {desk.site.ns} is paused (operator: paused")
    await desk.ask("status", job.id, code=1)
    await desk.command("resume")
    await job.finished()
    assert (await desk.queue("q.default.normal"))["why"] is None


async def test_a_queue_that_nobody_serves_says_so(desk: Desk) -> None:
    channel = desk.acme.channel
    name = f"{desk.site.ns}.q.big.low"
    await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    try:
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), name)
        lines = (await desk.ask("queues", RUNNER_WORKER__POOLS='["default", "big"]')).splitlines()
        row = next(line for line in lines if line.startswith(name))
        assert row.split(maxsplit=3)[1:] == ["1", "0", "no worker that answers serves pool big"]
        missing = next(line for line in lines if ".q.big.high" in line)
        assert "run: runner topology apply" in missing
    finally:
        await channel.queue_delete(name)


async def test_every_queue_has_its_depth_among_the_metrics(desk: Desk) -> None:
    async def counted() -> bool:
        _, text = await desk.daemon.get("/metrics")
        names = ("q.default.high", "q.default.low", "delay.00", "delay.19", "unrouted", "lost", "dead")
        return all(f'runner_queue_depth{{queue="{desk.site.ns}.{name}"}} 0.0' in text for name in names)

    await eventually(counted, "the queues are counted")


async def test_the_last_jobs_are_listed_and_chosen(desk: Desk) -> None:
    good, bad = await desk.acme.run(sh("true")), await desk.acme.run(sh("exit 1"))
    other = await desk.acme.run(sh("exit 1"), to="default.normal.other")
    ids = [job["id"] for job in await desk.told("jobs")]
    assert [ids.index(job.id) for job in (other, bad, good)] == [0, 1, 2]
    assert (await desk.told("jobs", "--tenant", "other"))[0]["id"] == other.id
    failed = [job["id"] for job in await desk.told("jobs", "--state", "failed", "-n", "2")]
    assert failed == [other.id, bad.id]
    assert good.id in await desk.ask("jobs")


async def test_what_was_told_survives_the_daemons_death(
    broker: Endpoint, engine: Endpoint, busybox_image: str, tmp_path: Path
) -> None:
    async with open_site(
        broker=broker.url, engine=engine.url, image=busybox_image, folder=tmp_path, ns=f"t{token_hex(5)}"
    ) as site:
        async with site.daemon() as first:
            await first.ready()
            async with open_submitter(site.broker, site.ns) as acme:
                job = await acme.run(sh("echo kept"))
                await first.kill()
        async with site.daemon() as second, open_submitter(site.broker, site.ns) as acme:
            await second.ready()
            desk = Desk(site=site, daemon=second, acme=acme)

            async def known() -> bool:
                return job.id in [one["id"] for one in await desk.told("jobs", "--state", "finished")]

            await eventually(known, "what the first life may not have written is told again", 60)
            (record,) = await desk.told("status", job.id)
            assert record | job.result == record
            assert await desk.ask("logs", job.id) == "kept\n"

"""What operators and their tools read of a daemon."""

import pytest
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.submitter import Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]


async def test_health_and_readiness(daemon: Daemon) -> None:
    await daemon.ready()
    assert await daemon.get("/healthz") == (200, "ok\n")
    assert await daemon.get("/readyz") == (200, "[]")
    assert (await daemon.get("/"))[0] == 200
    assert (await daemon.get("/nothing"))[0] == 404


async def test_what_is_counted_of_jobs(acme: Submitter, daemon: Daemon) -> None:
    before = await daemon.metrics()
    await acme.run(sh("echo out; echo error >&2"))
    await acme.run(["false"])
    await daemon.clean()
    after = await daemon.metrics()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["runner_jobs_total"] == 2
    assert grown["runner_log_bytes_total"] == len("out\n") + len("error\n")
    assert grown["runner_containers_created_total"] == grown["runner_containers_removed_total"] == 2
    assert grown["runner_start_seconds_count"] == 2
    assert after["runner_containers_live"] == after["runner_claimed_cpus"] == after["runner_jobs_running"] == 0
    assert after["runner_amqp_up"] == after["runner_engine_up"] == after["runner_build_info"] == 1
    assert (after["runner_capacity_cpus"], after["runner_capacity_memory_bytes"]) == (64, 4 * 2**30)


async def test_the_labels_of_what_is_counted(acme: Submitter, daemon: Daemon) -> None:
    await acme.run(["false"])
    await daemon.clean()
    _, text = await daemon.get("/metrics")
    assert 'runner_jobs_total{outcome="failed",stack="e2e-plain"}' in text
    assert 'runner_dead_total{reason="rejected"}' in text
    assert 'runner_job_seconds_count{phase="cleanup",stack="e2e-plain"}' in text


async def test_a_stack_that_nobody_has_does_not_become_a_label(acme: Submitter, daemon: Daemon) -> None:
    job = await acme.submit(stack="e2e-made-up", limits={"disk": "2g"})
    await job.finished()
    job.ended("rejected", blame="request", reason="limits.disk")
    await acme.dead_letter()
    text = ""

    async def counted() -> bool:
        nonlocal text
        _, text = await daemon.get("/metrics")
        return 'runner_jobs_total{outcome="rejected",stack="unknown"}' in text

    await eventually(counted, "it is counted")
    assert "e2e-made-up" not in text


async def test_what_runs_is_shown_while_it_runs(acme: Submitter, daemon: Daemon) -> None:
    job = await acme.submit(sh("echo up; exec sleep 60"), limits={"cpus": 0.25})
    await job.wrote("up\n")
    metrics = await daemon.metrics()
    assert metrics["runner_jobs_running"] == metrics["runner_containers_live"] == 1
    assert metrics["runner_claimed_cpus"] == 0.25
    assert metrics["runner_claimed_memory_bytes"] == 20 * 2**20
    await acme.cancel(job)
    await job.finished()

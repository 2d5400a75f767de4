"""How jobs end, and what is said of it."""

import pytest
from tests.e2e.submitter import Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

RAN = ["claimed", "started", "finished"]
STOPPED = ["claimed", "started", "stopping", "finished"]

USE_TOO_MUCH_MEMORY = "tail /dev/zero"


async def test_the_smallest_message_is_a_job(acme: Submitter) -> None:
    body = b'{"stack": "e2e-plain", "command": ["echo", "hi"]}'
    job = await acme.publish(body, job_id="smallest", message_id="smallest")
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0, reason="exited with code 0", oom_seen=False, tail=[])
    assert job.kinds == RAN
    assert job.text() == "hi\n"
    assert job.result["attempt"] == 1
    assert job.result["logs"] == {
        "stdout_bytes": 3,
        "stderr_bytes": 0,
        "omitted_bytes": 0,
        "omitted_lines": 0,
        "complete": True,
    }


async def test_a_job_without_a_command_runs_its_stacks(acme: Submitter) -> None:
    job = await acme.run(name="a name", labels={"team": "blue"})
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "from the stack\n"
    assert all((event["name"], event["labels"]) == ("a name", {"team": "blue"}) for event in job.events)


async def test_what_started_says(acme: Submitter) -> None:
    job = await acme.run(["true"])
    started = await job.event("started")
    assert len(started["container"]) == 64
    assert started["image"].startswith("sha256:")
    assert started["warm"] is False
    assert started["deadline"] > started["time"]


async def test_times_and_usage_are_told(acme: Submitter) -> None:
    job = await acme.run(sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"))
    times, seconds, usage = (job.result[name] for name in ("times", "seconds", "usage"))
    assert times["published"] <= times["claimed"] <= times["started"] <= times["ended"]
    assert 0 < seconds["run"] < seconds["total"]
    assert usage["cpu_seconds"] > 0
    assert usage["memory_peak_bytes"] > 0


async def test_an_exit_code_other_than_0_has_failed(acme: Submitter) -> None:
    job = await acme.run(sh("echo what happened >&2; exit 3"))
    job.ended("failed", blame="job", exit_code=3, reason="exited with code 3", oom_seen=False)
    assert job.kinds == RAN
    assert [(line["s"], line["m"]) for line in job.result["tail"]] == [("err", "what happened")]


async def test_a_job_that_a_signal_of_its_own_ends_has_failed(acme: Submitter) -> None:
    job = await acme.run(sh("kill -USR1 $$"))
    job.ended("failed", blame="job", signal=10, reason="SIGUSR1")
    assert job.kinds == RAN


async def test_a_time_out_ends_a_job_that_does_not_mind(acme: Submitter) -> None:
    job = await acme.run(["sleep", "60"], limits={"timeout": "1s"})
    job.ended("timed_out", blame="job", signal=15, reason="ran for 1s, its time-out")
    assert job.kinds == STOPPED
    assert (await job.event("stopping"))["reason"] == "timeout"
    assert 1.0 <= job.result["seconds"]["run"] < 4


async def test_a_time_out_lets_a_job_say_goodbye(acme: Submitter) -> None:
    script = "trap 'echo goodbye; exit 5' TERM; while :; do sleep 0.1; done"
    job = await acme.run(sh(script), limits={"timeout": "3s"})
    job.ended("timed_out", blame="job", exit_code=5, reason="ran for 3s, its time-out")
    assert job.kinds == STOPPED
    assert job.text() == "goodbye\n"


async def test_a_time_out_kills_a_job_that_ignores_it_after_its_grace(acme: Submitter) -> None:
    job = await acme.run(sh("trap '' TERM; sleep 60"), limits={"timeout": "3s", "grace": "1s"})
    job.ended("timed_out", blame="job", signal=9, reason="ran for 3s, its time-out")
    assert job.kinds == STOPPED
    assert 4.0 <= job.result["seconds"]["run"] < 8


async def test_a_job_that_needs_too_much_memory_is_killed(acme: Submitter) -> None:
    job = await acme.run(sh(f"exec {USE_TOO_MUCH_MEMORY}"))
    job.ended("oom_killed", blame="job", signal=9, oom_seen=True, reason="more than 16 MiB of memory")
    assert job.kinds == RAN
    assert job.text() == ""


async def test_a_job_that_survives_the_killing_of_a_child_succeeds(acme: Submitter) -> None:
    job = await acme.run(sh(f"{USE_TOO_MUCH_MEMORY}; echo survived"))
    job.ended("succeeded", blame="none", exit_code=0, oom_seen=True, reason="killed for memory")
    assert job.kinds == RAN
    assert job.text() == "survived\n"


async def test_a_job_that_fails_on_a_full_disk_is_told_so(acme: Submitter) -> None:
    job = await acme.run(sh("head -c 8m /dev/zero >/work/big"))
    job.ended("disk_limit", blame="job", exit_code=1, reason="/work was full (4 MiB); raise limits.disk")
    assert job.kinds == RAN


async def test_a_job_that_copes_with_a_full_disk_succeeds(acme: Submitter) -> None:
    job = await acme.run(sh("head -c 8m /dev/zero >/work/big || echo coped"))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "coped\n"


async def test_a_command_that_is_not_there(acme: Submitter) -> None:
    job = await acme.run(["no-such-program"])
    job.ended("failed", blame="request", exit_code=127, reason="'no-such-program', not found in stack e2e-plain")
    assert job.kinds == RAN


async def test_a_command_that_cannot_be_executed(acme: Submitter) -> None:
    job = await acme.run(["/etc/passwd"])
    job.ended("failed", blame="request", exit_code=126, reason="'/etc/passwd', cannot be executed (EACCES)")
    assert job.kinds == RAN


async def test_a_stacks_own_command_that_is_not_there_is_its_operators_fault(acme: Submitter) -> None:
    job = await acme.run(stack="e2e-wrong-command")
    job.ended("failed", blame="operator", exit_code=127, reason="the command of stack e2e-wrong-command")


async def test_a_stack_may_end_a_job_that_writes_too_much(acme: Submitter) -> None:
    job = await acme.run(sh("yes"), stack="e2e-flood")
    job.ended("output_limit", blame="job", signal=15, reason="wrote more than 64 KiB of log")
    assert job.kinds == STOPPED
    assert (await job.event("stopping"))["reason"] == "output_limit"


async def test_whatever_a_job_leaves_running_ends_with_it(acme: Submitter) -> None:
    job = await acme.run(sh("sleep 60 & sleep 60 & echo done"))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "done\n"
    assert job.result["seconds"]["run"] < 10


async def test_a_running_job_is_cancelled(acme: Submitter) -> None:
    job = await acme.submit(sh("echo up; exec sleep 60"))
    await job.wrote("up\n")
    await acme.cancel(job, "no longer wanted")
    await job.finished()
    job.ended("cancelled", blame="none", signal=15, reason="cancelled: no longer wanted")
    assert job.kinds == STOPPED
    assert (await job.event("stopping"))["reason"] == "cancelled"


async def test_another_tenants_job_of_the_same_id_is_not_cancelled(acme: Submitter) -> None:
    mine = await acme.submit(sh("echo up; exec sleep 60"), id="twin")
    theirs = await acme.submit(sh("echo up; exec sleep 60"), id="twin", to="default.normal.globex")
    await mine.wrote("up\n")
    await theirs.wrote("up\n")
    await acme.cancel(mine)
    await mine.finished()
    mine.ended("cancelled", blame="none", signal=15, reason="cancelled")
    assert theirs.kinds == ["claimed", "started"]
    await acme.cancel(theirs)
    await theirs.finished()


async def test_one_job_is_run_once_however_often_it_is_published(acme: Submitter) -> None:
    job = await acme.submit(sh("echo up; exec sleep 60"), id="once")
    await job.wrote("up\n")
    await acme.submit(["true"], id="once")
    assert "has this job" in (await job.event("duplicate"))["reason"]
    await acme.cancel(job)
    await job.finished()
    await acme.submit(["true"], id="once", to="default.high.acme")
    await job.event("duplicate", 2)
    assert job.kinds == ["claimed", "started", "duplicate", "stopping", "finished", "duplicate"]


async def test_a_stack_that_is_missing_is_waited_for(acme: Submitter) -> None:
    job = await acme.submit(["echo", "here now"], stack="e2e-late")
    deferred = await job.event("deferred")
    assert deferred["reason"] == 'this worker has no stack "e2e-late"'
    assert (deferred["delay"], deferred["attempt"]) == (1.0, 1)
    await acme.cancel(job, "tired of waiting")
    await job.finished()
    job.ended("cancelled", blame="none", reason="cancelled: tired of waiting")
    # It may have come by more than once before it was cancelled.
    assert (set(job.kinds[:-1]), job.kinds[-1]) == ({"deferred"}, "finished")


async def test_a_stack_that_is_not_built_is_waited_for(acme: Submitter) -> None:
    job = await acme.submit(stack="e2e-unbuilt")
    assert "runner stacks build e2e-unbuilt" in (await job.event("deferred"))["reason"]
    await acme.cancel(job)
    await job.finished()


async def test_a_job_that_is_too_big_for_this_machine_is_passed_on(acme: Submitter) -> None:
    job = await acme.submit(["true"], limits={"memory": "5g"})
    assert "needs 5" in (await job.event("deferred"))["reason"]
    await acme.cancel(job)
    await job.finished()

"""What a job sees, gets, and gives back."""

import asyncio
import json
from datetime import datetime

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.submitter import STACK, Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_environment(acme: Submitter, daemon: Daemon) -> None:
    body = {
        "id": "env",
        "stack": STACK,
        "name": "the name",
        "command": ["env"],
        "env": {"MINE": "a b=c"},
        "payload": None,
        "limits": {"timeout": "50s"},
    }
    job = await acme.publish(json.dumps(body).encode(), job_id="env", headers={"traceparent": TRACE})
    await job.finished()
    seen = dict(line["m"].split("=", 1) for line in job.lines)
    deadline = float(seen.pop("JOB_DEADLINE"))
    told = datetime.fromisoformat((await job.event("started"))["deadline"]).timestamp()
    assert abs(deadline - told) <= 1
    path = seen.pop("PATH")
    assert "/bin" in path.split(":")
    assert seen == {
        "HOME": "/work",
        "MINE": "a b=c",
        "TRACEPARENT": TRACE,
        "JOB_ID": "env",
        "JOB_NAME": "the name",
        "JOB_TENANT": "acme",
        "JOB_ATTEMPT": "1",
        "JOB_STACK": STACK,
        "JOB_WORKER": daemon.site.ns,
        "JOB_PAYLOAD_FILE": "/job/payload",
        "JOB_OUTPUT_FILE": "/job/output",
        "JOB_PROGRESS_FILE": "/job/progress",
    }


async def test_nothing_is_named_that_was_not_given(acme: Submitter) -> None:
    job = await acme.run(["env"])
    names = {line["m"].split("=", 1)[0] for line in job.lines}
    assert names & {"JOB_PAYLOAD_FILE", "JOB_CODE_DIR", "JOB_SECRETS_DIR", "TRACEPARENT"} == set()


async def test_a_job_is_nobody_and_starts_in_an_empty_place_of_its_own(acme: Submitter) -> None:
    job = await acme.run(sh("id -u; id -g; pwd; ls -A | wc -l; stat -c '%u %a' /work"))
    assert job.text().split("\n") == ["65534", "65534", "/work", "0", "65534 700", ""]


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])  # noqa: S108 - the job's own
async def test_places_that_can_be_written(acme: Submitter, place: str) -> None:
    job = await acme.run(sh(f"echo kept >{place}/file && cat {place}/file"))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "kept\n"


@pytest.mark.parametrize("place", ["/work", "/tmp"])  # noqa: S108 - the job's own
async def test_places_that_programs_can_be_run_from(acme: Submitter, place: str) -> None:
    job = await acme.run(sh(f"cp /bin/busybox {place}/echo && {place}/echo from {place}"))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == f"from {place}\n"


async def test_the_rest_is_read_only(acme: Submitter) -> None:
    places = ["/", "/bin", "/etc", "/job", "/.runner-init"]
    job = await acme.run(sh("".join(f"touch {place}/x || touch {place}; echo $?; " for place in places)))
    assert job.text() == "1\n" * len(places)
    assert job.text("err").count("Read-only file system") + job.text("err").count("denied") >= len(places)


async def test_there_is_no_network(acme: Submitter) -> None:
    job = await acme.run(sh("ls /sys/class/net; exec nc -w 1 192.0.2.1 80"))
    job.ended("failed", blame="job", exit_code=1)
    assert job.text() == "lo\n"
    assert "Network is unreachable" in job.text("err")


async def test_there_are_no_privileges(acme: Submitter) -> None:
    job = await acme.run(["grep", "-E", "^(CapEff|CapBnd|NoNewPrivs)", "/proc/self/status"])
    assert job.text().split() == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]


@pytest.mark.parametrize(
    ("payload", "file"),
    [("a text\n", "a text\n"), ({"list": [1, "ä"]}, '{"list": [1, "ä"]}'), (None, "null"), ("", "")],
    ids=["text", "object", "null", "empty"],
)
async def test_the_payload_is_in_a_file(acme: Submitter, payload: object, file: str) -> None:
    job = await acme.run(sh('cat "$JOB_PAYLOAD_FILE"; echo "|"'), payload=payload)
    assert job.text() == f"{file}|\n"


async def test_standard_input_is_given_and_closed(acme: Submitter) -> None:
    job = await acme.run(sh("cat; echo end"), stdin="line 1\nline 2\n")
    assert job.text() == "line 1\nline 2\nend\n"


async def test_a_long_standard_input_arrives_whole(acme: Submitter) -> None:
    job = await acme.run(["wc", "-c"], stdin="x" * 400_000)
    assert job.text().strip() == "400000"


async def test_standard_input_is_empty_unless_it_is_given(acme: Submitter) -> None:
    job = await acme.run(sh("cat; echo end"))
    assert job.text() == "end\n"


async def test_the_output_is_in_the_result(acme: Submitter) -> None:
    job = await acme.run(sh("""echo '{"answer": 42}' >"$JOB_OUTPUT_FILE" """))
    job.ended("succeeded", blame="none", exit_code=0, output={"answer": 42})


async def test_a_job_that_failed_has_an_output_too(acme: Submitter) -> None:
    job = await acme.run(sh("""echo '"half"' >"$JOB_OUTPUT_FILE"; exit 1"""))
    job.ended("failed", blame="job", exit_code=1, output="half")


async def test_an_output_that_is_not_json_fails_the_job(acme: Submitter) -> None:
    job = await acme.run(sh('echo "{" >"$JOB_OUTPUT_FILE"'))
    job.ended("failed", blame="job", exit_code=0, output=None, reason="JOB_OUTPUT_FILE is not valid JSON")


async def test_an_output_that_is_too_large_fails_the_job(acme: Submitter) -> None:
    job = await acme.run(sh("""head -c 65537 /dev/zero | tr '\\0' 1 >"$JOB_OUTPUT_FILE" """))
    job.ended("failed", blame="job", exit_code=0, output=None, reason="JOB_OUTPUT_FILE holds more than 64 KiB")


@pytest.mark.parametrize(("written", "told"), [('{"done": 0.5}', {"done": 0.5}), ("half way", "half way\n")])
async def test_progress_is_told_while_the_job_runs(acme: Submitter, written: str, told: object) -> None:
    job = await acme.submit(sh(f"""echo '{written}' >"$JOB_PROGRESS_FILE"; exec sleep 60"""))
    assert (await job.event("progress"))["progress"] == told
    await acme.cancel(job)
    await job.finished()
    assert job.kinds == ["claimed", "started", "progress", "stopping", "finished"]


async def test_jobs_of_one_moment_do_not_meet(acme: Submitter) -> None:
    script = 'echo "$JOB_ID" >/work/mine; echo "\\"$JOB_ID\\"" >"$JOB_OUTPUT_FILE"; ls /work; cat /work/*'
    jobs = await asyncio.gather(*(acme.run(sh(script)) for _ in range(8)))
    for job in jobs:
        job.ended("succeeded", blame="none", exit_code=0, output=job.id)
        assert job.text() == f"mine\n{job.id}\n"

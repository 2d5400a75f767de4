"""What jobs write: all of it, in order, or an exact account of what was left out."""

import asyncio

import aiodocker
import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.submitter import Followed, Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

RUNS = 100
MIB = 2**20


async def run_often(acme: Submitter, command: list[str]) -> list[Followed]:
    """Run one command many times, as many at once as there is room for."""
    jobs = await asyncio.gather(*(acme.submit(command, limits={"cpus": 1}) for _ in range(RUNS)))
    return [await job.finished(timeout=120) for job in jobs]


def is_numbered_throughout(job: Followed) -> bool:
    return [batch["seq"] for batch in job.batches] == list(range(1, len(job.batches) + 1))


async def test_nothing_is_lost_of_a_job_that_ends_at_once(acme: Submitter) -> None:
    written = "".join(f"line {number}\n" for number in range(1, 21))
    for job in await run_often(acme, ["printf", "line %d\\n", *map(str, range(1, 21))]):
        job.ended("succeeded", blame="none", exit_code=0)
        assert job.text() == written
        assert is_numbered_throughout(job)
        assert job.result["logs"] == {
            "stdout_bytes": len(written),
            "stderr_bytes": 0,
            "omitted_bytes": 0,
            "omitted_lines": 0,
            "complete": True,
        }


async def test_nothing_is_lost_of_a_last_line_without_its_newline(acme: Submitter) -> None:
    for job in await run_often(acme, sh("printf 'first\\nlast'; printf 'err\\nlast of err' >&2")):
        job.ended("succeeded", blame="none", exit_code=0)
        assert (job.text(), job.text("err")) == ("first\nlast", "err\nlast of err")
        assert job.result["logs"]["complete"] is True


async def test_a_line_is_shown_as_soon_as_it_is_written(acme: Submitter, daemon: Daemon) -> None:
    wait = "until [ $told ]; do sleep 0.1; done; told="
    # The shell has a word to say of each sleep that the signal ends.
    script = f"exec 2>/dev/null; trap told=1 USR1; echo first; {wait}; echo second; {wait}; printf half; exec sleep 600"
    job = await acme.submit(sh(script))
    async with aiodocker.Docker(url=daemon.site.engine) as docker:
        container = docker.containers.container((await job.event("started"))["container"])
        # What is written only when the line before it was shown comes in a batch of its own.
        for line in ("first\n", "second\n"):
            await job.wrote(line)
            await container.kill(signal="USR1")
    await job.wrote("half")
    assert job.kinds == ["claimed", "started"]
    await acme.cancel(job)
    await job.finished()
    assert job.text() == "first\nsecond\nhalf"
    assert [batch["off"] for batch in job.batches] == [
        {"out": 0, "err": 0},
        {"out": 6, "err": 0},
        {"out": 13, "err": 0},
        {"out": 17, "err": 0},
    ]


async def test_what_is_not_text_is_replaced(acme: Submitter) -> None:
    job = await acme.run(sh("printf 'a\\377b\\0c\\r\\n\\303\\244\\n'"))
    assert job.text() == "a\ufffdb\0c\r\nä\n"
    assert job.result["logs"]["stdout_bytes"] == 10


async def test_a_long_line_comes_in_parts(acme: Submitter) -> None:
    job = await acme.run(sh("head -c 40000 /dev/zero | tr '\\0' x; echo"))
    assert job.text() == "x" * 40000 + "\n"
    assert all(len(line["m"]) <= 16384 for line in job.lines)
    assert [line.get("p", False) for line in job.lines] == [True] * (len(job.lines) - 1) + [False]


async def test_a_failed_job_has_its_last_lines_in_its_result(acme: Submitter) -> None:
    job = await acme.run(sh("seq 100; exit 1"))
    assert [line["m"] for line in job.result["tail"]] == [str(number) for number in range(81, 101)]


async def test_a_flood_is_cut_to_its_first_and_last_half_and_counted(acme: Submitter, daemon: Daemon) -> None:
    count, length = MIB, 64
    script = f'BEGIN {{ for (i = 1; i <= {count}; i++) printf "%063d\\n", i }}'
    before = daemon.resident()
    daemon.forget_peak()
    job = await acme.submit(["awk", script], limits={"cpus": 2, "log_bytes": "4m"})
    await job.finished(timeout=60)
    job.ended("succeeded", blame="none", exit_code=0)
    peak = daemon.resident("VmHWM")

    kept = [int(line) for line in job.text().splitlines()]  # a line may have come in parts
    half = 2 * MIB // length
    (note,) = (line["m"] for line in job.lines if line["s"] == "sys")
    logs = job.result["logs"]
    assert kept[:half] == list(range(1, half + 1))
    assert kept[half:] == list(range(count - len(kept) + half + 1, count + 1))
    assert 0 <= 2 * half - len(kept) <= 1
    assert is_numbered_throughout(job)
    assert (logs["stdout_bytes"], logs["stderr_bytes"], logs["complete"]) == (count * length, 0, True)
    assert logs["omitted_lines"] == count - len(kept)
    assert logs["omitted_bytes"] == logs["omitted_lines"] * length
    assert note == f"… {logs['omitted_lines']} lines, {logs['omitted_bytes']} bytes omitted …"
    assert job.live, "nothing of it was shown live"
    assert peak - before < 40 * MIB

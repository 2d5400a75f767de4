"""A job that floods both streams, and what its neighbours notice of it."""

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.submitter import Followed, Submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MIB = 2**20
FLOOD = sh("yes 'a line on standard error' >&2 & exec yes 'a line on standard output'")
COUNTS = sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
LINES = 20


def streams(job: Followed) -> set[str]:
    return {line["s"] for line in job.lines}


async def test_a_flood_of_both_streams_holds_up_no_other_jobs_lines(acme: Submitter, daemon: Daemon) -> None:
    before = daemon.resident()
    daemon.forget_peak()
    flood = await acme.submit(FLOOD, limits={"cpus": 1, "log_bytes": "4m"})
    await flood.until(lambda: streams(flood) == {"out", "err"} and bool(flood.live), "more than is kept of it")

    neighbour = await acme.submit(COUNTS)
    for number in range(1, LINES + 1):
        shown = len(flood.live)
        await neighbour.wrote(f"{number}\n")
        if number == LINES // 2:
            await flood.until(lambda shown=shown: len(flood.live) > shown, "still more")  # type: ignore[misc]
    assert "finished" not in flood.kinds
    await acme.cancel(flood)
    await acme.cancel(neighbour)
    await flood.finished(timeout=60)
    await neighbour.finished()
    peak = daemon.resident("VmHWM")

    told = neighbour.text().split()
    assert told == [str(number) for number in range(1, len(told) + 1)]
    logs = flood.result["logs"]
    kept = sum(len(flood.text(stream)) for stream in ("out", "err"))
    assert logs["complete"], logs
    assert logs["omitted_bytes"] > MIB
    assert kept + logs["omitted_bytes"] == logs["stdout_bytes"] + logs["stderr_bytes"], logs
    assert min(logs["stdout_bytes"], logs["stderr_bytes"]) > MIB
    assert peak - before < 40 * MIB

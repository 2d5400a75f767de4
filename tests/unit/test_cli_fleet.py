"""What the commands about the fleet tell a person."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.adapters.amqp.depths import Depth
from runner.app.queues import HeldBack, held_back, why_jobs_wait
from runner.cli.status import describe
from runner.cli.table import ago, facts, later, table
from runner.client import Found
from runner.job import Priority
from runner.ports import QueueKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SHARED = QueueKey(pool="default", priority=Priority.NORMAL, tenant=None)
ACMES = QueueKey(pool="default", priority=Priority.NORMAL, tenant="acme")


def worker(name: str = "vm-1", **more: Any) -> dict[str, Any]:
    free = {"cpus": 0.5, "memory": 6 * 2**30, "slots": 3}
    return {"worker": name, "pools": ["default"], "state": "taking", "free": free, **more}


def why(queue: QueueKey, *workers: dict[str, Any], consumers: int = 0) -> str:
    return why_jobs_wait(queue, Depth(queue="q", ready=5, consumers=consumers), workers)


def test_a_pool_that_no_worker_serves_is_named() -> None:
    assert why(SHARED) == "no worker that answers serves pool default"
    assert why(SHARED, worker(pools=["other"])) == "no worker that answers serves pool default"


def test_workers_that_take_nothing_are_named_with_their_reasons() -> None:
    told = why(SHARED, worker(state="paused", problems=["operator: paused"]), worker("vm-2", state="draining"))
    assert told == "no worker of pool default takes jobs: vm-1 is paused (operator: paused); vm-2 is draining"


def test_the_largest_room_is_named_when_all_are_full() -> None:
    small = worker("vm-2", free={"cpus": 8, "memory": 2**30, "slots": 3})
    none = worker("vm-3", free={"cpus": 8, "memory": 9 * 2**30, "slots": 0})
    told = why(SHARED, small, worker(), none)
    assert told == "the workers of pool default have no room: the largest is 0.5 CPUs, 6 GiB and 3 slots on vm-1"


def test_a_tenant_at_its_cap_is_named() -> None:
    capped = worker(capped=["acme"])
    assert why(ACMES, capped) == "tenant acme runs as many jobs as its max_running allows"
    assert why(ACMES, capped, worker("vm-2"), consumers=1) == "on their way"
    assert why(SHARED, capped, consumers=1) == "on their way"


def test_what_workers_hold_back_is_told_job_by_job() -> None:
    told = held_back([worker(waiting={"acme/one": "needs 1 CPUs, 0.5 are free"}), worker("vm-2")])
    assert told == [HeldBack(worker="vm-1", tenant="acme", id="one", why="needs 1 CPUs, 0.5 are free")]


def described(state: str, record: dict[str, Any] | None = None, why: str | None = None) -> list[list[str]]:
    found = Found(worker="vm-1", state=state, why=why, record=record, claims=())
    head, *lines = describe(found, "acme", "one")
    return [[head], *(line.split(maxsplit=1) for line in lines)]


def test_a_job_that_waits_says_why_and_nothing_that_is_unknown() -> None:
    told = described("queued", why="needs more")
    assert told == [["job one of acme: queued"], ["why", "needs more"], ["worker", "vm-1"]]


@pytest.mark.parametrize(
    ("end", "head"),
    [
        ({"outcome": "succeeded", "exit_code": 0}, "succeeded"),
        ({"outcome": "failed", "exit_code": 3}, "failed (exit code 3)"),
        ({"outcome": "failed", "signal": 11}, "failed (signal 11)"),
        ({"outcome": "rejected", "exit_code": None}, "rejected"),
    ],
)
def test_a_job_that_ended_begins_with_how(end: dict[str, Any], head: str) -> None:
    assert described("finished", end)[0] == [f"job one of acme: {head}"]


def test_a_job_that_starts_again_says_when() -> None:
    record = {"time": "2030-01-01T00:00:00.000000Z", "delay": 90.0, "reason": "exited with code 1"}
    told = described("retrying", record)
    assert ["again", "not before 2030-01-01 00:01:30"] in told
    assert ["reason", "exited with code 1"] in told


def test_what_a_job_used_and_wrote_is_told() -> None:
    record = {
        "outcome": "succeeded",
        "usage": {"cpu_seconds": 1.234, "memory_peak_bytes": 2**20},
        "logs": {"stdout_bytes": 5, "stderr_bytes": 6, "omitted_bytes": 7, "complete": False},
        "output": {"a": [1]},
    }
    told = described("finished", record)
    assert ["used", "1.23 CPU seconds, 1 MiB of memory at most"] in told
    assert ["log", "5 bytes to stdout, 6 to stderr, 7 left out, incomplete"] in told
    assert ["output", '{"a": [1]}'] in told


def test_columns_are_as_wide_as_they_have_to_be() -> None:
    assert table(("A", "LONG"), [("xyz", "1"), ("", "")]) == ["A    LONG", "xyz  1", ""]
    assert facts({"a": "1", "long": None, "bc": "2"}) == ["  a     1", "  bc    2"]


@pytest.mark.parametrize(
    ("past", "told"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (-5, "0s"),
    ],
)
def test_how_long_ago_is_told_in_one_unit(past: int, told: str) -> None:
    assert ago(NOW - timedelta(seconds=past), NOW) == told


def test_what_is_no_time_is_none() -> None:
    assert ago(None, NOW) == "-"
    assert later("soon", 5) is None
    assert later("2030-01-01T00:00:00+00:00", None) is None

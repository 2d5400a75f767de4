"""How a container's end is read from what the init or the engine says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.adapters.docker import ending
from runner.init.wire import Place, Report
from runner.job import Bytes, Exit, Usage

MIB = 2**20
DISK = Bytes(64 * MIB)
ROOMY = Place(path="/work", bytes_total=DISK, bytes_free=DISK - MIB, inodes_total=1024, inodes_free=1000)


def report(**told: Any) -> Report:
    usual: dict[str, Any] = {
        "status": 0,
        "exec_errno": 0,
        "ended": datetime(2026, 1, 2, tzinfo=UTC),
        "cpu_seconds": 0.25,
        "memory_peak_bytes": 5 * MIB,
        "oom_kills": 0,
        "places": (ROOMY,),
    }
    return Report(**(usual | told))


@pytest.mark.parametrize(
    ("status", "code", "by_signal"),
    [(0, 0, None), (3 << 8, 3, None), (137 << 8, 137, None), (9, None, 9), (15 | 0x80, None, 15), (-1, None, None)],
)
def test_a_wait_status(status: int, code: int | None, by_signal: int | None) -> None:
    end = ending.reported(report(status=status), disk=DISK, output=b"{}", complete=True)
    assert end == Exit(
        code=code,
        signal=by_signal,
        usage=Usage(cpu_seconds=0.25, memory_peak_bytes=5 * MIB),
        output=b"{}",
        complete=True,
    )


def test_what_else_the_init_reports() -> None:
    end = ending.reported(
        report(status=-1, exec_errno=2, oom_kills=3, cpu_seconds=None, memory_peak_bytes=None),
        disk=DISK,
        output=None,
        complete=False,
    )
    assert end == Exit(exec_errno=2, oom_kills=3)


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ({"ExitCode": 0}, Exit(code=0)),
        ({"ExitCode": 1, "OOMKilled": True}, Exit(code=1, oom_kills=1)),
        ({"ExitCode": 128}, Exit(code=128)),
        ({"ExitCode": 137, "OOMKilled": False}, Exit(signal=9)),
        ({"ExitCode": 192}, Exit(signal=64)),
        ({"ExitCode": 255}, Exit(code=255)),
    ],
)
def test_what_the_engine_knows(state: dict[str, Any], end: Exit) -> None:
    used = Usage(cpu_seconds=1.5, memory_peak_bytes=4096)
    assert ending.inspected(state, used=used, output=None) == replace(end, usage=used)


@pytest.mark.parametrize(
    ("told", "state", "found"),
    [
        ({}, {"ExitCode": 0, "OOMKilled": False}, []),
        ({"status": 3 << 8}, {"ExitCode": 3}, []),
        ({"status": 9}, {"ExitCode": 137}, []),
        ({"status": -1, "exec_errno": 2}, {"ExitCode": 127}, []),
        ({"status": -1, "exec_errno": 13}, {"ExitCode": 126}, []),
        ({"oom_kills": 2}, {"ExitCode": 0, "OOMKilled": True}, []),
        ({"oom_kills": 2}, {"ExitCode": 0, "OOMKilled": False}, []),
        ({"oom_kills": None}, {"ExitCode": 0, "OOMKilled": True}, []),
        ({}, {"ExitCode": 0, "OOMKilled": True}, [ending.Disagreement(ending.Matter.OOM, 0, 1)]),
        ({}, {"ExitCode": 137}, [ending.Disagreement(ending.Matter.EXIT_CODE, 0, 137)]),
        ({"status": 9}, {"ExitCode": 0}, [ending.Disagreement(ending.Matter.EXIT_CODE, 137, 0)]),
    ],
)
def test_what_the_engine_contradicts(
    told: dict[str, Any], state: dict[str, Any], found: list[ending.Disagreement]
) -> None:
    assert ending.disagreements(report(**told), state) == found


@pytest.mark.parametrize(
    ("status", "started", "over"),
    [
        ("exited", "2026-01-02T03:04:05.6Z", True),
        ("dead", "2026-01-02T03:04:05.6Z", True),
        ("running", "2026-01-02T03:04:05.6Z", False),
        ("created", "0001-01-01T00:00:00Z", False),
        ("exited", "0001-01-01T00:00:00Z", False),
    ],
)
def test_a_container_that_never_ran_has_not_ended(status: str, started: str, over: bool) -> None:  # noqa: FBT001
    assert ending.over({"Status": status, "StartedAt": started}) is over


@pytest.mark.parametrize(
    ("end", "suspicious"),
    [
        (Exit(signal=9), True),
        (Exit(signal=15), True),
        (Exit(code=137), True),
        (Exit(code=143), True),
        (Exit(signal=9, oom_kills=1), False),
        (Exit(signal=11), False),
        (Exit(code=1), False),
        (Exit(code=0), False),
    ],
)
def test_an_end_that_may_be_the_engines_doing(end: Exit, suspicious: bool) -> None:  # noqa: FBT001
    assert ending.stopped_from_outside(end) is suspicious


def place(path: str, *, total: int = 64 * MIB, free: int = 64 * MIB, files: int = 10) -> Place:
    return Place(path=path, bytes_total=total, bytes_free=free, inodes_total=1024, inodes_free=files)


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ((place("/work"), place("/tmp")), None),  # noqa: S108
        ((place("/work"), place("/tmp", free=0)), "/tmp was full (64 MiB)"),  # noqa: S108
        ((place("/work", total=4096, free=0),), "/work was full (4 KiB)"),
        ((place("/work", files=0),), "/work had no room for another file (it had 1024)"),
        (
            (place("/work", free=24 * MIB), place("/tmp", free=24 * MIB)),  # noqa: S108
            "/work, /tmp together held more than 64 MiB",
        ),
        ((place("/work", free=32 * MIB), place("/tmp", free=32 * MIB)), None),  # noqa: S108
        ((place("/work"), place("/scratch", total=4 * DISK, free=2 * DISK)), None),
    ],
)
def test_what_was_full(places: tuple[Place, ...], sentence: str | None) -> None:
    full = ending.full_place(places, DISK)
    assert full == (None if sentence is None else ending.Full(sentence, "limits.disk"))


@pytest.mark.parametrize(
    ("end", "peak", "by_host"),
    [
        (Exit(signal=9, oom_kills=1), 71 * MIB, True),
        (Exit(code=1, oom_kills=1), 71 * MIB, True),
        (Exit(signal=9, oom_kills=1), 72 * MIB, False),
        (Exit(signal=9, oom_kills=1), 80 * MIB, False),
        (Exit(signal=9, oom_kills=1), None, False),  # the host cannot tell
        (Exit(signal=9), 5 * MIB, False),
        (Exit(code=0, oom_kills=1), 5 * MIB, False),  # it coped
        (Exit(exec_errno=2, oom_kills=1), 5 * MIB, False),
    ],
)
def test_a_job_that_was_not_near_its_limit_was_killed_by_its_host(
    end: Exit, peak: int | None, *, by_host: bool
) -> None:
    end = replace(end, usage=Usage(memory_peak_bytes=peak))
    assert ending.killed_by_host(end, Bytes(80 * MIB)) is by_host


@pytest.mark.parametrize(
    ("work", "output", "progress", "disk", "sentence"),
    [
        (45, 40, 0, DISK, "/work, /job/output, /job/progress together held more than 64 MiB"),
        (0, 50, 50, DISK, "/work, /job/output, /job/progress together held more than 64 MiB"),
        (1, 50, 65, DISK, "/job/progress held 65 MiB"),
        (24, 20, 20, DISK, None),
        (0, 1, 0, Bytes(0), "/job/output held 1 MiB"),
        (0, 1 / 32, 0, Bytes(0), None),
    ],
)
def test_results_count_as_memory_with_all_other_files(
    work: int, output: float, progress: int, disk: Bytes, sentence: str | None
) -> None:
    taken = {"output": Bytes(int(output * MIB)), "progress": Bytes(progress * MIB)}
    places = (place("/work", free=(64 - work) * MIB), place("/scratch", total=4 * DISK, free=DISK))
    end = ending.with_results(Exit(signal=9, oom_kills=1), places, taken, disk)
    assert end == Exit(signal=9, oom_kills=1, disk_full=sentence)
    assert ending.with_results(Exit(signal=9), places, taken, disk) == Exit(signal=9)


@pytest.mark.parametrize(
    ("scratch", "sentence"),
    [
        (place("/scratch", free=2 * MIB), "/scratch was full (64 MiB)"),
        (place("/scratch", free=2 * MIB + 1), None),
        (place("/scratch", total=1024 * MIB, free=4 * MIB), "/scratch was full (1024 MiB)"),
        (place("/scratch", total=1024 * MIB, free=4 * MIB + 1), None),
        (place("/scratch", files=0), "/scratch had no room for another file (it had 1024)"),
    ],
)
def test_a_real_disk_is_full_when_a_large_write_no_longer_fits(scratch: Place, sentence: str | None) -> None:
    full = ending.full_place((place("/work"), scratch), DISK)
    assert full == (None if sentence is None else ending.Full(sentence, "limits.scratch"))


@pytest.mark.parametrize(
    ("seconds", "end", "stopped"),
    [
        (0.5, Exit(code=0), True),
        (10, Exit(code=3), True),
        (3600, Exit(code=0), False),
        (None, Exit(code=0), False),
        (None, Exit(signal=15), True),
        (0.5, Exit(code=1, oom_kills=1), False),
    ],
)
def test_a_job_that_was_told_to_end_may_have_been_stopped_however_it_ended(
    seconds: float | None, end: Exit, *, stopped: bool
) -> None:
    ended = report().ended
    told = None if seconds is None else ended - timedelta(seconds=seconds)
    assert ending.stopped_from_outside(end, report(told_to_end=told)) is stopped

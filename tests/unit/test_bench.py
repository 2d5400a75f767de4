"""What the benchmarks make of their samples: no number may look better than it is."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bench import lifetime, report, throughput
from bench.crowd import Crowd, Member
from bench.figures import figure
from bench.found import Found, Table, at_most
from bench.latency import _where
from bench.lifetime import Sample
from bench.throughput import COLD, WARM, Rate


def samples(*, leak_kib: float = 0.0, slower_ms: float = 0.0) -> list[Sample]:
    return [
        Sample(
            jobs=jobs,
            resident_mib=70 + jobs * leak_kib / 1024,
            descriptors=40,
            wall_ms=100 + jobs * slower_ms,
            cpu_ms=10,
            engine_mib=120,
            engine_descriptors=60,
            engine_cpu_ms=30,
        )
        for jobs in range(100, 1200, 100)
    ]


def missed(found: Found) -> list[str]:
    return [target.what for target in found.targets if not target.met]


def test_a_small_leak_is_found() -> None:
    assert missed(lifetime._found(samples())) == []
    found = lifetime._found(samples(leak_kib=2.0))
    assert missed(found) == ["daemon: resident memory grows by"]
    assert found.targets[0].found == "2 KiB a job"


def test_jobs_that_get_slower_are_found() -> None:
    assert missed(lifetime._found(samples(slower_ms=0.05))) == ["time a job: second half, of the first"]


async def test_no_engine_to_look_at_is_no_result() -> None:
    stage = cast("Any", SimpleNamespace(site=SimpleNamespace(engine="unix:///no/such/engine.sock")))
    with pytest.raises(RuntimeError, match=r"unix:///no/such/engine\.sock, was not found"):
        await lifetime.measure(stage)


def rates(*per_second: float) -> list[Rate]:
    return [Rate(jobs=300, jobs_per_second=each, cpu_ms_per_job=10, pss_mib=70) for each in per_second]


def test_throughput_is_judged_cold_and_round_by_round() -> None:
    runs = {WARM: rates(30, 30, 30), "bare": rates(5, 10, 4), COLD: rates(9, 18, 8), "Celery": rates(4, 4, 4)}
    found = throughput._found(runs, {}, "bare", "Celery")
    assert missed(found) == ["cold: jobs a second, of the bare engine's best"]
    assert found.targets[0].found == "1.8"
    assert found.rows[0][3] == "6.00 (3.00 to 7.50)"


def crowd(member: Member) -> Crowd:
    return Crowd(
        namespace="jobs", stack="bench", exchange=cast("Any", None), control=cast("Any", None), queue=cast("Any", None),
        members={member.id: member},
    )  # fmt: skip


async def test_a_job_that_has_ended_is_not_taken_for_one_that_runs() -> None:
    member = Member(id="1", published=0.0)
    member.started.set()
    await crowd(member).begun([member])
    member.result = {"outcome": "failed", "reason": "it exited with code 1"}
    member.finished.set()
    with pytest.raises(RuntimeError, match="1 of 1 jobs have ended: it exited with code 1"):
        await crowd(member).begun([member])


def test_the_page_has_all_tables_and_notes() -> None:
    found = Found(
        title="Much",
        columns=["", "ms"],
        rows=[["all", "3"]],
        targets=[at_most("all", 3, 2, "ms")],
        notes=["Told by the clock."],
        tables=[Table(title="Where", columns=["phase", "ms"], rows=[["first", "1"]])],
    )
    machine = {"cpus": 2, "engine": "20.10", "time": "now"}
    text = report.page({"much": {**asdict(found), "machine": machine, "seconds": 1, "pictures": []}})
    for line in ("| all | ≤ 2 ms | 3 ms | no |", "| all | 3 |", "Told by the clock.", "### Where", "| first | 1 |"):
        assert line in text.splitlines()


def test_where_the_milliseconds_go_is_a_table() -> None:
    phases = {WARM: {"claimed": 1.0}, COLD: {"claimed": 2.0}}
    figures = {WARM: figure([8.0, 8.0]), COLD: figure([160.0, 160.0])}
    assert _where(phases, figures, figures).rows[0] == ["claimed", "1.0", "2.0"]

"""The metrics: their names and labels are a contract with dashboards."""

from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runner.adapters.metrics import LINKS, Metrics
from runner.job import (
    Blame,
    Bytes,
    DeadCode,
    Job,
    JobKey,
    Limits,
    Outcome,
    Plan,
    Priority,
    Route,
    Stack,
    StackRef,
    Stream,
)
from runner.ports import Observer, Phases

CONTRACT = {
    "runner_jobs": {"stack", "outcome"},
    "runner_jobs_running": {"stack"},
    "runner_job_seconds": {"stack", "phase"},
    "runner_start_seconds": {"stack", "warm"},
    "runner_retries": {"blame"},
    "runner_deferred": set(),
    "runner_queue_depth": {"queue"},
    "runner_capacity_cpus": set(),
    "runner_capacity_memory_bytes": set(),
    "runner_claimed_cpus": set(),
    "runner_claimed_memory_bytes": set(),
    "runner_log_bytes": {"stream"},
    "runner_log_dropped_bytes": set(),
    "runner_containers_created": set(),
    "runner_containers_removed": set(),
    "runner_containers_live": set(),
    "runner_containers_unaccounted": set(),
    "runner_orphans_removed": set(),
    "runner_end_disagreements": {"what"},
    "runner_cleanup_failures": set(),
    "runner_warm_containers": {"stack"},
    "runner_engine_seconds": {"operation"},
    "runner_engine_errors": {"operation", "kind"},
    "runner_engine_up": set(),
    "runner_code_packages": {"result"},
    "runner_code_cache_bytes": set(),
    "runner_egress_proven": set(),
    "runner_amqp_up": set(),
    "runner_amqp_reconnects": set(),
    "runner_leases_adopted": set(),
    "runner_leases_lost": set(),
    "runner_dead": {"reason"},
    "runner_build_info": {"version"},
}
COUNTERS = {
    *("jobs", "retries", "deferred", "log_bytes", "log_dropped_bytes", "containers_created", "containers_removed"),
    *(
        "orphans_removed",
        "cleanup_failures",
        "end_disagreements",
        "engine_errors",
        "amqp_reconnects",
        "leases_adopted",
        "leases_lost",
        "dead",
        "code_packages",
    ),
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", installed=lambda: ("busybox", "python-3.11"))


def samples(metrics: Metrics) -> dict[str, float]:
    """`name{label=value,…}` → value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def plan(stack: str = "busybox") -> Plan:
    job = Job(
        key=JobKey(tenant="acme", id="one"),
        route=Route(pool="default", priority=Priority.NORMAL, tenant="acme"),
        stack=StackRef(name=stack),
        published=datetime(2030, 1, 1, tzinfo=UTC),
    )
    return Plan(job=job, stack=Stack(name=stack, revision="r1", image="sha256:0"), command=("true",), limits=Limits())


def use_everything(metrics: Metrics) -> None:
    metrics.job_started(plan(), warm=False, seconds=0.3)
    metrics.job_ended("busybox", Outcome.SUCCEEDED, Phases(queued=0.1))
    metrics.queue_depth("jobs.q.default.normal", 3)
    metrics.call_done("create", 0.1)
    metrics.call_failed("create", "timeout")


def test_the_names_and_labels_are_those_of_the_contract(metrics: Metrics) -> None:
    use_everything(metrics)
    families = [
        family
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name.startswith("runner_")
    ]

    assert {family.name for family in families} == set(CONTRACT)
    assert {family.name.removeprefix("runner_") for family in families if family.type == "counter"} == COUNTERS
    for family in families:
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == CONTRACT[family.name] or not family.samples
        assert family.documentation


def test_counters_end_in_total_and_have_no_series_for_their_birth(metrics: Metrics) -> None:
    use_everything(metrics)
    names = {name.partition("{")[0] for name in samples(metrics)}

    assert {f"runner_{name}_total" for name in COUNTERS} <= names
    assert not [name for name in names if name.endswith("_created")]


def test_what_is_known_from_the_start_is_there_from_the_start(metrics: Metrics) -> None:
    found = samples(metrics)

    assert found["runner_build_info{version=1.2.3}"] == 1
    assert {found[f"runner_dead_total{{reason={code}}}"] for code in DeadCode} == {0}
    assert {found[f"runner_retries_total{{blame={blame}}}"] for blame in Blame} == {0}
    assert (found["runner_log_bytes_total{stream=out}"], found["runner_log_bytes_total{stream=err}"]) == (0, 0)
    assert (found["runner_engine_up"], found["runner_amqp_up"]) == (0, 0)
    assert found["runner_containers_unaccounted"] == 0
    assert found["process_resident_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("stack", "label"),
    [("busybox", "busybox"), ("busybox@r7", "busybox"), ("made-up", "unknown"), ("", "unknown"), (None, "unknown")],
)
def test_only_installed_stacks_become_labels(metrics: Metrics, stack: str | None, label: str) -> None:
    metrics.job_ended(stack, Outcome.REJECTED, Phases())

    assert [name for name in samples(metrics) if name.startswith("runner_jobs_total")] == [
        f"runner_jobs_total{{outcome=rejected,stack={label}}}"
    ]


def test_a_job_is_counted_from_its_start_to_its_cleanup(metrics: Metrics) -> None:
    metrics.job_started(plan(), warm=True, seconds=0.0015)
    assert samples(metrics)["runner_jobs_running{stack=busybox}"] == 1

    metrics.attempt_ended("busybox")
    metrics.job_ended("busybox", Outcome.SUCCEEDED, Phases(queued=2.0, prepare=0.2, run=0.5))
    metrics.cleaned_up("busybox", 0.1)

    found = samples(metrics)
    assert found["runner_jobs_running{stack=busybox}"] == 0
    assert found["runner_jobs_total{outcome=succeeded,stack=busybox}"] == 1
    assert found["runner_start_seconds_bucket{le=0.002,stack=busybox,warm=true}"] == 1
    sums = {phase: found[f"runner_job_seconds_sum{{phase={phase},stack=busybox}}"] for phase in phases()}
    assert sums == {"queued": 2.0, "prepare": 0.2, "run": 0.5, "cleanup": 0.1}


def phases() -> tuple[str, ...]:
    return ("queued", "prepare", "run", "cleanup")


def test_a_phase_that_did_not_happen_is_not_observed(metrics: Metrics) -> None:
    metrics.job_ended("busybox", Outcome.EXPIRED, Phases(queued=60.0))

    assert {name for name in samples(metrics) if name.startswith("runner_job_seconds_count")} == {
        "runner_job_seconds_count{phase=queued,stack=busybox}"
    }


def test_a_stack_that_is_removed_while_its_job_runs_leaves_no_job_running() -> None:
    stacks = ["busybox"]
    metrics = Metrics(version="1", installed=lambda: stacks)
    metrics.job_started(plan(), warm=False, seconds=0.1)
    stacks.clear()
    metrics.attempt_ended("busybox")

    running = {name: value for name, value in samples(metrics).items() if name.startswith("runner_jobs_running")}
    assert running == {"runner_jobs_running{stack=busybox}": 0}


def test_containers_add_up(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.container_created()
    metrics.container_removed()
    metrics.orphan_removed()
    metrics.cleanup_failed()

    found = samples(metrics)
    assert found["runner_containers_created_total"] - found["runner_containers_removed_total"] == 2
    assert found["runner_containers_live"] == 2
    assert metrics.containers_counted() == 2
    assert found["runner_orphans_removed_total"] == 1
    assert found["runner_cleanup_failures_total"] == 1


def test_the_broker_is_up_while_all_connections_are(metrics: Metrics) -> None:
    states = []
    for role in LINKS:
        states.append(samples(metrics)["runner_amqp_up"])
        metrics.amqp_connected(role)
    states.append(samples(metrics)["runner_amqp_up"])
    metrics.amqp_disconnected(LINKS[0])
    states.append(samples(metrics)["runner_amqp_up"])
    metrics.amqp_connected(LINKS[0])
    states.append(samples(metrics)["runner_amqp_up"])

    assert states == [0, 0, 0, 1, 0, 1]
    assert samples(metrics)["runner_amqp_reconnects_total"] == 1


def test_the_rest_counts_what_it_is_told(metrics: Metrics) -> None:
    metrics.retried(Blame.JOB)
    metrics.buried(DeadCode.UNDECODABLE)
    metrics.deferred()
    metrics.capacity(cpus=4.0, memory=Bytes(8 * 2**30))
    metrics.claims(cpus=1.5, memory=Bytes(2**30))
    metrics.output(Stream.ERR, 100)
    metrics.output_omitted(40)
    metrics.engine_up(True)
    metrics.egress_proven(True)
    metrics.containers_unaccounted(2)
    metrics.end_disputed("oom")
    metrics.call_failed("start", "timeout")
    metrics.lease_adopted()
    metrics.lease_lost()

    found = samples(metrics)
    expected = {
        "runner_retries_total{blame=job}": 1,
        "runner_dead_total{reason=undecodable}": 1,
        "runner_deferred_total": 1,
        "runner_capacity_cpus": 4.0,
        "runner_capacity_memory_bytes": 8 * 2**30,
        "runner_claimed_cpus": 1.5,
        "runner_claimed_memory_bytes": 2**30,
        "runner_log_bytes_total{stream=err}": 100,
        "runner_log_dropped_bytes_total": 40,
        "runner_engine_up": 1,
        "runner_egress_proven": 1,
        "runner_containers_unaccounted": 2,
        "runner_end_disagreements_total{what=oom}": 1,
        "runner_engine_errors_total{kind=timeout,operation=start}": 1,
        "runner_leases_adopted_total": 1,
        "runner_leases_lost_total": 1,
    }
    assert {name: found[name] for name in expected} == expected


def test_two_registries_do_not_meet() -> None:
    first, second = (Metrics(version="1", installed=tuple) for _ in range(2))
    first.deferred()

    assert samples(second)["runner_deferred_total"] == 0


def test_it_is_an_observer(metrics: Metrics) -> None:
    observer: Observer = metrics
    observer.deferred()

    assert samples(metrics)["runner_deferred_total"] == 1

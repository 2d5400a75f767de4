"""What is counted, as Prometheus metrics. What each of them means to an operator: docs/operations.md."""

from collections.abc import Callable, Collection

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from runner.job import Blame, Bytes, DeadCode, Outcome, Plan, Stream
from runner.ports import Phases

UNKNOWN_STACK = "unknown"
"""The label of a stack that is not installed here: what submitters write must not become labels."""

PACKAGE_RESULTS = ("cached", "new", "rejected", "deferred")
"""What becomes of the code that a job brings along."""

DISPUTES = ("exit_code", "oom")
"""What the engine may know otherwise of a job's end."""

LINKS = ("consume", "publish", "logs")
"""The connections to the broker; `runner_amqp_up` is 1 while all of them stand."""

_PHASE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600)
_START_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_CALL_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120)


class Metrics:
    """The port `Observer`, and what the adapters report. All of it lives in a registry of its own."""

    def __init__(self, *, version: str, installed: Callable[[], Collection[str]]) -> None:
        """`installed` gives the names of the stacks that this worker has now."""
        # A series for the birth of each other series; there is no way to leave them out of one registry only.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._installed = installed
        self._registry = CollectorRegistry()
        self._links: dict[str, bool] = dict.fromkeys(LINKS, False)
        self._linked_before: set[str] = set()
        ProcessCollector(registry=self._registry)
        self._define_jobs()
        self._define_capacity()
        self._define_logs()
        self._define_engine()
        self._define_packages()
        self._define_broker()
        self._gauge("build_info", "Always 1; the version is in the label", "version").labels(version).set(1)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    # Jobs

    def job_started(self, plan: Plan, *, warm: bool, seconds: float) -> None:
        """A job's first process runs, `seconds` after its claim."""
        self._jobs_running.labels(plan.stack.name).inc()
        self._start_seconds.labels(plan.stack.name, "true" if warm else "false").observe(seconds)

    def job_adopted(self, plan: Plan) -> None:
        """A job that an earlier life of the daemon started runs on under this one."""
        self._jobs_running.labels(plan.stack.name).inc()

    def job_ended(self, stack: str | None, outcome: Outcome, phases: Phases) -> None:
        """A job's `finished` was confirmed. `stack` is as the job named it."""
        label = self._label(stack)
        self._jobs.labels(label, outcome).inc()
        seen = {"queued": phases.queued, "prepare": phases.prepare, "run": phases.run, "cleanup": phases.cleanup}
        for phase, seconds in seen.items():
            if seconds is not None:
                self._job_seconds.labels(label, phase).observe(seconds)

    def attempt_ended(self, stack: str) -> None:
        """The process that `job_started` reported runs no more."""
        self._jobs_running.labels(stack).dec()

    def cleaned_up(self, stack: str, seconds: float) -> None:
        """An attempt's container and files are gone, `seconds` after its end."""
        self._job_seconds.labels(stack, "cleanup").observe(seconds)

    def retried(self, blame: Blame) -> None:
        """A job is to start again."""
        self._retries.labels(blame).inc()

    def buried(self, code: DeadCode) -> None:
        """A message went to the dead letters."""
        self._dead.labels(code).inc()

    def deferred(self) -> None:
        """A job was passed on."""
        self._deferred.inc()

    # Capacity

    def capacity(self, *, cpus: float, memory: Bytes) -> None:
        """What all jobs together may claim."""
        self._capacity_cpus.set(cpus)
        self._capacity_memory.set(memory)

    def claims(self, *, cpus: float, memory: Bytes) -> None:
        """What the running jobs claim together, now."""
        self._claimed_cpus.set(cpus)
        self._claimed_memory.set(memory)

    def queue_depth(self, queue: str, depth: int) -> None:
        """How many messages wait in a job queue."""
        self._queue_depth.labels(queue).set(depth)

    # Logs

    def output(self, stream: Stream, count: int) -> None:
        """A job wrote `count` bytes."""
        self._log_bytes[stream].inc(count)

    def output_omitted(self, count: int) -> None:
        """`count` bytes of a log were left out."""
        self._log_dropped.inc(count)

    # Engine

    def call_done(self, operation: str, seconds: float) -> None:
        """The engine answered a call, or failed it, after so many seconds."""
        self._engine_seconds.labels(operation).observe(seconds)

    def call_failed(self, operation: str, kind: str) -> None:
        """A call to the engine failed."""
        self._engine_errors.labels(operation, kind).inc()

    def engine_up(self, up: bool) -> None:  # noqa: FBT001 - it is the value
        """Whether the engine answers."""
        self._engine_up.set(up)

    def egress_proven(self, proven: bool) -> None:  # noqa: FBT001 - it is the value
        """Whether all networks of jobs that reach out are proven to be shut where they have to be."""
        self._egress_proven.set(proven)

    def container_created(self) -> None:
        """There is one more container of ours."""
        self._containers_created.inc()
        self._containers_live.inc()

    def container_removed(self) -> None:
        """There is one container of ours less."""
        self._containers_removed.inc()
        self._containers_live.dec()

    def containers_counted(self) -> int:
        """How many containers there are by the two counters, as they are shown."""
        return round(_value(self._containers_created) - _value(self._containers_removed))

    def containers_unaccounted(self, count: int) -> None:
        """So many containers are too many or too few; 0 when all is well."""
        self._containers_unaccounted.set(count)

    def warm_containers(self, stack: str, count: int) -> None:
        """So many containers of a stack wait for a job."""
        self._warm_containers.labels(stack).set(count)

    def end_disputed(self, what: str) -> None:
        """The engine contradicts the report that a job's end was told by."""
        self._end_disagreements.labels(what).inc()

    def orphan_removed(self) -> None:
        """A container that no task owned was removed."""
        self._orphans_removed.inc()

    def cleanup_failed(self) -> None:
        """One try at removing something failed; there will be another."""
        self._cleanup_failures.inc()

    # Code packages

    def package_arrived(self, how: str) -> None:
        """A job has its code, or will not get it here."""
        self._packages.labels(how).inc()

    def packages_kept(self, size: int) -> None:
        """The packages on disk take so many bytes."""
        self._package_bytes.set(size)

    # Broker

    def amqp_connected(self, role: str) -> None:
        """One of `LINKS` was connected."""
        if role in self._linked_before:
            self._amqp_reconnects.inc()
        self._linked_before.add(role)
        self._link(role, up=True)

    def amqp_disconnected(self, role: str) -> None:
        """One of `LINKS` was lost."""
        self._link(role, up=False)

    def _link(self, role: str, *, up: bool) -> None:
        self._links[role] = up
        self._amqp_up.set(all(self._links.values()))

    def lease_adopted(self) -> None:
        """A job of an earlier life of this worker goes on."""
        self._leases_adopted.inc()

    def lease_lost(self) -> None:
        """A job of ours was taken over by another worker."""
        self._leases_lost.inc()

    # Definitions

    def _define_jobs(self) -> None:
        self._jobs = self._counter("jobs", "Jobs that came to their end", "stack", "outcome")
        self._jobs_running = self._gauge("jobs_running", "Jobs whose process runs", "stack")
        self._job_seconds = self._histogram(
            "job_seconds", "How long each phase of a job took", _PHASE_BUCKETS, "stack", "phase"
        )
        self._start_seconds = self._histogram(
            "start_seconds", "From the claim of a job to its first process", _START_BUCKETS, "stack", "warm"
        )
        self._retries = self._counter("retries", "Jobs that were sent back to start again", "blame")
        self._deferred = self._counter("deferred", "Jobs that were passed on to another worker")
        self._dead = self._counter("dead", "Messages that went to the dead letters", "reason")
        for blame in Blame:
            self._retries.labels(blame)
        for code in DeadCode:
            self._dead.labels(code)

    def _define_capacity(self) -> None:
        self._capacity_cpus = self._gauge("capacity_cpus", "CPUs that all jobs together may claim")
        self._capacity_memory = self._gauge("capacity_memory_bytes", "Memory that all jobs together may claim")
        self._claimed_cpus = self._gauge("claimed_cpus", "CPUs that the running jobs claim")
        self._claimed_memory = self._gauge("claimed_memory_bytes", "Memory that the running jobs claim")
        self._queue_depth = self._gauge("queue_depth", "Messages that wait in a job queue", "queue")

    def _define_logs(self) -> None:
        log_bytes = self._counter("log_bytes", "What jobs wrote to their output", "stream")
        self._log_bytes = {stream: log_bytes.labels(stream) for stream in (Stream.OUT, Stream.ERR)}
        self._log_dropped = self._counter("log_dropped_bytes", "Output that was left out of logs")

    def _define_engine(self) -> None:
        self._containers_created = self._counter("containers_created", "Containers made, or found and taken charge of")
        self._containers_removed = self._counter("containers_removed", "Containers that are proven to be gone")
        self._containers_live = self._gauge("containers_live", "Containers of this worker that exist")
        self._containers_unaccounted = self._gauge(
            "containers_unaccounted", "Containers too many or too few, by the engine's list and our counts, while idle"
        )
        self._orphans_removed = self._counter("orphans_removed", "Containers removed that no job owned")
        self._end_disagreements = self._counter(
            "end_disagreements", "Ends of jobs of which the engine knows otherwise than was told", "what"
        )
        for what in DISPUTES:
            self._end_disagreements.labels(what)
        self._cleanup_failures = self._counter("cleanup_failures", "Failed tries to remove a container or its files")
        self._warm_containers = self._gauge("warm_containers", "Containers that wait for a job", "stack")
        self._engine_seconds = self._histogram(
            "engine_seconds", "How long calls to the container engine took", _CALL_BUCKETS, "operation"
        )
        self._engine_errors = self._counter(
            "engine_errors", "Calls to the container engine that failed", "operation", "kind"
        )
        self._engine_up = self._gauge("engine_up", "1 while the container engine answers")
        self._egress_proven = self._gauge("egress_proven", "1 while the networks of jobs that reach out are proven")

    def _define_packages(self) -> None:
        self._packages = self._counter("code_packages", "Code that jobs brought along, by what became of it", "result")
        self._package_bytes = self._gauge("code_cache_bytes", "What unpacked code packages take on disk")
        for result in PACKAGE_RESULTS:
            self._packages.labels(result)

    def _define_broker(self) -> None:
        self._amqp_up = self._gauge("amqp_up", "1 while all connections to the broker stand")
        self._amqp_reconnects = self._counter("amqp_reconnects", "Connections to the broker that were made again")
        self._leases_adopted = self._counter("leases_adopted", "Running jobs taken over from an earlier life")
        self._leases_lost = self._counter("leases_lost", "Running jobs that another worker took over")

    def _label(self, stack: str | None) -> str:
        name = (stack or "").partition("@")[0]
        return name if name in self._installed() else UNKNOWN_STACK

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"runner_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"runner_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"runner_{name}", text, labels, buckets=buckets, registry=self._registry)


def _value(counter: Counter) -> float:
    """The sum of a counter's samples."""
    return sum(sample.value for family in counter.collect() for sample in family.samples)

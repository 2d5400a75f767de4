"""What the core needs from the outside. Each port lives here, with its consumer; adapters implement them.

The fakes of `tests/fakes.py` and the real adapters pass the same suite in `tests/contract/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from runner.job import (
    Attempt,
    Blame,
    Bytes,
    Choices,
    DeadCode,
    EventKind,
    Exit,
    Invalid,
    Job,
    JobKey,
    JobResult,
    Json,
    Line,
    Outcome,
    Plan,
    Priority,
    SecretRef,
    Stack,
    StackRef,
    StopReason,
    Stream,
)

OnOutput = Callable[[Stream, bytes], None]
"""Takes raw output as it comes. It must not block: a job whose output nobody reads stands still."""


class Container(Protocol):
    """One job's container, whose process was started."""

    @property
    def id(self) -> str:
        """The engine's full id."""

    @property
    def warm(self) -> bool:
        """Whether it was there before the job."""

    @property
    def started(self) -> datetime:
        """When the job's own process was started (UTC, by the init's clock)."""

    @property
    def ended(self) -> datetime | None:
        """When the job ended, by the same clock; None before, and where nothing can tell."""

    async def wait(self) -> Exit:
        """Return once the job has ended and its output was handed over. May be awaited again after cancellation."""

    async def terminate(self) -> None:
        """Send SIGTERM to all processes of the job. Done already when the job has ended."""

    async def kill(self) -> None:
        """Send SIGKILL to all processes of the job. Done already when the job has ended."""

    def progress(self) -> bytes | None:
        """What the job has written to `JOB_PROGRESS_FILE`, up to one byte more than allowed; None while it is empty."""

    @property
    def may_exceed(self) -> bool:
        """Whether `excess` might find anything now. It costs next to nothing to ask."""

    async def excess(self) -> str | None:
        """What the job has written too much of, in words, where only looking bounds it; None if nothing."""


class Engine(Protocol):
    """Runs containers and removes them."""

    def expect(self, name: str, plan: Plan) -> str | None:
        """A job of that plan is about to be launched under that name: begin what can be begun before it is ours.

        The id of the container that waited and is the job's from now on, if there is one. Only the claim's record
        tells that to another life, for it may not have its name yet. `launch` has to follow, or `drop`.
        """

    async def prepare(self, attempt: Attempt) -> None:
        """Get what the attempt needs from elsewhere: the job's code. It may take long, and comes before `launch`.

        Raises `RejectedError` or `DeferredError`. Whatever it raises, and when it is cancelled, `discard` has to
        follow.
        """

    async def launch(self, attempt: Attempt, on_output: OnOutput) -> Container:
        """Start the attempt's container and hand the job over to the init in it; return when its process was started.

        Raises `StartError` when the engine refuses the configuration, `ImageMissing`, `EngineUnfit` when it starts
        nothing at all now, `EngineGone` or `EngineError`. Whatever it raises, and when it is cancelled, `discard` has
        to follow.
        """

    def keep(self, name: str, waited: str | None = None) -> None:
        """A container of that name, or of the id of one that `waited`, may be adopted: sweeps leave it alone."""

    def drop(self, name: str) -> None:
        """Nobody will adopt or launch the container: remove it, if there is one, without anybody's waiting for it."""

    async def adopt(self, attempt: Attempt, on_output: OnOutput) -> Container:
        """The container that an earlier life launched for the attempt, with all of its output from the beginning.

        Raises `NeverStarted` when there is a container without a job, or none; `EngineError` when its job is lost.
        `discard` has to follow, as after `launch`.
        """

    async def discard(self, attempt: Attempt, *, patient: bool = False) -> None:
        """Return when nothing is left of the attempt: container (404 by id and by name) and files.

        A `patient` one may wait a second while other jobs start, if its own has ended and until somebody says `hurry`.
        Retries for as long as it takes. Cancelling it leaves the rest to the periodic sweep.
        """

    def hurry(self) -> None:
        """What ended jobs still claim is wanted: no `discard` waits for the start of others any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A job's code on this worker: its folder, and how many files, folders and links are in it."""

    folder: Path
    entries: int


class Packages(Protocol):
    """The code that jobs bring along, unpacked."""

    async def hold(self, claim: str, job: Job) -> Unpacked:
        """The job's code, which stays as it is until `release`, even if this daemon ends before that.

        Raises `RejectedError` for code that is not allowed, not there or no good, `DeferredError` when it cannot be had
        now. When it raises or is cancelled, `release` has to follow all the same.
        """

    def release(self, claim: str) -> None:
        """The claim's container is gone. Done already when it holds nothing."""


class Lease(Protocol):
    """The right to run a job that was claimed.

    Every lease is given back exactly once, by the last three methods, unless it turns out not to be ours any more.
    """

    @property
    def number(self) -> int:
        """The attempt that this claim leads to, from 1."""

    @property
    def lost(self) -> int:
        """How often the platform lost the job before."""

    @property
    def given_back(self) -> int:
        """How often a worker on its way out stopped the job before."""

    @property
    def deferrals(self) -> int:
        """How often the job was passed on since it was last started or taken from its submitter."""

    async def ours(self) -> bool:
        """Whether nobody has taken the job over; waits for as long as the broker cannot tell."""

    async def taken_over(self) -> None:
        """Return when another worker has the job."""

    async def endangered(self, ahead: timedelta) -> None:
        """Return when we are cut off, and another worker may have the job `ahead` from now."""

    async def bury(self, code: DeadCode, reason: str) -> None:
        """Send the job's message, byte for byte, to the dead letters. The lease stays: `settle` has to follow."""

    async def settle(self) -> None:
        """The job's `finished` is confirmed: forget the job."""

    async def retry(self, delay: timedelta, blame: Blame) -> None:
        """Have the job start again after `delay`, anywhere.

        `blame` is what the attempt counts as: the job's own failure, the platform's, or none, when it was given back.
        """

    async def abandon(self) -> None:
        """A fault of ours kept the job from its end: have it started again, unless the lease was given back already."""

    async def defer(self, delay: timedelta) -> None:
        """Pass the job on: not started here, so neither count rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """Where a job was before its worker, or that worker's earlier life, went away."""

    worker: str
    claim: str


class Delivery(Protocol):
    """One message that was taken and is not ours yet. Settled exactly once: by claim, bury, drop, defer or release."""

    @property
    def submission(self) -> Job | Invalid:
        """What the message says."""

    @property
    def fresh(self) -> bool:
        """True for a new submission; false for what came by an internal path (retry, lease, delay)."""

    @property
    def live(self) -> bool:
        """False once the broker has taken the message back: it gives the job out again; this one cannot be claimed."""

    @property
    def number(self) -> int:
        """The attempt that the next start would be, from 1."""

    @property
    def lost(self) -> int:
        """How often the platform lost the job before."""

    @property
    def vanished(self) -> Vanished | None:
        """Whom the job was lost by, if that is how it came here."""

    @property
    def deferrals(self) -> int:
        """How often the job was passed on since it was last taken from its submitter."""

    @property
    def run(self) -> str:
        """Which submission this is, however often it is taken, lost and started again."""

    async def resume(self, claim: str) -> Lease:
        """Go on under the claim of our earlier life, which this delivery is the lease of."""

    async def claim(self, claim: str) -> Lease:
        """Make the job ours: after this no other worker gets it while we live."""

    async def bury(self, code: DeadCode, reason: str) -> None:
        """Send the body, byte for byte, to the dead letters, and forget the message."""

    async def drop(self) -> None:
        """Forget the message; everything there was to say has been said."""

    @property
    def not_before(self) -> datetime | None:
        """When the job may start, if it was told to wait."""

    async def defer(self, delay: timedelta) -> None:
        """Pass the job on: another worker may be able to run it."""

    async def postpone(self, delay: timedelta) -> None:
        """Have the job come again after `delay`, as if nothing had happened. The broker holds it meanwhile."""

    async def release(self) -> None:
        """Put the message back where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueKey:
    """Names one job queue: a pool's queue of one priority, shared or of one named tenant."""

    pool: str
    priority: Priority
    tenant: str | None = None


class Intake(Protocol):
    """Where deliveries come from."""

    async def take(self) -> Delivery:
        """Wait for the next delivery, whichever queue it comes from."""

    def want(self, count: int) -> None:
        """Be ready to take `count` more deliveries, no more; 0 stops taking. Replaces the last wish."""

    async def close(self) -> None:
        """Stop taking, for good; deliveries that were taken stay valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. The worker's name is added by the publisher's codec from `worker`.

    `result` stands in `finished`; the rest of the fields after `time` stand where the kind of event has a use for them.
    """

    kind: EventKind
    submission: Job | Invalid
    worker: str
    claim: str
    seq: int
    attempt: int
    time: datetime
    claimed: datetime | None = None
    started: datetime | None = None
    stack: Stack | None = None
    reason: str | None = None
    container: str | None = None
    warm: bool | None = None
    deadline: datetime | None = None
    progress: Json = None
    stop: StopReason | None = None
    outcome: Outcome | None = None
    delay: timedelta | None = None
    result: JobResult | None = None


class Events(Protocol):
    """Tells the world, and the submitter."""

    async def publish(self, event: Event) -> None:
        """Return when the event is safe: confirmed by the broker (and the reply sent, for `finished`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some lines of a job's log, in order. `out` and `err` count each stream's raw bytes before this batch.

    `until_out` and `until_err` count those before the next one.
    """

    key: JobKey
    claim: str
    seq: int | None
    out: int
    err: int
    until_out: int = 0
    until_err: int = 0
    lines: Sequence[Line]
    end: bool = False


class LogSink(Protocol):
    """Takes a job's log, and loses it rather than hold up the job."""

    def offer(self, batch: Batch) -> None:
        """Publish the batch when it can be done; a batch without `seq` goes to the live key. Never blocks."""

    async def room(self, claim: str) -> None:
        """Return when the next batch of the claim would not be lost for want of room."""

    def confirmed(self, claim: str) -> int:
        """The number of the last batch of the claim that is safe with all those before it; 0 while none is."""

    async def flush(self, key: JobKey, claim: str, timeout: float) -> bool:
        """Wait, up to `timeout` seconds, until the broker has all batches of the claim; false when any was lost."""

    def forget(self, claim: str) -> None:
        """Nothing more comes for the claim; what is still on its way is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    """What the journal knows of a claim from before its container exists.

    `told` is the number of its event `claimed`; `waited` is the id of the container that waited and is the claim's now,
    which may not have the name yet.
    """

    claim: str
    key: JobKey
    container_name: str
    attempt: int
    claimed: datetime
    choices: Choices | None = None
    told: int = 1
    waited: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """How far a job's log was offered: raw bytes of each stream, and the number of the last batch."""

    out: int = 0
    err: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClaim:
    """A claim of an earlier life that did not end with it. Its container may still run."""

    record: ClaimRecord
    lives: int
    container: str | None = None
    deadline: datetime | None = None
    start_told: bool = False
    stop: StopReason | None = None
    stop_detail: str = ""
    logged: LogPosition = LogPosition()


class Journal(Protocol):
    """What this worker holds, owes and ran; survives the daemon."""

    async def claimed(self, record: ClaimRecord) -> None:
        """Write down the claim before anything is made for it."""

    async def started(self, claim: str, container: str, deadline: datetime) -> None:
        """Write down which container runs the claim, and when the job has to be gone: within 0.1 s, or not at all."""

    async def start_told(self, claim: str) -> None:
        """The events `claimed` and `started` are confirmed; written like the start."""

    async def stopping(self, claim: str, reason: StopReason, detail: str) -> None:
        """Write down that we end the job, and why, before any signal is sent."""

    async def logged(self, claim: str, position: LogPosition) -> None:
        """Write down how far the job's log was offered: within half a second, or not at all."""

    async def adopted(self, claim: str) -> None:
        """A new life goes on with the claim."""

    async def ended(self, claim: str, *, finished: bool, owed: Event | None = None) -> None:
        """The claim is over. `finished`: the job is, too; `owed` is its last event, kept until it is `paid`."""

    async def forgotten(self, claim: str) -> None:
        """Nobody knows what became of the claim: its lease has not come back, but may still."""

    async def paid(self, claim: str) -> None:
        """The event that was owed is confirmed; written like the start."""

    async def is_over(self, claim: str) -> bool:
        """Whether the claim is known to be over."""

    async def finished_lately(self, key: JobKey, within: timedelta) -> bool:
        """Whether this worker finished that job within that time."""


class Cancelled(Protocol):
    """What the fleet remembers of cancelled jobs."""

    async def reason(self, key: JobKey) -> str | None:
        """Why the job was cancelled, maybe in no words; None when it was not.

        Waits until every cancel is known that was confirmed before we were connected; later ones come by themselves.
        """


class Uniqueness(Protocol):
    """What the fleet remembers of jobs that are to be the only ones of their ids."""

    async def wins(self, key: JobKey, run: str, claim: str, span: timedelta) -> bool:
        """Whether this run of the job is the only one for `span`; one that has won once has won for good.

        Raises `BrokerError` when nobody can tell in time. It may be asked again.
        """


class Stacks(Protocol):
    """The runtimes that this worker has."""

    async def resolve(self, ref: StackRef) -> Stack:
        """The stack as it is now.

        Raises `DeferredError` when this worker lacks it, `RejectedError` when nobody may use it, `EngineError` when the
        engine cannot tell.
        """

    def invalidate(self, name: str) -> None:
        """The stack's image has turned out to be gone: look it up again."""


class Secrets(Protocol):
    """The values of the secrets that an operator keeps for jobs."""

    async def read(self, tenant: str, secrets: Sequence[SecretRef]) -> Mapping[str, bytes]:
        """The values by name, as they are now.

        Raises `RejectedError` (the operator is to blame) naming the secret and what to do where one is missing or
        cannot be one, and `DeferredError` when it cannot be read just now.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """How long each phase of a job took, in seconds; None where it did not happen."""

    queued: float | None = None
    prepare: float | None = None
    run: float | None = None
    cleanup: float | None = None
    start: float | None = None


class Observer(Protocol):
    """Counts what happens. Implemented once, on the metrics registry."""

    def job_started(self, plan: Plan, *, warm: bool, seconds: float) -> None:
        """A job's first process runs, `seconds` after its claim."""

    def job_adopted(self, plan: Plan) -> None:
        """A job that an earlier life of the daemon started runs on under this one."""

    def job_ended(self, stack: str | None, outcome: Outcome, phases: Phases) -> None:
        """A job's `finished` was confirmed. `stack` is None for one that is not installed here."""

    def attempt_ended(self, stack: str) -> None:
        """The process that `job_started` reported runs no more."""

    def cleaned_up(self, stack: str, seconds: float) -> None:
        """An attempt's container and files are gone, `seconds` after its end."""

    def retried(self, blame: Blame) -> None:
        """A job is to start again; `blame` is why it ended."""

    def buried(self, code: DeadCode) -> None:
        """A message went to the dead letters."""

    def deferred(self) -> None:
        """A job was passed on."""

    def output(self, stream: Stream, count: int) -> None:
        """A job wrote `count` bytes."""

    def output_omitted(self, count: int) -> None:
        """`count` bytes of a log were left out."""

    def claims(self, *, cpus: float, memory: Bytes) -> None:
        """What the running jobs claim together, now."""

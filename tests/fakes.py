"""The outside of a worker, in memory: everything that `runner.ports` asks for beside the engine and the journal.

What happens is written into one `Diary`, in order, so that a test can ask what came before what.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from tests.fake_engine import RUNS, FakeContainer, FakeEngine, Script
from tests.fake_journal import FakeJournal

from runner.codec import Envelope, decode_job, encode_batch, encode_event
from runner.errors import BrokerError, DeferredError, RejectedError
from runner.job import (
    Attempt,
    Blame,
    Bytes,
    DeadCode,
    EventKind,
    Invalid,
    Job,
    JobKey,
    Outcome,
    Plan,
    Priority,
    Route,
    SecretRef,
    Stack,
    StackRef,
    Stream,
)
from runner.ports import Batch, ClaimRecord, Delivery, Event, Lease, OnOutput, Phases, Vanished

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROUTE = Route(pool="default", priority=Priority.NORMAL, tenant="acme")
STACK = Stack(name="busybox", revision="r1", image="sha256:" + 64 * "0", command=("echo", "from the stack"))

_ids = count(1)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@dataclass(slots=True)
class Diary:
    """What happened, in order."""

    entries: list[str] = field(default_factory=list)

    def note(self, entry: str) -> None:
        self.entries.append(entry)

    def count(self, entry: str) -> int:
        return self.entries.count(entry)

    def order(self, *wanted: str) -> list[str]:
        """The entries that are among the wanted ones, in the order in which they were made."""
        return [entry for entry in self.entries if entry in wanted]


async def until(condition: Callable[[], object], what: str = "", timeout: float = 30) -> None:
    """Let everything else go on until the condition holds."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - nothing here takes any time
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"did not happen: {what or condition}") from None


def make_job(job_id: str = "", **more: object) -> Job:
    """A job of tenant acme, with an id of its own."""
    base = Job(
        key=JobKey(tenant=ROUTE.tenant, id=job_id or f"job-{next(_ids)}"),
        route=ROUTE,
        stack=StackRef(name=STACK.name),
        published=NOW,
        command=("run",),
    )
    return replace(base, **more)  # type: ignore[arg-type]


def make_invalid(reason: str = "stack: is required", *, tenant: str | None = "acme", **more: object) -> Invalid:
    """A message that is no job."""
    base = Invalid(
        code=DeadCode.REJECTED,
        reason=reason,
        id="broken-1",
        tenant=tenant,
        pool="default",
        priority="normal",
        published=NOW,
    )
    return replace(base, **more)  # type: ignore[arg-type]


@dataclass(slots=True, kw_only=True)
class FakeLease:
    """The port `Lease`. Others have the job when `taken` is set, or may soon when `danger` is.

    While `known` is not, nobody can tell.
    """

    delivery: "FakeDelivery"
    number: int
    lost: int
    given_back: int
    deferrals: int
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    known: asyncio.Event = field(default_factory=asyncio.Event)
    danger: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.known.set()

    async def ours(self) -> bool:
        await self.known.wait()
        return not self.taken.is_set()

    async def taken_over(self) -> None:
        await self.taken.wait()

    async def endangered(self, ahead: timedelta) -> None:  # noqa: ARG002 - the port's; here a test says when
        await self.danger.wait()

    async def bury(self, code: DeadCode, reason: str) -> None:
        await asyncio.sleep(0)
        self.delivery.dead = (code, reason)
        self.delivery.diary.note(f"bury {self.delivery.id}")

    async def settle(self) -> None:
        await self.delivery.end("settle")

    async def abandon(self) -> None:
        if not self.delivery.ended:
            await self.delivery.end("abandon")

    async def retry(self, delay: timedelta, blame: Blame) -> None:
        await self.delivery.end("retry", delay=delay, blame=blame)

    async def defer(self, delay: timedelta) -> None:
        await self.delivery.end("defer", delay=delay)


@dataclass(slots=True, kw_only=True, eq=False)
class FakeDelivery:
    """The port `Delivery`. `check` fails unless it was settled exactly once, and its lease, if it got one, too.

    `gone` makes it one that the broker has taken back: whatever settles it fails.
    """

    submission: Job | Invalid
    diary: Diary = field(default_factory=Diary)
    body: bytes = b"{}"
    fresh: bool = True
    number: int = 1
    lost: int = 0
    given_back: int = 0
    deferrals: int = 0
    run: str = "run"
    vanished: Vanished | None = None
    not_before: datetime | None = None
    gone: bool = False
    claimable: asyncio.Event = field(default_factory=asyncio.Event)
    taken_by: str | None = None
    lease: FakeLease | None = None
    settled: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    delay: timedelta | None = None
    blame: Blame | None = None
    dead: tuple[DeadCode, str] | None = None
    done: Callable[["FakeDelivery"], None] = lambda _: None

    def __post_init__(self) -> None:
        self.claimable.set()

    @property
    def live(self) -> bool:
        return not self.gone

    @property
    def id(self) -> str:
        return self.submission.key.id if isinstance(self.submission, Job) else self.submission.id

    @property
    def how(self) -> str | None:
        """How it was settled in the end; None while it is not."""
        ways = self.ended if self.settled == ["claim"] else self.settled
        return ways[0] if ways else None

    def check(self) -> None:
        if self.gone:
            return
        assert len(self.settled) == 1, f"delivery of {self.id} was settled {len(self.settled)} times: {self.settled}"
        leases = 1 if self.lease is not None and not self.lease.taken.is_set() else 0
        assert len(self.ended) == leases, f"lease of {self.id} was given back {len(self.ended)} times: {self.ended}"

    async def claim(self, claim: str) -> Lease:
        await self.claimable.wait()
        await self._settle("claim")
        self.taken_by = claim
        self.lease = self._lease(number=self.number, lost=self.lost)
        return self.lease

    async def resume(self, claim: str) -> Lease:
        await self._settle("claim")
        self.taken_by = claim
        self.lease = self._lease(number=self.number - 1, lost=self.lost - 1)
        return self.lease

    def _lease(self, *, number: int, lost: int) -> FakeLease:
        return FakeLease(delivery=self, number=number, lost=lost, given_back=self.given_back, deferrals=self.deferrals)

    async def bury(self, code: DeadCode, reason: str) -> None:
        await self._settle("bury")
        self.dead = (code, reason)
        self.done(self)

    async def drop(self) -> None:
        await self._settle("drop")
        self.done(self)

    async def defer(self, delay: timedelta) -> None:
        await self._settle("pass on")
        self.delay = delay
        self.done(self)

    async def postpone(self, delay: timedelta) -> None:
        await self._settle("postpone")
        self.delay = delay
        self.done(self)

    async def release(self) -> None:
        await self._settle("release")
        self.done(self)

    async def end(self, how: str, *, delay: timedelta | None = None, blame: Blame | None = None) -> None:
        await asyncio.sleep(0)
        self.ended.append(how)
        self.delay, self.blame = delay, blame
        self.diary.note(f"{how} {self.id}")
        self.done(self)

    async def _settle(self, how: str) -> None:
        await asyncio.sleep(0)
        if self.gone:
            raise BrokerError("the channel is closed")
        self.settled.append(how)
        self.diary.note(f"{how} {self.id}")


class FakeIntake:
    """The port `Intake`, and the broker behind it. Gives out as many deliveries as are wanted, no more.

    `put` a delivery in, or `submit` a message as it would come through the exchange. With `brings_back`, what is
    passed on or to start again comes again at once.
    """

    def __init__(self, diary: Diary | None = None, *, brings_back: bool = False) -> None:
        self.diary = diary or Diary()
        self.brings_back = brings_back
        self.dead: list[FakeDelivery] = []
        self.queued: deque[FakeDelivery] = deque()
        self.given: list[FakeDelivery] = []
        self.wanted = 0
        self.most_wanted = 0
        self.closed = False
        self._offered: deque[FakeDelivery] = deque()
        self._changed = asyncio.Event()

    def put(self, submission: Job | Invalid | FakeDelivery, **more: object) -> FakeDelivery:
        delivery = submission if isinstance(submission, FakeDelivery) else FakeDelivery(submission=submission)
        delivery = replace(delivery, diary=self.diary, done=self._done, **more)  # type: ignore[arg-type]
        self.queued.append(delivery)
        self._changed.set()
        return delivery

    def submit(self, body: bytes, route: Route = ROUTE) -> FakeDelivery:
        return self.put(FakeDelivery(submission=decode_job(body, Envelope(route=route), NOW), body=body))

    def offer(self, submission: Job | Invalid | FakeDelivery, **more: object) -> FakeDelivery:
        """Give it out whether or not it is wanted, as expired leases are."""
        delivery = self.put(submission, **more)
        self.queued.remove(delivery)
        self._offered.append(delivery)
        return delivery

    async def take(self) -> Delivery:
        while not self._offered and not (self.wanted > 0 and self.queued):
            self._changed.clear()
            await self._changed.wait()
        if self._offered:
            delivery = self._offered.popleft()
        else:
            delivery = self.queued.popleft()
            self.wanted -= 1
        self.given.append(delivery)
        return delivery

    def want(self, count: int) -> None:
        assert count >= 0
        self.wanted = 0 if self.closed else count
        self.most_wanted = max(self.most_wanted, self.wanted)
        self._changed.set()

    async def close(self) -> None:
        self.diary.note("close intake")
        self.closed = True
        self.want(0)

    def check(self) -> None:
        """Every delivery that was taken was settled exactly once."""
        for delivery in self.given:
            delivery.check()

    def _done(self, delivery: FakeDelivery) -> None:
        if delivery.dead is not None:
            self.dead.append(delivery)
        if delivery.how == "release":
            self._again(delivery, fresh=delivery.fresh)
        elif not self.brings_back:
            return
        elif delivery.how == "retry":
            lost = delivery.lost + (delivery.blame is Blame.PLATFORM)
            given_back = delivery.given_back + (delivery.blame is Blame.NONE)
            self._again(delivery, number=delivery.number + 1, lost=lost, given_back=given_back, deferrals=0)
        elif delivery.how in ("defer", "pass on"):
            self._again(delivery, deferrals=delivery.deferrals + 1)
        elif delivery.how == "postpone":
            self._again(delivery)

    def _again(self, delivery: FakeDelivery, *, fresh: bool = False, **more: object) -> None:
        again = replace(delivery, settled=[], ended=[], lease=None, fresh=fresh, **more)  # type: ignore[arg-type]
        self.queued.appendleft(again)
        self._changed.set()


class FakeEvents:
    """The port `Events`. Each event has to be one that can be sent. `confirms` holds back all confirmations."""

    def __init__(self, diary: Diary | None = None) -> None:
        self.diary = diary or Diary()
        self.published: list[Event] = []
        self.bodies: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.confirms = asyncio.Event()
        self.confirms.set()

    async def publish(self, event: Event) -> None:
        notice = encode_event(event)
        body = json.loads(notice.body.encode(), parse_constant=_refuse)
        self.bodies.append(body)
        self.published.append(event)
        await self.confirms.wait()
        if notice.reply is not None:
            self.replies.append(body)
        await asyncio.sleep(0)
        self.diary.note(f"{event.kind} {_id(event)}")

    def of(self, job_id: str) -> list[Event]:
        return [event for event in self.published if _id(event) == job_id]

    def kinds(self, job_id: str) -> list[EventKind]:
        return [event.kind for event in self.of(job_id)]

    def outcome(self, job_id: str) -> Outcome | None:
        """How the job finished; None when it has not. A job that finished twice is a fault."""
        results = [event.result for event in self.of(job_id) if event.kind is EventKind.FINISHED]
        assert len(results) <= 1, f"{job_id} finished {len(results)} times"
        return results[0].verdict.outcome if results and results[0] else None


def _id(event: Event) -> str:
    return event.submission.key.id if isinstance(event.submission, Job) else event.submission.id


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


class FakeLogSink:
    """The port `LogSink`. With `stuck`, nothing is ever confirmed."""

    def __init__(self, diary: Diary | None = None) -> None:
        self.diary = diary or Diary()
        self.batches: list[Batch] = []
        self.bodies: list[dict[str, Any]] = []
        self.forgotten: list[str] = []
        self.stuck = False

    def offer(self, batch: Batch) -> None:
        self.bodies.append(json.loads(encode_batch(batch)))
        self.batches.append(batch)

    async def room(self, claim: str) -> None:
        """There always is."""

    def confirmed(self, claim: str) -> int:
        numbers = [batch.seq for batch in self.batches if batch.claim == claim and batch.seq is not None]
        return 0 if self.stuck else max(numbers, default=0)

    def forget(self, claim: str) -> None:
        self.forgotten.append(claim)

    async def flush(self, key: JobKey, claim: str, timeout: float) -> bool:  # noqa: ARG002 - the port's
        self.diary.note(f"flush {key.id}")
        if self.stuck:
            await asyncio.sleep(max(0.0, timeout))
        return not self.stuck

    def text(self, claim: str) -> str:
        """What was kept of a claim's log."""
        lines = [line for batch in self.batches if batch.claim == claim and batch.seq for line in batch.lines]
        return "".join(line.text + ("" if line.partial else "\n") for line in lines)


class FakeStacks:
    """The port `Stacks`. What a name leads to may also be an exception."""

    def __init__(self, stacks: Mapping[str, Stack | Exception] | None = None) -> None:
        self.stacks: dict[str, Stack | Exception] = dict(stacks or {STACK.name: STACK})
        self.invalidated: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def resolve(self, ref: StackRef) -> Stack:
        await self.answers.wait()
        found = self.stacks.get(ref.name, DeferredError(f"this worker has no stack {ref.name}"))
        if isinstance(found, Exception):
            raise found
        return found

    def invalidate(self, name: str) -> None:
        self.invalidated.append(name)


class FakeSecrets:
    """The port `Secrets`: values by tenant and name; those of `_shared` are everybody's."""

    def __init__(self, values: Mapping[tuple[str, str], bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.asked: list[tuple[str, ...]] = []

    async def read(self, tenant: str, secrets: Sequence[SecretRef]) -> Mapping[str, bytes]:
        self.asked.append(tuple(secret.name for secret in secrets))
        return {secret.name: self._value(tenant, secret) for secret in secrets}

    def _value(self, tenant: str, secret: SecretRef) -> bytes:
        for owner in (tenant, "_shared") if secret.shared else (tenant,):
            if (owner, secret.name) in self.values:
                return self.values[owner, secret.name]
        raise RejectedError(f"secret {secret.name}: tenant {tenant} has none", operator=True)


class FakeCancelled:
    """The port `Cancelled`. While `caught_up` is not set, it does not answer."""

    def __init__(self) -> None:
        self.reasons: dict[JobKey, str] = {}
        self.caught_up = asyncio.Event()
        self.caught_up.set()

    async def reason(self, key: JobKey) -> str | None:
        await self.caught_up.wait()
        return self.reasons.get(key)


class FakeUniqueness:
    """The port `Uniqueness`, for ever: of the runs of a job, the first one wins. `answers` holds back the answer."""

    def __init__(self) -> None:
        self.winners: dict[JobKey, str] = {}
        self.asked: list[tuple[JobKey, str, str, timedelta]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.fault: BrokerError | None = None

    async def wins(self, key: JobKey, run: str, claim: str, span: timedelta) -> bool:
        self.asked.append((key, run, claim, span))
        await self.answers.wait()
        if self.fault is not None:
            raise self.fault
        return self.winners.setdefault(key, run) == run


class FakeObserver:
    """The port `Observer`."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.adopted: list[str] = []
        self.attempts_ended: list[str] = []
        self.ended: list[tuple[str | None, Outcome]] = []
        self.phases: list[Phases] = []
        self.cleaned: list[str] = []
        self.retries: Counter[Blame] = Counter()
        self.dead: Counter[DeadCode] = Counter()
        self.deferrals = 0
        self.bytes: Counter[Stream] = Counter()
        self.omitted = 0
        self.claimed: Sequence[float] = (0, 0)

    def job_started(self, plan: Plan, *, warm: bool, seconds: float) -> None:
        assert not warm
        assert seconds >= 0
        self.started.append(plan.stack.name)

    def job_adopted(self, plan: Plan) -> None:
        self.adopted.append(plan.stack.name)

    def job_ended(self, stack: str | None, outcome: Outcome, phases: Phases) -> None:
        self.ended.append((stack, outcome))
        self.phases.append(phases)

    def attempt_ended(self, stack: str) -> None:
        self.attempts_ended.append(stack)

    def cleaned_up(self, stack: str, seconds: float) -> None:
        assert seconds >= 0
        self.cleaned.append(stack)

    def retried(self, blame: Blame) -> None:
        self.retries[blame] += 1

    def buried(self, code: DeadCode) -> None:
        self.dead[code] += 1

    def deferred(self) -> None:
        self.deferrals += 1

    def output(self, stream: Stream, count: int) -> None:
        self.bytes[stream] += count

    def output_omitted(self, count: int) -> None:
        self.omitted += count

    def claims(self, *, cpus: float, memory: Bytes) -> None:
        self.claimed = (cpus, memory)


class NotingEngine(FakeEngine):
    """Notes in the diary what it makes and removes. While `cleans` is not set, nothing is removed."""

    def __init__(self, diary: Diary, scripts: Mapping[tuple[str, ...], Script], default: Script = RUNS) -> None:
        super().__init__(scripts, default)
        self.started = NOW
        self.diary = diary
        self.cleans = asyncio.Event()
        self.cleans.set()
        self.of: dict[str, FakeContainer] = {}

    async def launch(self, attempt: Attempt, on_output: OnOutput) -> FakeContainer:
        job_id = attempt.plan.job.key.id
        self.diary.note(f"launch {job_id}")
        container = await super().launch(attempt, on_output)
        self.of[job_id] = container
        return container

    async def discard(self, attempt: Attempt, *, patient: bool = False) -> None:
        await self.cleans.wait()
        await super().discard(attempt, patient=patient)
        self.diary.note(f"discard {attempt.plan.job.key.id}")


class NotingJournal(FakeJournal):
    """Notes in the diary what it is told."""

    def __init__(self, diary: Diary, now: Callable[[], datetime]) -> None:
        super().__init__(now)
        self.diary = diary
        self.ids: dict[str, str] = {}

    async def claimed(self, record: ClaimRecord) -> None:
        await asyncio.sleep(0)
        await super().claimed(record)
        self.ids[record.claim] = record.key.id
        self.diary.note(f"write claimed {record.key.id}")

    async def ended(self, claim: str, *, finished: bool, owed: Event | None = None) -> None:
        await asyncio.sleep(0)
        await super().ended(claim, finished=finished, owed=owed)
        self.diary.note(f"write {'finished' if finished else 'ended'} {self.ids.get(claim, claim)}")

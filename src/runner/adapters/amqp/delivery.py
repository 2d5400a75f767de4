"""A message that was taken, and its way on: claimed under a lease, passed on, buried, or put back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from runner.adapters.amqp.intake import Ack, Soon
from runner.adapters.amqp.leases import LeaseHold, Leases
from runner.adapters.amqp.link import BROKER_FAULTS, AckUnknown, acking, describe
from runner.adapters.amqp.names import DeadHeader, Header, Names, delay_path, is_smuggled
from runner.adapters.amqp.publisher import Publisher
from runner.codec import ID, Envelope, decode_job, new_id, parse_route, tenant_of
from runner.errors import BrokerError
from runner.job import Blame, DeadCode, Invalid, Job, Priority, Route
from runner.ports import Lease, QueueKey, Vanished

_SMUGGLED = "was dead-lettered into the exchange of submissions, whose permissions its sender so went round"
_DOTS = 2
_JSON = "application/json"
_POISON_AT = 15
"""Deliveries of one message after which a worker buries it, before the broker does so without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """What a job takes along when it is published again: our own headers, and nothing of anybody else's."""

    body: bytes
    route: Route
    published: datetime
    attempts: int = 0
    lost: int = 0
    given_back: int = 0
    deferrals: int = 0
    submitted_as: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None
    run: str = field(default_factory=new_id)

    def message(self, **more: str | int) -> aio_pika.Message:
        """A message with this body; `more` are further internal headers by their names in `Header`."""
        headers: dict[str, str | int] = {
            Header.ATTEMPT: self.attempts,
            Header.LOST: self.lost,
            Header.GIVEN_BACK: self.given_back,
            Header.DEFERRALS: self.deferrals,
            Header.PUBLISHED: to_milliseconds(self.published),
            Header.ROUTE: str(self.route),
            Header.RUN: self.run,
        }
        if self.submitted_as is not None:
            headers[Header.SUBMITTED_AS] = self.submitted_as
        if self.traceparent is not None:
            headers["traceparent"] = self.traceparent
        return aio_pika.Message(
            self.body,
            headers={**headers, **{Header[name.upper()]: value for name, value in more.items()}},
            content_type=_JSON,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=new_id(),
            reply_to=self.reply_to,
            correlation_id=self.correlation_id,
        )


def to_milliseconds(time: datetime) -> int:
    """Unix time in whole milliseconds."""
    return round(time.timestamp() * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where deliveries are made from messages: everything that they need to go on."""

    names: Names
    publisher: Publisher
    leases: Leases

    def open(
        self, message: AbstractIncomingMessage, queue: QueueKey | None, ack: Ack, soon: Soon | None = None
    ) -> "JobDelivery":
        """The delivery in a message of a job queue (or of the unrouted or lost ones: `queue` is None)."""
        now = datetime.now(UTC)
        internal = self.names.is_internal(message.exchange or "")
        headers: Mapping[str, object] = message.headers if internal else {}
        passport, submission = self._read(message, queue, headers, now)
        not_before = headers.get(Header.NOT_BEFORE)
        return JobDelivery(
            desk=self,
            message=message,
            ack=ack,
            soon=soon,
            submission=submission,
            passport=passport,
            fresh=not internal,
            not_before=_from_milliseconds(not_before) if isinstance(not_before, int) else None,
        )

    def open_lease(self, message: AbstractIncomingMessage, ack: Ack) -> "JobDelivery":
        """The delivery in a lease that its holder let go of: a job that was lost once more."""
        delivery = self.open(message, None, ack)
        if delivery.passport is not None:
            delivery.passport = replace(delivery.passport, lost=delivery.lost + 1, deferrals=0)
        worker, claim = message.headers.get(Header.WORKER), message.headers.get(Header.CLAIM)
        delivery.vanished = Vanished(worker=str(worker), claim=str(claim))
        return delivery

    def open_unrouted(self, message: AbstractIncomingMessage, ack: Ack) -> "JobDelivery":
        """The delivery in a message that no job queue took: no job, whatever it says."""
        now = datetime.now(UTC)
        return JobDelivery(
            desk=self,
            message=message,
            ack=ack,
            submission=_unrouted(message, now),
            passport=None,
            fresh=True,
        )

    def _read(
        self, message: AbstractIncomingMessage, queue: QueueKey | None, headers: Mapping[str, object], now: datetime
    ) -> tuple[Passport | None, Job | Invalid]:
        try:
            route = parse_route(str(headers.get(Header.ROUTE) or message.routing_key or ""))
            self._check_way(message, route, queue)
        except ValueError as error:
            return None, _nobody(str(error), now)
        envelope = _envelope(message, route, headers)
        submission = decode_job(message.body, envelope, now)
        passport = Passport(
            body=message.body,
            route=route,
            published=submission.published,
            attempts=_count(headers, Header.ATTEMPT),
            lost=_count(headers, Header.LOST),
            given_back=_count(headers, Header.GIVEN_BACK),
            deferrals=_count(headers, Header.DEFERRALS),
            submitted_as=submission.key.id if isinstance(submission, Job) else submission.id,
            reply_to=envelope.reply_to,
            correlation_id=envelope.correlation_id,
            traceparent=envelope.traceparent,
            run=_run(headers),
        )
        if isinstance(submission, Job):
            return passport, _poisoned(message, submission) or submission
        return passport, submission

    def _check_way(self, message: AbstractIncomingMessage, route: Route, queue: QueueKey | None) -> None:
        """A message that came by a way that its sender's permissions do not cover runs as nobody."""
        exchange = message.exchange or ""
        if exchange != self.names.submit and not self.names.is_internal(exchange):
            raise ValueError(f"came through exchange {exchange!r}; jobs are published to {self.names.submit!r}")
        if exchange == self.names.submit and is_smuggled(message.headers):
            raise ValueError(_SMUGGLED)
        if queue is None:
            return
        same = (route.pool, route.priority) == (queue.pool, queue.priority)
        if not same or queue.tenant not in (None, route.tenant):
            raise ValueError(f"routing key {message.routing_key!r} does not belong to queue {self.names.jobs(queue)}")


@dataclass(slots=True, kw_only=True)
class JobDelivery:
    """The port `Delivery`. `passport` is None for what belongs to nobody and can only be buried."""

    desk: Desk
    message: AbstractIncomingMessage
    ack: Ack
    submission: Job | Invalid
    passport: Passport | None
    fresh: bool
    soon: Soon | None = None
    vanished: Vanished | None = None
    not_before: datetime | None = None
    over: bool = False

    @property
    def live(self) -> bool:
        """False once the channel that it came on is closed."""
        try:
            return not self.message.channel.is_closed
        except BROKER_FAULTS:
            return False

    @property
    def number(self) -> int:
        """The attempt that the next start would be."""
        return self._passport.attempts + 1

    @property
    def lost(self) -> int:
        """How often the platform lost the job."""
        return self._passport.lost

    @property
    def deferrals(self) -> int:
        """How often the job was passed on in a row."""
        return self._passport.deferrals

    @property
    def run(self) -> str:
        """Which submission this is."""
        return self._passport.run

    @property
    def _passport(self) -> Passport:
        if self.passport is None:
            raise AssertionError("a message of nobody was treated as a job")
        return self.passport

    async def resume(self, claim: str) -> Lease:
        """Go on under the claim of our earlier life: the attempt is the same one, and nothing was lost."""
        passport = replace(self._passport, lost=self.lost - 1)
        hold = self.desk.leases.resume(claim, self.message, passport.message)
        return JobLease(desk=self.desk, hold=hold, passport=passport)

    async def claim(self, claim: str) -> Lease:
        """Take a lease, then ack: from here on the job is ours until the lease expires."""
        passport = replace(self._passport, attempts=self.number)
        if self.soon is not None:
            self.soon()
        hold = await self.desk.leases.acquire(claim, passport.message)
        try:
            await self._acked()
        except AckUnknown:
            # The lease may be all that is left of the job. It comes back to us, or to somebody else, and runs.
            hold.let_go()
            raise
        except BrokerError:
            # The broker has the delivery back, and somebody will take it: our lease must not run it again.
            await hold.give_up()
            raise
        return JobLease(desk=self.desk, hold=hold, passport=passport)

    async def bury(self, code: DeadCode, reason: str) -> None:
        """Send the body, byte for byte, to the dead letters, then ack."""
        came_by = self.message.routing_key or ""
        letter = _Letter(
            body=self.message.body,
            content_type=self.message.content_type,
            came_by=came_by if self.fresh or self.passport is None else str(self.passport.route),
            id=self.submission.key.id if isinstance(self.submission, Job) else self.submission.id,
        )
        await letter.send(self.desk, code, reason)
        await self._acked()

    async def drop(self) -> None:
        """Ack."""
        await self._acked()

    async def defer(self, delay: timedelta) -> None:
        """Publish the job through the delay levels, then ack."""
        passport = replace(self._passport, deferrals=self.deferrals + 1)
        await send_later(self.desk, passport, delay)
        await self._acked()

    async def postpone(self, delay: timedelta) -> None:
        """Publish the job through the delay levels as it is, then ack."""
        await send_later(self.desk, self._passport, delay)
        await self._acked()

    async def _acked(self) -> None:
        await self.ack()
        self.over = True

    async def release(self) -> None:
        """Put the message back at its old place; it counts as one more delivery.

        A lease goes back with its connection: put back before, it would come to us again, as a second copy.
        """
        if self.over or self.vanished is not None:
            return
        try:
            await self.message.nack(requeue=True)
        except BROKER_FAULTS as error:
            raise BrokerError(describe(error)) from error


@dataclass(slots=True, kw_only=True)
class JobLease:
    """The port `Lease`."""

    desk: Desk
    hold: LeaseHold
    passport: Passport
    over: bool = False

    @property
    def number(self) -> int:
        """The attempt that this claim leads to."""
        return self.passport.attempts

    @property
    def lost(self) -> int:
        """How often the platform lost the job before."""
        return self.passport.lost

    @property
    def given_back(self) -> int:
        """How often a worker on its way out stopped the job before."""
        return self.passport.given_back

    @property
    def deferrals(self) -> int:
        """How often the job was passed on in a row."""
        return self.passport.deferrals

    async def ours(self) -> bool:
        """Whether nobody has taken the job over; waits while the broker cannot tell."""
        return await self.hold.ours()

    async def taken_over(self) -> None:
        """Return when another worker has the job."""
        await self.hold.taken_over()

    async def endangered(self, ahead: timedelta) -> None:
        """Return when another worker may have the job, `ahead` from now, because we are cut off."""
        await self.hold.endangered(ahead)

    async def bury(self, code: DeadCode, reason: str) -> None:
        """Send the job's message to the dead letters; the lease stays until it is settled."""
        passport = self.passport
        letter = _Letter(
            body=passport.body,
            content_type=_JSON,
            came_by=str(passport.route),
            id=passport.submitted_as or "",
        )
        await letter.send(self.desk, code, reason)

    async def settle(self) -> None:
        """Forget the job."""
        self.over = True
        await self.hold.give_up()

    async def retry(self, delay: timedelta, blame: Blame) -> None:
        """Publish the job again, then forget this claim."""
        lost = self.lost + (blame is Blame.PLATFORM)
        given_back = self.given_back + (blame is Blame.NONE)
        passport = replace(self.passport, lost=lost, given_back=given_back, deferrals=0)
        await send_later(self.desk, passport, delay)
        self.over = True
        await self.hold.give_up()

    async def abandon(self) -> None:
        """Have the job started again after a fault of ours, later each time."""
        if not self.over:
            await self.retry(timedelta(seconds=2 ** min(self.lost, 6)), Blame.PLATFORM)

    async def defer(self, delay: timedelta) -> None:
        """Pass the job on: it was not started, so it has its attempt back."""
        passport = replace(self.passport, attempts=self.number - 1, deferrals=self.passport.deferrals + 1)
        await send_later(self.desk, passport, delay)
        self.over = True
        await self.hold.give_up()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Letter:
    """A message on its way to the dead letters, with where it came from and whose it is."""

    body: bytes
    content_type: str | None
    came_by: str
    id: str

    async def send(self, desk: Desk, code: DeadCode, reason: str) -> None:
        """Return when the broker has it."""
        headers: dict[str, str] = {
            DeadHeader.REASON: reason[:4000],
            DeadHeader.CODE: code.value,
            DeadHeader.FROM: self.came_by,
            DeadHeader.ID: self.id,
        }
        message = aio_pika.Message(
            self.body,
            headers={**headers},
            content_type=self.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=new_id(),
            timestamp=datetime.now(UTC),
        )
        await desk.publisher.publish_surely(desk.names.dead, "", message, mandatory=True)


def plain_ack(message: AbstractIncomingMessage) -> Ack:
    """The ack of a message that did not come from a job queue."""

    async def ack() -> None:
        with acking():
            await message.ack()

    return ack


async def send_later(desk: Desk, passport: Passport, delay: timedelta) -> None:
    """Publish a job so that it arrives after `delay` (whole seconds, rounded up); the broker holds it meanwhile."""
    seconds = -(-delay // timedelta(seconds=1))
    path = delay_path(seconds, passport.route)
    due = to_milliseconds(datetime.now(UTC) + delay)
    exchange, key = (
        (desk.names.delay_out, str(passport.route)) if path is None else (desk.names.delay(path[0]), path[1])
    )
    message = passport.message(not_before=due)
    await desk.publisher.publish_surely(exchange, key, message, mandatory=True)


def _nobody(reason: str, now: datetime) -> Invalid:
    return Invalid(
        code=DeadCode.REJECTED, reason=reason, id=new_id(), tenant=None, pool=None, priority=None, published=now
    )


def _poisoned(message: AbstractIncomingMessage, job: Job) -> Invalid | None:
    """A message that was delivered again and again brings down whoever takes it."""
    count = message.headers.get("x-delivery-count")
    if not message.redelivered or not isinstance(count, int) or count < _POISON_AT:
        return None
    reason = f"was delivered {count} times without anybody getting as far as running it"
    return refuse(job, DeadCode.DELIVERY_LIMIT, reason)


def _unrouted(message: AbstractIncomingMessage, now: datetime) -> Invalid:
    """What can be told of a job whose routing key no queue is bound with."""
    key = message.routing_key or ""
    tenant = tenant_of(key)
    if tenant is None:
        return _nobody(f"routing key {key!r} does not end in a tenant", now)
    if is_smuggled(message.headers):
        return _nobody(_SMUGGLED, now)
    pool, priority = ("", "", *key.split("."))[-3:-1]
    stand_in = Route(pool="unknown", priority=Priority.NORMAL, tenant=tenant)
    submission = decode_job(message.body, _envelope(message, stand_in, {}), now)
    try:
        parse_route(key)
        reason = f"no worker serves pool {pool!r}; publish to a pool that the operator names"
        if key.count(".") != _DOTS:
            reason = f"routing key {key!r} is not <pool>.<priority>.<tenant>"
    except ValueError as error:
        reason = str(error)
    if isinstance(submission, Job):
        submission = refuse(submission, DeadCode.UNROUTABLE, reason)
    return replace(submission, code=DeadCode.UNROUTABLE, reason=reason, pool=pool, priority=priority)


def refuse(job: Job, code: DeadCode, reason: str) -> Invalid:
    """A well-formed job that is not to be run all the same."""
    return Invalid(
        code=code,
        reason=reason,
        id=job.key.id,
        tenant=job.route.tenant,
        pool=job.route.pool,
        priority=job.route.priority,
        published=job.published,
        labels=job.labels,
        name=job.name,
        stack=str(job.stack),
        reply=job.reply,
    )


def _envelope(message: AbstractIncomingMessage, route: Route, headers: Mapping[str, object]) -> Envelope:
    submitted_as = headers.get(Header.SUBMITTED_AS)
    published = headers.get(Header.PUBLISHED)
    trace = message.headers.get("traceparent")
    return Envelope(
        route=route,
        message_id=submitted_as if isinstance(submitted_as, str) else message.message_id,
        published=_from_milliseconds(published) if isinstance(published, int) else message.timestamp,
        reply_to=message.reply_to,
        correlation_id=str(message.correlation_id) if message.correlation_id is not None else None,
        traceparent=trace if isinstance(trace, str) else None,
    )


def _from_milliseconds(value: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(value / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _run(headers: Mapping[str, object]) -> str:
    """The submission's name, given when it is first taken. It has to be in the lease before anything hangs on it."""
    run = headers.get(Header.RUN)
    return run if isinstance(run, str) and ID.fullmatch(run) else new_id()


def _count(headers: Mapping[str, object], name: str) -> int:
    value = headers.get(name)
    return value if isinstance(value, int) and value >= 0 else 0

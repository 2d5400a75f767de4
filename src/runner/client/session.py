"""The connection of a client, and what is done over it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import DeliveredMessage

from runner.adapters.amqp.ask import Asker, open_asker
from runner.adapters.amqp.connect import connect_once
from runner.adapters.amqp.link import BROKER_FAULTS, describe, is_our_own
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Unroutable
from runner.client import inquiry
from runner.client.following import Following
from runner.client.inquiry import Found
from runner.client.jobs import SubmittedJob
from runner.client.messages import LogBatch
from runner.client.packing import with_packed_code
from runner.client.subscription import Subscription
from runner.codec import ID, WORD, Envelope, decode_job, new_id, new_ordered_id, parse_route
from runner.errors import BrokerError, PublishUncertain, RejectedError
from runner.job import Invalid, JobKey, Priority

_CONFIRM_TIMEOUT = 10.0
_REASON_MAX = 1024
_APPLY = "have an operator run: runner topology apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that the broker has taken charge of."""

    id: str
    tenant: str
    pool: str
    priority: Priority


class Client:
    """Submits, follows and cancels jobs over one connection: `async with Client(url) as client: …`.

    `url` is an AMQP address, or several of which the first that answers is used. Not for several threads. A client does
    not reconnect: when the connection is lost, everything that waits raises `BrokerError`, and a new client is needed.
    """

    def __init__(self, url: str | Sequence[str], namespace: str = "jobs") -> None:
        self._urls = [url] if isinstance(url, str) else list(url)
        self._names = Names(namespace)
        self._lifetimes = AsyncExitStack()
        self._connection: AbstractConnection | None = None
        self._publishing: AbstractChannel | None = None
        self._subscription: Subscription | None = None
        self._asker: Asker | None = None
        self._turn = asyncio.Lock()
        self._clearing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises `BrokerError` when no broker answers."""
        async with AsyncExitStack() as stack:
            self._connection = await stack.enter_async_context(connect_once(self._urls, "runner:client"))
            stack.push_async_callback(self._stop_clearing)
            self._lifetimes = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            self._subscription.fail("the client was closed")
        await self._lifetimes.aclose()
        self._connection = self._publishing = self._subscription = self._asker = None

    async def submit(
        self, *, tenant: str = "default", pool: str = "default", priority: Priority | str = "normal", **fields: Any
    ) -> SubmittedJob:
        """Publish a job with these fields (`stack`, `command`, …) and follow it; nothing of it is missed.

        `code` may be a `Path` as well, a folder that is packed or an archive, or an archive's bytes.
        Raises `RejectedError` naming a wrong field, `BrokerError` when the broker did not take the job, and
        `PublishUncertain` when it may or may not have.
        """
        return await self.submit_message(fields, tenant=tenant, pool=pool, priority=priority)

    async def submit_message(
        self,
        message: Mapping[str, Any],
        *,
        tenant: str = "default",
        pool: str = "default",
        priority: Priority | str = "normal",
        check: bool = True,
    ) -> SubmittedJob:
        """The same for a whole message. Without `check` the workers are its only judge."""
        message = await _packed(message)
        envelope, body = _prepare(message, f"{pool}.{priority}.{tenant}", check=check)
        following = await self._follow(JobKey(tenant=tenant, id=envelope.message_id or ""), submitted=True)
        try:
            await self._publish_job(envelope, body)
        except (BrokerError, asyncio.CancelledError):
            following.close()  # nobody has a handle of it
            raise
        self._clear_away()  # not waited for: whoever was cancelled here would have a job and no handle
        return SubmittedJob(following, self.cancel)

    async def enqueue(
        self,
        message: Mapping[str, Any],
        *,
        tenant: str = "default",
        pool: str = "default",
        priority: Priority | str = "normal",
        check: bool = True,
    ) -> Submission:
        """Publish a job without following it. Raises as `submit` does."""
        message = await _packed(message)
        envelope, body = _prepare(message, f"{pool}.{priority}.{tenant}", check=check)
        await self._publish_job(envelope, body)
        route = envelope.route
        return Submission(id=envelope.message_id or "", tenant=tenant, pool=route.pool, priority=route.priority)

    async def follow(self, tenant: str, job_id: str) -> SubmittedJob:
        """Follow a job that is on its way, from now on: what it told before is not told again."""
        following = await self._follow(_key(tenant, job_id), submitted=False)
        self._clear_away()
        return SubmittedJob(following, self.cancel)

    async def cancel(self, tenant: str, job_id: str, reason: str = "") -> None:
        """Have a job stopped, wherever it is. Returns when the broker has the request, not when the job has ended."""
        key = _key(tenant, job_id)
        told = reason.encode(errors="replace")[:_REASON_MAX].decode(errors="ignore")
        body = json.dumps({"reason": told}, ensure_ascii=False).encode()
        message = _message(body, new_id())
        await self._publish(self._names.control, self._names.cancel_key(key.tenant, key.id), message)

    async def find(self, tenant: str, job_id: str, *, wait: float = 1.0, everyone: bool = False) -> list[Found]:
        """Ask all workers about a job; first in the list is who knows best, and nobody may know it.

        Those answer that have it, or had it lately; a job that waits in the broker is known to none. Waits for `wait`
        seconds, unless somebody is sure before and it need not be `everyone`.
        """
        return await inquiry.find(await self._asking(), _key(tenant, job_id), wait, everyone=everyone)

    async def kept_log(self, tenant: str, job_id: str, found: Sequence[Found]) -> AsyncIterator[LogBatch]:
        """The log as the workers keep it that `find` has found, up to this moment."""
        async for batch in inquiry.kept_log(await self._asking(), _key(tenant, job_id), found):
            yield batch

    async def recent(
        self, *, tenant: str | None = None, state: str | None = None, limit: int = 50, wait: float = 1.0
    ) -> list[Mapping[str, Any]]:
        """The jobs that the workers have, or had last, newest first. `state` may be an outcome, too. For operators."""
        return await inquiry.recent(await self._asking(), tenant=tenant, state=state, limit=limit, wait=wait)

    async def _asking(self) -> Asker:
        async with self._turn:
            if self._asker is None:
                self._asker = await self._lifetimes.enter_async_context(open_asker(self._connected(), self._names))
            return self._asker

    async def _follow(self, key: JobKey, *, submitted: bool) -> Following:
        following = Following(key, asyncio.get_running_loop().call_later, submitted=submitted)
        async with self._turn:
            subscription = self._subscription or Subscription(self._names)
            if self._subscription is None:
                await subscription.open(self._connected())
                self._subscription = subscription
        await subscription.add(following)  # may have to wait, which is nothing to the others
        return following

    def _clear_away(self) -> None:
        """Jobs that are over leave something behind in the broker: cleared away while the next one is on its way."""
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.create_task(self._forget_ended())

    async def _stop_clearing(self) -> None:
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.wait([self._clearing])

    async def _forget_ended(self) -> None:
        if self._subscription is not None:
            await self._subscription.forget_ended()

    async def _publish_job(self, envelope: Envelope, body: bytes) -> None:
        message = _message(body, envelope.message_id or "")
        await self._publish(self._names.submit, str(envelope.route), message)

    async def _publish(self, exchange: str, key: str, message: aio_pika.Message) -> None:
        """Return when the broker has confirmed the message."""
        try:
            channel = await self._publisher()
            target = await channel.get_exchange(exchange, ensure=False)
            confirmed = await target.publish(message, key, mandatory=True, timeout=_CONFIRM_TIMEOUT)
        except asyncio.CancelledError:
            if is_our_own():
                raise
            raise PublishUncertain("the connection was lost before the broker confirmed the message") from None
        except aiormq.exceptions.PublishError as error:
            raise Unroutable(f"no queue takes {key} from the exchange {exchange}; {_APPLY}") from error
        except aiormq.exceptions.DeliveryError as error:
            raise BrokerError(f"the broker refused the message: {describe(error)}") from error
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise BrokerError(f"the broker has no exchange {exchange}; {_APPLY}") from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerError(f"this user may not publish {key} to {exchange}: {describe(error)}") from error
        except TimeoutError as error:
            late = f"the broker did not confirm the message within {_CONFIRM_TIMEOUT:.0f} s"
            raise PublishUncertain(f"{late}; is it out of memory or disk?") from error
        except BROKER_FAULTS as error:
            raise PublishUncertain(describe(error)) from error
        if isinstance(confirmed, DeliveredMessage):
            raise Unroutable(f"no queue takes {key} from the exchange {exchange}; {_APPLY}")

    async def _publisher(self) -> AbstractChannel:
        """The channel to publish on; a refusal closes it, so there may have to be a new one."""
        async with self._turn:
            if self._publishing is None or self._publishing.is_closed:
                connection = self._connected()
                async with asyncio.timeout(_CONFIRM_TIMEOUT):
                    self._publishing = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return self._publishing

    def _connected(self) -> AbstractConnection:
        if self._connection is None:
            raise RuntimeError("the client is not connected; use it as: async with Client(url) as client")
        if self._connection.is_closed:
            raise BrokerError("the connection to the broker was lost")
        return self._connection


def check_job(
    message: Mapping[str, Any], *, tenant: str = "default", pool: str = "default", priority: Priority | str = "normal"
) -> None:
    """Raises `RejectedError` for a job that the workers would reject; needs no broker."""
    _prepare(with_packed_code(message), f"{pool}.{priority}.{tenant}", check=True)


async def _packed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its code packed, which may take a while where there is any."""
    return await asyncio.to_thread(with_packed_code, message) if "code" in message else message


def _prepare(message: Mapping[str, Any], routing_key: str, *, check: bool) -> tuple[Envelope, bytes]:
    """The message as it is published. Raises `RejectedError` with what a worker would say."""
    try:
        route = parse_route(routing_key)
    except ValueError as error:
        raise RejectedError(str(error)) from error
    if str(route) != routing_key:
        raise RejectedError(f"routing key {json.dumps(routing_key)} is not <pool>.<priority>.<tenant>")
    now = datetime.now(UTC)
    own = message.get("id")
    job_id = own if isinstance(own, str) and ID.fullmatch(own) else new_ordered_id(now)
    envelope = Envelope(route=route, message_id=job_id)
    body = _encode(message)
    if check and isinstance(verdict := decode_job(body, envelope, now), Invalid):
        raise RejectedError(verdict.reason)
    return envelope, body


def _encode(message: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(dict(message), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise RejectedError(f"the message cannot be written as JSON: {error}") from error
    try:
        return text.encode()
    except UnicodeEncodeError:
        # The judge of the fields names the one that is no text.
        return json.dumps(dict(message), separators=(",", ":")).encode()


def _message(body: bytes, message_id: str) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=message_id,
        timestamp=datetime.now(UTC),
    )


def _key(tenant: str, job_id: str) -> JobKey:
    """Whom a request is about; a dot in an id would make it about another. Raises `RejectedError`."""
    if not WORD.fullmatch(tenant):
        raise RejectedError(f"tenant {json.dumps(tenant)} is not a word")
    if not ID.fullmatch(job_id):
        raise RejectedError(f"id {json.dumps(job_id)} is not 1 to 64 letters, digits, dashes, underscores")
    return JobKey(tenant=tenant, id=job_id)

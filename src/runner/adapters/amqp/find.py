"""Answers whoever asks about jobs: `job.<tenant>.<job_id>.find`, and `all.jobs` for operators.

Whom a question is about is told by its routing key alone, since that is what the broker's permissions cover.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, until_closed
from runner.adapters.amqp.names import Names, is_server_named, is_smuggled
from runner.adapters.amqp.publisher import Publisher
from runner.codec import ID, REPLY_TO_MAX, WORD, new_id
from runner.errors import BrokerError
from runner.job import JobKey, Json

log = logging.getLogger(__name__)

PART_MAX = 256 * 1024
"""The most bytes of a log in one message."""
JOBS_MAX = 300
"""The most jobs in one answer."""
PART_HEADER, LAST_HEADER = "x-part", "x-last"
"""The number of a part of a log, from 0, and whether no other follows."""

_JOB_WORDS = 4
_LOGS_AT_ONCE = 2
_PREFETCH = 32
_STALE_AFTER_MS = 10_000
_QUESTIONS_MOST = 1000


class Knowledge(Protocol):
    """What a worker knows of jobs."""

    async def about(self, key: JobKey) -> dict[str, Json] | None:
        """Where a job is and what is known of it; None when nothing is."""

    async def recent(self, tenant: str | None, state: str | None, most: int) -> list[Json]:
        """The jobs that are here, and those that something was last heard of, newest first."""

    def log(self, key: JobKey, claim: str | None) -> AsyncIterator[bytes]:
        """The batches of a job's log that are kept, of one claim or of all, oldest first, each a line of JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """A user of the consume link. What is long goes out over the logs' connection, and never delays a result."""

    names: Names
    worker: str
    knowledge: Knowledge
    publisher: Publisher
    log_publisher: Publisher
    _logs: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LOGS_AT_ONCE))

    async def use(self, connection: AbstractConnection) -> None:
        """Answer until the connection ends. Nobody waits for what was asked while there was none."""
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=_PREFETCH)
            queue = await channel.declare_queue(
                self.names.worker_find(self.worker),
                exclusive=True,
                auto_delete=True,
                arguments={"x-message-ttl": _STALE_AFTER_MS, "x-max-length": _QUESTIONS_MOST},
            )
            for key in ("job.*.*.find", "all.jobs", f"worker.{self.worker}.jobs"):
                await queue.bind(self.names.control, key)
            await queue.consume(self._hear)
        await until_closed(channel)

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        words = (message.routing_key or "").split(".")
        to = message.reply_to or ""
        try:
            if not is_smuggled(message.headers) and 0 < len(to.encode(errors="replace")) <= REPLY_TO_MAX:
                await self._answer(words, message, to)
        except BrokerError as error:
            log.debug("a question could not be answered", extra={"key": message.routing_key, "fault": str(error)})
        finally:
            await _ack(message)

    async def _answer(self, words: list[str], message: AbstractIncomingMessage, to: str) -> None:
        asked = _asked(message.body)
        if words[-1] == "jobs":
            most = asked.get("limit")
            most = most if isinstance(most, int) and 0 < most <= JOBS_MAX else JOBS_MAX
            jobs = await self.knowledge.recent(_text(asked, "tenant"), _text(asked, "state"), most)
            await self._reply(message, to, "all", {"v": 1, "worker": self.worker, "jobs": jobs})
            return
        if len(words) != _JOB_WORDS or not (WORD.fullmatch(words[1]) and ID.fullmatch(words[2])):
            return
        key = JobKey(tenant=words[1], id=words[2])
        if asked.get("log") is True:
            async with self._logs:
                await self._send_log(message, to, key, _text(asked, "claim"))
        elif (known := await self.knowledge.about(key)) is not None:
            await self._reply(message, to, key.tenant, {"v": 1, "worker": self.worker, **known})

    async def _send_log(self, message: AbstractIncomingMessage, to: str, key: JobKey, claim: str | None) -> None:
        """Send the kept log in parts, as lines of JSON that are cut anywhere; a worker that has none says nothing."""
        number, text = 0, bytearray()
        async for batch in self.knowledge.log(key, claim):
            text += batch + b"\n"
            while len(text) > PART_MAX:
                await self._send_part(message, to, key.tenant, bytes(text[:PART_MAX]), number, last=False)
                del text[:PART_MAX]
                number += 1
        if text:
            await self._send_part(message, to, key.tenant, bytes(text), number, last=True)

    async def _send_part(
        self, message: AbstractIncomingMessage, to: str, tenant: str, text: bytes, number: int, *, last: bool
    ) -> None:
        headers = {PART_HEADER: number, LAST_HEADER: last}
        part = _message(message, text, "application/x-ndjson", {**headers, "x-worker": self.worker})
        # What comes back says that nobody waits any more, except for direct reply-to, where it says nothing.
        mandatory = not to.startswith("amq.rabbitmq.reply-to")
        await self.log_publisher.publish(*self._address(to, tenant), part, mandatory=mandatory)

    async def _reply(self, message: AbstractIncomingMessage, to: str, tenant: str, answer: Mapping[str, Json]) -> None:
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        reply = _message(message, body, "application/json", {})
        await self.publisher.publish(*self._address(to, tenant), reply, mandatory=False)

    def _address(self, to: str, tenant: str) -> tuple[str, str]:
        return ("", to) if is_server_named(to) else (self.names.reply, f"{tenant}.{to}")


async def _ack(message: AbstractIncomingMessage) -> None:
    try:
        await message.ack()
    except BROKER_FAULTS:
        log.debug("a question could not be acked; nobody waits for a second answer")


def _asked(body: bytes) -> dict[str, Any]:
    """What the body of a question says; an empty one asks for nothing in particular."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    value = asked.get(name)
    return value if isinstance(value, str) else None


def _message(
    question: AbstractIncomingMessage, body: bytes, content_type: str, headers: Mapping[str, str | int | bool]
) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        headers=dict(headers),
        content_type=content_type,
        message_id=new_id(),
        correlation_id=question.correlation_id,
    )

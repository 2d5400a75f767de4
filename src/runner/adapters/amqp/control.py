"""Hears commands: to this worker, to all workers, and about jobs."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, until_closed
from runner.adapters.amqp.names import Names, is_server_named, is_smuggled
from runner.adapters.amqp.publisher import Publisher
from runner.codec import ID, WORD, new_id
from runner.errors import BrokerError
from runner.job import JobKey, Json

log = logging.getLogger(__name__)

_REASON_MAX = 1024
_JOB_WORDS = 4
"""`job.<tenant>.<job_id>.<command>`"""

Command = Callable[[], Awaitable[Json]]
"""Obeys a command; what it returns is the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The worker's ear. `use` is a user of the consume link."""

    names: Names
    worker: str
    publisher: Publisher
    commands: Mapping[str, Command]
    cancel: Callable[[JobKey, str], None]

    async def use(self, connection: AbstractConnection) -> None:
        """Listen until the connection ends. The queue outlives a short absence, and its messages five minutes."""
        name = self.names.worker_control(self.worker)
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=100)
            queue = await channel.declare_queue(
                name, durable=True, arguments={"x-expires": 600_000, "x-message-ttl": 300_000}
            )
            for key in (f"worker.{self.worker}.*", "all.*", "job.*.*.cancel"):
                await queue.bind(self.names.control, key)
            await queue.consume(self._hear)
        await until_closed(channel)

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        words = (message.routing_key or "").split(".")
        if is_smuggled(message.headers):
            log.warning("dead-lettered command ignored", extra={"key": message.routing_key})
        elif words[0] == "job" and len(words) == _JOB_WORDS:
            self._about_job(words[1], words[2], words[3], message)
        elif (command := self.commands.get(words[-1])) is not None:
            log.info("command received", extra={"command": words[-1], "key": message.routing_key})
            await self._answer(message, await command())
        else:
            log.warning("unknown command ignored", extra={"key": message.routing_key})
        try:
            await message.ack()
        except BROKER_FAULTS:
            log.debug("a command could not be acked; it will come again")

    def _about_job(self, tenant: str, job_id: str, command: str, message: AbstractIncomingMessage) -> None:
        if command == "cancel" and WORD.fullmatch(tenant) and ID.fullmatch(job_id):
            self.cancel(JobKey(tenant=tenant, id=job_id), cancel_reason(message.body))

    async def _answer(self, message: AbstractIncomingMessage, answer: Json) -> None:
        to = message.reply_to
        if not to:
            return
        exchange, route = ("", to) if is_server_named(to) else (self.names.reply, f"all.{to}")
        reply = aio_pika.Message(
            json.dumps(answer).encode(),
            content_type="application/json",
            message_id=new_id(),
            correlation_id=message.correlation_id,
        )
        try:
            await self.publisher.publish(exchange, route, reply, mandatory=False)
        except BrokerError as error:
            log.warning("an answer could not be sent", extra={"fault": str(error)})


def cancel_reason(body: bytes) -> str:
    """The reason in a cancel's body, at most 1 KiB; empty when there is none to be read."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    reason = told.get("reason") if isinstance(told, dict) else None
    if not isinstance(reason, str):
        return ""
    return reason.encode(errors="replace")[:_REASON_MAX].decode(errors="ignore")

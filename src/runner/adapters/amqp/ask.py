"""Asks the workers something, and collects what they answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.find import LAST_HEADER, PART_HEADER
from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, describe, is_our_own
from runner.adapters.amqp.names import Names
from runner.codec import new_id
from runner.errors import BrokerError

_PUBLISH_TIMEOUT = 10.0

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks, over a channel and a queue of its own. All of it raises `BrokerError`. Made by `open_asker`."""

    names: Names
    channel: AbstractChannel
    replies_to: str
    _answers: dict[str, asyncio.Queue[AbstractIncomingMessage | None]] = field(default_factory=dict)

    async def collect(
        self,
        key: str,
        asked: Mapping[str, Any] | None = None,
        *,
        wait: float,
        enough: Callable[[Answer], bool] = lambda _: False,
    ) -> list[Answer]:
        """What the workers answer within `wait` seconds, or until an answer is enough."""
        found: list[Answer] = []
        async with self._asking(key, asked) as answers:
            try:
                async with asyncio.timeout(wait):
                    while True:
                        answer = _decoded(await _next(answers))
                        if answer is None:
                            continue
                        found.append(answer)
                        if enough(answer):
                            break
            except TimeoutError:
                pass
        return found

    async def parts(self, key: str, asked: Mapping[str, Any], *, patience: float) -> AsyncIterator[bytes]:
        """The parts of one worker's long answer. Raises `BrokerError` when one takes longer than `patience` seconds."""
        number = 0
        async with self._asking(key, asked) as answers:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        message = await _next(answers)
                except TimeoutError:
                    raise BrokerError(f"no worker went on answering within {patience:g} s") from None
                if message.headers.get(PART_HEADER) != number:
                    continue  # a repeat, or another worker's
                yield message.body
                number += 1
                if message.headers.get(LAST_HEADER):
                    return

    async def hear(self, message: AbstractIncomingMessage) -> None:
        """Take an answer in; one to a question that is over is dropped."""
        if (answers := self._answers.get(message.correlation_id or "")) is not None:
            answers.put_nowait(message)

    def lost(self) -> None:
        """Nothing more will come."""
        for answers in self._answers.values():
            answers.put_nowait(None)

    @asynccontextmanager
    async def _asking(
        self, key: str, asked: Mapping[str, Any] | None
    ) -> AsyncIterator[asyncio.Queue[AbstractIncomingMessage | None]]:
        correlation = new_id()
        answers = self._answers[correlation] = asyncio.Queue()
        try:
            await self._publish(key, asked, correlation)
            yield answers
        finally:
            del self._answers[correlation]

    async def _publish(self, key: str, asked: Mapping[str, Any] | None, correlation: str) -> None:
        message = aio_pika.Message(
            json.dumps(asked).encode() if asked is not None else b"",
            content_type="application/json",
            message_id=correlation,
            correlation_id=correlation,
            reply_to=self.replies_to,
            expiration=_PUBLISH_TIMEOUT,
        )
        try:
            control = await self.channel.get_exchange(self.names.control, ensure=False)
            await control.publish(message, key, mandatory=False, timeout=_PUBLISH_TIMEOUT)
        except asyncio.CancelledError:
            if is_our_own():
                raise
            raise BrokerError("the connection to the broker was lost") from None
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            missing = f"the broker has no exchange {self.names.control}"
            raise BrokerError(f"{missing}; have an operator run: runner topology apply") from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerError(f"this user may not ask {key}: {describe(error)}") from error
        except BROKER_FAULTS as error:
            raise BrokerError(f"the workers could not be asked: {describe(error)}") from error


@asynccontextmanager
async def open_asker(connection: AbstractConnection, names: Names) -> AsyncIterator[Asker]:
    """Somebody to ask, until the block is left. Raises `BrokerError`."""
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=True)
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            asker = Asker(names=names, channel=channel, replies_to=queue.name)
            channel.close_callbacks.add(lambda *_: asker.lost())
            await queue.consume(asker.hear, no_ack=True)
    except BROKER_FAULTS as error:
        raise BrokerError(f"the workers cannot be asked: {describe(error)}") from error
    try:
        yield asker
    finally:
        await _close(channel)


async def _close(channel: AbstractChannel) -> None:
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            await channel.close()
    except BROKER_FAULTS:
        return


async def _next(answers: asyncio.Queue[AbstractIncomingMessage | None]) -> AbstractIncomingMessage:
    message = await answers.get()
    if message is None:
        raise BrokerError("the connection to the broker was lost")
    return message


def _decoded(message: AbstractIncomingMessage) -> Answer | None:
    """An answer that makes no sense is none."""
    try:
        answer = json.loads(message.body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None

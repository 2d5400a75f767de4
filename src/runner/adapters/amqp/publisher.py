"""Publishing that tells confirmed, refused and uncertain apart."""

import asyncio
import logging

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import DeliveredMessage

from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, describe, is_our_own, until_closed
from runner.errors import BrokerError, PublishUncertain

log = logging.getLogger(__name__)

_AGAIN = 0.2
"""Seconds before a publish that was refused or went unanswered is tried again."""


class Unroutable(BrokerError):
    """No queue takes the message."""


class Publisher:
    """Publishes on one channel with confirms, over whatever connection the link has now."""

    def __init__(self) -> None:
        self._channel: AbstractChannel | None = None
        self._open = asyncio.Event()

    async def use(self, connection: AbstractConnection) -> None:
        """Serve until the channel or the connection ends. A user of a `Link`."""
        async with asyncio.timeout(RPC_TIMEOUT):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self._channel = channel
        self._open.set()
        try:
            await until_closed(channel)
        finally:
            self._open.clear()
            self._channel = None

    async def opened(self) -> None:
        """Return when there is a channel."""
        await self._open.wait()

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: aio_pika.Message,
        *,
        mandatory: bool,
        timeout: float | None = 10,
    ) -> None:
        """Return when the broker has confirmed the message.

        `message_id` has to be unique among the messages on their way, since the library matches returns by it.
        Raises `Unroutable`, `BrokerError` when the broker refused it, `PublishUncertain` when nobody knows.
        """
        channel = self._channel
        if channel is None:
            raise PublishUncertain("there is no connection to the broker")
        try:
            target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
            confirmed = await target.publish(message, routing_key, mandatory=mandatory, timeout=timeout)
        except asyncio.CancelledError:
            if is_our_own():
                raise
            raise PublishUncertain("the connection was closed") from None
        except aiormq.exceptions.PublishError as error:
            raise Unroutable(f"no queue takes {routing_key} from {exchange}") from error
        except aiormq.exceptions.DeliveryError as error:
            raise BrokerError(f"the broker refused a message: {describe(error)}") from error
        except BROKER_FAULTS as error:
            raise PublishUncertain(describe(error)) from error
        if isinstance(confirmed, DeliveredMessage):
            raise Unroutable(f"no queue takes {routing_key} from {exchange}")

    async def publish_surely(
        self, exchange: str, routing_key: str, message: aio_pika.Message, *, mandatory: bool
    ) -> None:
        """Publish again and again, always the same message, until the broker has confirmed it.

        As long as the connection lives, an answer that does not come is only late: a second copy would be one too many.
        """
        while True:
            await self._open.wait()
            try:
                await self.publish(exchange, routing_key, message, mandatory=mandatory, timeout=None)
            except BrokerError as error:
                log.warning("a publish has to be repeated", extra={"exchange": exchange, "fault": str(error)})
            else:
                return
            await asyncio.sleep(_AGAIN)

"""Publishes what happens to jobs, and the reply to whoever asked for one."""

from dataclasses import dataclass

import aio_pika

from runner.adapters.amqp.names import Names, is_server_named
from runner.adapters.amqp.publisher import Publisher
from runner.codec import Notice, encode_event
from runner.ports import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPublisher:
    """The port `Events` on RabbitMQ."""

    names: Names
    publisher: Publisher

    async def publish(self, event: Event) -> None:
        """Publish until confirmed. The same event always bears the same `message_id`, so repeats can be told."""
        await self.send(encode_event(event))

    async def send(self, notice: Notice) -> None:
        """Publish an event that was encoded before, and its reply."""
        # Events that nobody listens to are not lost: nobody wanted them.
        await self.publisher.publish_surely(self.names.events, notice.key, _message(notice), mandatory=False)
        if notice.reply is not None:
            to = notice.reply.to
            exchange, route = ("", to) if is_server_named(to) else (self.names.reply, f"{notice.tenant}.{to}")
            reply = _message(notice)
            reply.correlation_id = notice.reply.correlation_id
            await self.publisher.publish_surely(exchange, route, reply, mandatory=False)


def _message(notice: Notice) -> aio_pika.Message:
    return aio_pika.Message(
        notice.body.encode(),
        headers={"traceparent": notice.traceparent} if notice.traceparent else {},
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=notice.message_id,
        timestamp=notice.time,
        type=notice.kind.value,
    )

"""Publishes what happens to jobs, and the reply to whoever asked for one."""

from dataclasses import dataclass

import aio_pika

from runner.adapters.amqp.names import Names, is_server_named
from runner.adapters.amqp.publisher import Publisher
from runner.codec import encode_event
from runner.job import EventKind, Job
from runner.ports import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPublisher:
    """The port `Events` on RabbitMQ."""

    names: Names
    publisher: Publisher

    async def publish(self, event: Event) -> None:
        """Publish until confirmed. The same event always bears the same `message_id`, so repeats can be told."""
        submission = event.submission
        tenant = submission.route.tenant if isinstance(submission, Job) else submission.tenant
        job_id = submission.key.id if isinstance(submission, Job) else submission.id
        body = encode_event(event)
        message_id = f"{tenant}/{job_id}/{event.claim}/{event.seq}"
        key = f"{tenant}.{job_id}.{event.kind}"
        message = self._message(event, body, message_id)
        # Events that nobody listens to are not lost: nobody wanted them.
        await self.publisher.publish_surely(self.names.events, key, message, mandatory=False)
        if event.kind is EventKind.FINISHED and submission.reply is not None:
            to = submission.reply.to
            exchange, route = ("", to) if is_server_named(to) else (self.names.reply, f"{tenant}.{to}")
            reply = self._message(event, body, message_id)
            reply.correlation_id = submission.reply.correlation_id
            await self.publisher.publish_surely(exchange, route, reply, mandatory=False)

    def _message(self, event: Event, body: bytes, message_id: str) -> aio_pika.Message:
        submission = event.submission
        trace = submission.traceparent if isinstance(submission, Job) else None
        return aio_pika.Message(
            body,
            headers={"traceparent": trace} if trace else {},
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
            timestamp=event.time,
            type=event.kind.value,
        )

"""The last event comes as a reply, too, to whoever asked for one."""

import asyncio
import json
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from tests.e2e.submitter import STACK, Followed, Submitter

pytestmark = [pytest.mark.engine, pytest.mark.broker]


async def replied(acme: Submitter, queue: AbstractQueue, reply_to: str, job_id: str, **fields: Any) -> Followed:
    """Publish a job that asks for a reply; assert that one comes to the queue, and is the last event."""
    replies: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(replies.put, no_ack=True)
    body = json.dumps({"id": job_id, "stack": STACK, "command": ["true"], **fields}).encode()
    job = await acme.publish(body, job_id=job_id, reply_to=reply_to, correlation_id=f"about {job_id}")
    async with asyncio.timeout(30):
        reply = await replies.get()
    await job.finished()
    assert reply.correlation_id == f"about {job_id}"
    assert json.loads(reply.body) == job.result
    return job


async def test_a_reply_to_a_queue_that_the_broker_named(acme: Submitter) -> None:
    queue = await acme.channel.declare_queue(exclusive=True)
    assert queue.name.startswith("amq.gen-")
    await replied(acme, queue, queue.name, "reply-gen")


async def test_a_direct_reply(acme: Submitter) -> None:
    queue = await acme.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await replied(acme, queue, "amq.rabbitmq.reply-to", "reply-direct")


async def test_a_reply_to_a_queue_of_ones_own_naming(acme: Submitter) -> None:
    queue = await acme.channel.declare_queue(f"{acme.ns}-answers", exclusive=True)
    await queue.bind(await acme.exchange(".reply"), "acme.answers")
    await replied(acme, queue, "answers", "reply-own")


async def test_a_job_that_is_refused_is_replied_to(acme: Submitter) -> None:
    queue = await acme.channel.declare_queue(exclusive=True)
    job = await replied(acme, queue, queue.name, "reply-refused", colour="blue")
    job.ended("rejected", blame="request", reason="colour: is not a field")
    await acme.dead_letter()


async def test_a_reply_that_nobody_waits_for_harms_nobody(acme: Submitter) -> None:
    body = json.dumps({"id": "reply-gone", "stack": STACK, "command": ["true"]}).encode()
    job = await acme.publish(body, job_id="reply-gone", reply_to="amq.gen-gone", correlation_id="x")
    await job.finished()
    job.ended("succeeded", blame="none", exit_code=0)

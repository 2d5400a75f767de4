"""A worker that runs nothing: it takes jobs from the broker, and tells of them what a test has it tell."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from runner.adapters.amqp.names import Names
from runner.app.broker import expected_topology
from runner.app.topology import apply_topology
from runner.settings import load_settings

_TIME = "2026-01-02T03:04:05.123456Z"


def event(job_id: str, kind: str, seq: int, *, tenant: str = "default", claim: str = "c1", **fields: Any) -> bytes:
    """An event's body, in the form that the contract gives it."""
    body = {
        "v": 1,
        "event": kind,
        "id": job_id,
        "tenant": tenant,
        "name": None,
        "pool": "default",
        "priority": "normal",
        "stack": "busybox",
        "revision": "r1",
        "worker": "fake",
        "attempt": 1,
        "claim": claim,
        "seq": seq,
        "time": _TIME,
        "labels": {},
        "reason": None,
        "times": {"published": _TIME, "claimed": _TIME, "started": None, "ended": None},
        "tail": [],
    }
    return json.dumps(body | fields, ensure_ascii=False).encode()


def finished(job_id: str, seq: int = 3, *, ran: bool = True, **fields: Any) -> bytes:
    """The event `finished` of a job that succeeded, unless `fields` say otherwise."""
    result: dict[str, Any] = {
        "outcome": "succeeded",
        "reason": "the job exited with 0",
        "blame": "none",
        "exit_code": 0,
        "signal": None,
        "oom_seen": False,
        "output": None,
        "times": {"published": _TIME, "claimed": _TIME, "started": _TIME if ran else None, "ended": _TIME},
        "logs": {"stdout_bytes": 0, "stderr_bytes": 0, "omitted_bytes": 0, "omitted_lines": 0, "complete": True},
    }
    return event(job_id, "finished", seq, **(result | fields))


def batch(
    job_id: str,
    seq: int | None,
    lines: Sequence[tuple[str, str]],
    *,
    off: tuple[int, int] = (0, 0),
    claim: str = "c1",
    end: bool = False,
) -> bytes:
    """A batch of a log. A line is its stream and its text, with the newline that it ends with, if it does."""
    told = [
        {"t": _TIME, "s": stream, "m": text.removesuffix("\n")} | ({} if text.endswith("\n") else {"p": True})
        for stream, text in lines
    ]
    body: dict[str, Any] = {"v": 1, "id": job_id, "claim": claim}
    if seq is not None:
        body["seq"] = seq
    body |= {"off": {"out": off[0], "err": off[1]}, "lines": told}
    if end:
        body["end"] = True
    return json.dumps(body, ensure_ascii=False).encode()


class FakeWorker:
    """Takes from the shared queue of the pool `default` and the priority `normal`, and hears of cancellations."""

    def __init__(self, channel: AbstractChannel, names: Names) -> None:
        self._channel = channel
        self._names = names
        self.jobs: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self.cancels: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def listen(self) -> None:
        queue = await self._channel.get_queue(f"{self._names.ns}.q.default.normal")
        await queue.purge()
        await queue.consume(self.jobs.put, no_ack=True)
        control = await self._channel.declare_queue(exclusive=True)
        await control.bind(self._names.control, "job.*.*.cancel")
        await control.consume(self.cancels.put, no_ack=True)

    async def take(self) -> AbstractIncomingMessage:
        """The next job."""
        async with asyncio.timeout(30):
            return await self.jobs.get()

    async def cancelled(self) -> AbstractIncomingMessage:
        """The next cancellation."""
        async with asyncio.timeout(30):
            return await self.cancels.get()

    async def tell(self, body: bytes) -> None:
        """Publish an event."""
        told = json.loads(body)
        await self._publish(self._names.events, f"{told['tenant']}.{told['id']}.{told['event']}", body)

    async def log(self, body: bytes, tenant: str = "default") -> None:
        """Publish a part of a log."""
        told = json.loads(body)
        key = f"{tenant}.{told['id']}"
        await self._publish(self._names.logs, key if "seq" in told else f"{key}.live", body)

    async def _publish(self, exchange: str, key: str, body: bytes) -> None:
        target = await self._channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(body, timestamp=datetime.now(UTC)), key, mandatory=False)


@asynccontextmanager
async def whole_topology(url: str, namespace: str) -> AsyncIterator[str]:
    """Everything that stands in a namespace, for as long as it is entered."""
    settings = load_settings({"RUNNER_AMQP__URL": url, "RUNNER_AMQP__NAMESPACE": namespace})
    await apply_topology(settings)
    try:
        yield namespace
    finally:
        wanted = expected_topology(settings)
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            for queue in wanted.queues:
                await channel.queue_delete(queue.name)
            for exchange in reversed(wanted.exchanges):
                await channel.exchange_delete(exchange.name)


@asynccontextmanager
async def fake_worker(url: str, namespace: str) -> AsyncIterator[FakeWorker]:
    """A fake worker, which forgets what was submitted before it came."""
    async with await aio_pika.connect(url) as connection:
        worker = FakeWorker(await connection.channel(), Names(namespace))
        await worker.listen()
        yield worker

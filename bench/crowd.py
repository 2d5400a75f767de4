"""Many jobs of one daemon, submitted and followed as cheaply as it goes: the watcher takes CPU from the watched."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage, AbstractQueue

TENANT = "acme"


@dataclass(slots=True, kw_only=True)
class Member:
    """One job; times are seconds of the wall clock. `published` is when we began to publish it."""

    id: str
    published: float
    heard: float = 0.0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    result: dict[str, Any] = field(default_factory=dict)
    warm: bool = False

    @property
    def outcome(self) -> str:
        """How it ended."""
        return str(self.result["outcome"])

    def until(self, moment: str) -> float:
        """Milliseconds from its publication until it was `claimed`, `started` or `ended`."""
        at = datetime.fromisoformat(self.result["times"][moment]).timestamp()
        return 1000 * (at - self.published)


@dataclass(slots=True, kw_only=True)
class Crowd:
    """Opened by `open_crowd`; the jobs are all of one stack."""

    namespace: str
    stack: str
    exchange: AbstractExchange
    control: AbstractExchange
    queue: AbstractQueue
    on_batch: Callable[[dict[str, Any]], None] = field(default=lambda _batch: None)
    members: dict[str, Member] = field(default_factory=dict)

    async def listen(self, on_batch: Callable[[dict[str, Any]], None]) -> None:
        """Have it called with each batch of log lines from now on."""
        self.on_batch = on_batch
        await self.queue.bind(f"{self.namespace}.logs", "#")

    async def submit(self, command: Sequence[str], **fields: Any) -> Member:
        """Publish one job; return when the broker has it."""
        member = Member(id=token_hex(8), published=time.time())
        self.members[member.id] = member
        body = {"id": member.id, "stack": self.stack, "command": list(command), **fields}
        message = aio_pika.Message(
            json.dumps(body).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT, timestamp=datetime.now(UTC)
        )
        await self.exchange.publish(message, f"default.normal.{TENANT}")
        return member

    async def submit_all(self, count: int, command: Sequence[str], **fields: Any) -> list[Member]:
        """Publish so many of one kind at once."""
        return list(await asyncio.gather(*(self.submit(command, **fields) for _ in range(count))))

    async def run(self, count: int, command: Sequence[str], **fields: Any) -> list[Member]:
        """Publish so many at once, and wait for the last one's end. They have to succeed."""
        members = await self.submit_all(count, command, **fields)
        await self.over(members)
        return members

    async def over(self, members: Sequence[Member]) -> None:
        """Wait for their ends, which have to be good ones."""
        for member in members:
            await member.finished.wait()
            self.members.pop(member.id, None)
        bad = [member.result["reason"] for member in members if member.outcome != "succeeded"]
        if bad:
            raise RuntimeError(f"{len(bad)} of {len(members)} jobs failed: {bad[0]}")

    async def begun(self, members: Sequence[Member]) -> None:
        """Wait until all of them have started; none may have ended."""
        for member in members:
            await member.started.wait()
        if over := [member for member in members if member.finished.is_set()]:
            raise RuntimeError(f"{len(over)} of {len(members)} jobs have ended: {over[0].result['reason']}")

    async def cancel(self, members: Sequence[Member]) -> None:
        """End them, who all have to run until then, and wait until they have ended."""
        for member in members:
            await self.control.publish(aio_pika.Message(b""), f"job.{TENANT}.{member.id}.cancel")
        for member in members:
            await member.finished.wait()
            self.members.pop(member.id, None)
        if other := [member.result["reason"] for member in members if member.outcome != "cancelled"]:
            raise RuntimeError(f"{len(other)} of {len(members)} jobs had ended by themselves: {other[0]}")

    def hear(self, message: AbstractIncomingMessage) -> None:
        """Take in an event or a batch."""
        words = (message.routing_key or "").split(".")
        member = self.members.get(words[1])
        if (message.exchange or "").endswith(".logs"):
            self.on_batch(json.loads(message.body))
        elif member is not None and words[2] == "started":
            member.warm = json.loads(message.body)["warm"]
            member.started.set()
        elif member is not None and words[2] == "finished":
            member.heard, member.result = time.time(), json.loads(message.body)
            member.started.set()  # nobody is to wait for the start of one that never will
            member.finished.set()


@asynccontextmanager
async def open_crowd(broker: str, namespace: str, stack: str) -> AsyncIterator[Crowd]:
    """A crowd that hears of starts and ends, and of log lines once somebody listens."""
    connection = await aio_pika.connect(broker)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        for event in ("started", "finished"):
            await queue.bind(f"{namespace}.events", f"*.*.{event}")
        crowd = Crowd(
            namespace=namespace,
            stack=stack,
            exchange=await channel.get_exchange(namespace, ensure=False),
            control=await channel.get_exchange(f"{namespace}.control", ensure=False),
            queue=queue,
        )

        async def hear(message: AbstractIncomingMessage) -> None:
            crowd.hear(message)

        await queue.consume(hear, no_ack=True)
        yield crowd

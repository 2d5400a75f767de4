"""A client that knows the broker and the contract, and nothing of our code."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

STACK = "e2e-plain"
"""The stack of all jobs that do not name another: busybox, as nobody."""

_PATIENCE = 30.0
_RESULT_FIELDS = frozenset(
    {
        *("v", "event", "id", "tenant", "name", "pool", "priority", "stack", "revision", "worker", "attempt", "claim"),
        *("seq", "time", "labels", "container", "image", "warm", "deadline", "progress", "delay", "outcome", "reason"),
        *("blame", "exit_code", "signal", "oom_seen", "times", "seconds", "usage", "logs", "output", "tail"),
    }
)


def sh(script: str) -> list[str]:
    """The command that runs a script."""
    return ["sh", "-c", script]


@dataclass(slots=True)
class Followed:
    """One job as its submitter sees it: its events, its log, and the reply if it asked for one."""

    tenant: str
    id: str
    events: list[dict[str, Any]] = field(default_factory=list)
    message_ids: list[str | None] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    live: list[dict[str, Any]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kinds(self) -> list[str]:
        """What happened to the job, in order."""
        return [event["event"] for event in self.events]

    @property
    def result(self) -> dict[str, Any]:
        """The one `finished` event."""
        (result,) = (event for event in self.events if event["event"] == "finished")
        return result

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of the log that is kept."""
        return [line for batch in self.batches for line in batch["lines"]]

    def text(self, stream: str = "out") -> str:
        """What the job wrote to a stream, as far as it was kept."""
        mine = (line for line in self.lines if line["s"] == stream)
        return "".join(line["m"] + ("" if line.get("p") else "\n") for line in mine)

    async def event(self, kind: str, number: int = 1, *, timeout: float = _PATIENCE) -> dict[str, Any]:
        """The `number`-th event of a kind, as soon as it is there."""
        await self.until(lambda: self.kinds.count(kind) >= number, f"{kind} no. {number}", timeout)
        return [event for event in self.events if event["event"] == kind][number - 1]

    async def wrote(self, text: str, *, timeout: float = _PATIENCE) -> None:
        """Return when the job has written that text to its standard output."""
        await self.until(lambda: text in self.text(), repr(text), timeout)

    async def finished(self, *, timeout: float = _PATIENCE) -> "Followed":
        """The job once it is over."""
        await self.event("finished", timeout=timeout)
        self._check_form()
        return self

    async def until(self, condition: Callable[[], bool], what: str, timeout: float = _PATIENCE) -> None:
        """Return when the condition holds; something has to have happened to this job for it to change."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} of job {self.id} within {timeout:g} s; it had {self.events}") from None

    def ended(self, outcome: str, *, reason: str = "", **fields: Any) -> None:
        """Assert how the job ended: `reason` is a part of the reason, the fields are those of the event."""
        result = self.result
        wanted = {"outcome": outcome, "exit_code": None, "signal": None, **fields}
        assert {name: result[name] for name in wanted} == wanted, result
        assert reason in result["reason"], result["reason"]

    def add(self, message: AbstractIncomingMessage, *, log: bool) -> None:
        """Put down what came, unless it has come before: an event may be told twice, and bears the same id then."""
        body = json.loads(message.body)
        if not log and message.message_id in self.message_ids:
            return
        if not log:
            self.events.append(body)
            self.message_ids.append(message.message_id)
        else:
            self._add_batch(body)
        self._changed.set()

    def _add_batch(self, batch: dict[str, Any]) -> None:
        """A repeat is told by its offsets; it replaces what was heard from there on."""
        if "seq" not in batch:
            self.live.append(batch)
            return
        self.batches = [known for known in self.batches if known["claim"] != batch["claim"] or _precedes(known, batch)]
        self.batches.append(batch)

    def _check_form(self) -> None:
        """What holds for each job that is over, however it ended."""
        result = self.result
        assert self.kinds[-1] == "finished", self.kinds
        assert result.keys() >= _RESULT_FIELDS
        assert result["v"] == 1
        assert (result["tenant"], result["id"]) == (self.tenant, self.id)
        assert result["reason"]
        assert all(isinstance(result[name], dict) for name in ("labels", "times", "seconds", "usage", "logs"))
        assert datetime.fromisoformat(result["time"]).tzinfo is not None
        for event, message_id in zip(self.events, self.message_ids, strict=True):
            assert message_id == f"{self.tenant}/{self.id}/{event['claim']}/{event['seq']}"
        for claim in {event["claim"] for event in self.events}:
            seqs = [event["seq"] for event in self.events if event["claim"] == claim]
            assert seqs[0] == 1
            assert seqs == sorted(set(seqs))
        mine = [batch for batch in self.batches if batch["claim"] == result["claim"]]
        *rest, last = [batch.get("end", False) for batch in mine] or [True]
        assert not any(rest)
        assert last or not result["logs"]["complete"]  # the end of a log may have been given up


def _precedes(known: dict[str, Any], batch: dict[str, Any]) -> bool:
    one, other = known["off"], batch["off"]
    earlier = one["out"] <= other["out"] and one["err"] <= other["err"] and one != other
    return bool(earlier and known["seq"] < batch["seq"])


@dataclass(slots=True, kw_only=True)
class Submitter:
    """Publishes jobs and hears everything about them. Make one with `open_submitter`."""

    ns: str
    channel: AbstractChannel
    _jobs: dict[tuple[str, str], Followed]

    def follow(self, job_id: str, tenant: str = "acme") -> Followed:
        """What is known of a job, and what will be."""
        return self._jobs.setdefault((tenant, job_id), Followed(tenant, job_id))

    async def submit(
        self,
        command: list[str] | None = None,
        *,
        to: str = "default.normal.acme",
        at: datetime | None = None,
        **fields: Any,
    ) -> Followed:
        """Publish a job, `at` some time if it says when; it has an id of ours unless the fields have one."""
        body = {"id": f"j{token_hex(6)}", "stack": STACK, **fields}
        if command is not None:
            body["command"] = command
        return await self.publish(json.dumps(body).encode(), to=to, job_id=body["id"], timestamp=at)

    async def run(self, command: list[str] | None = None, **fields: Any) -> Followed:
        """Publish a job and wait for its end."""
        job = await self.submit(command, **fields)
        return await job.finished()

    async def publish(
        self, body: bytes, *, to: str = "default.normal.acme", job_id: str, **properties: Any
    ) -> Followed:
        """Publish any bytes; `job_id` is the id that the answer is expected under."""
        exchange = await self.exchange()
        await exchange.publish(aio_pika.Message(body, **properties), to)
        return self.follow(job_id, to.rsplit(".", 1)[-1])

    async def exchange(self, suffix: str = "") -> AbstractExchange:
        """One of the namespace's exchanges."""
        return await self.channel.get_exchange(self.ns + suffix, ensure=False)

    async def cancel(self, job: Followed, reason: str = "") -> None:
        """Ask for a job's end."""
        body = json.dumps({"reason": reason}).encode() if reason else b""
        control = await self.exchange(".control")
        await control.publish(aio_pika.Message(body), f"job.{job.tenant}.{job.id}.cancel")

    async def cancel_all(self) -> None:
        """Ask for the end of all jobs that a test has left behind, so that the next one finds room."""
        for job in list(self._jobs.values()):
            if job.events and "finished" not in job.kinds:
                await self.cancel(job)

    async def waiting(self, queue: str) -> int:
        """How many messages a queue of the namespace has ready."""
        declared = await self.channel.declare_queue(f"{self.ns}.{queue}", passive=True)
        return declared.declaration_result.message_count or 0

    async def listeners(self, queue: str) -> int:
        """How many consumers a queue has."""
        declared = await self.channel.declare_queue(f"{self.ns}.{queue}", passive=True)
        return declared.declaration_result.consumer_count or 0

    async def purge(self, queue: str) -> int:
        """Throw away what a queue has ready; how many messages that were."""
        found = await self.channel.get_queue(f"{self.ns}.{queue}", ensure=False)
        return (await found.purge()).message_count or 0

    async def dead_letter(self) -> AbstractIncomingMessage:
        """Take the next dead letter."""
        queue = await self.channel.get_queue(f"{self.ns}.dead", ensure=False)
        async with asyncio.timeout(_PATIENCE):
            while True:
                letter = await queue.get(no_ack=True, fail=False)
                if letter is not None:
                    return letter
                await asyncio.sleep(0.02)


@asynccontextmanager
async def open_submitter(url: str, ns: str) -> AsyncIterator[Submitter]:
    """A submitter that hears everything from now on. The namespace has to be there."""
    jobs: dict[tuple[str, str], Followed] = {}
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        # One queue for both keeps the order: a log is confirmed before its job has finished.
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{ns}.events", "#")
        await queue.bind(f"{ns}.logs", "#")

        async def hear(message: AbstractIncomingMessage) -> None:
            tenant, job_id = (message.routing_key or "").split(".")[:2]
            followed = jobs.setdefault((tenant, job_id), Followed(tenant, job_id))
            followed.add(message, log=message.exchange == f"{ns}.logs")

        await queue.consume(hear, no_ack=True)
        yield Submitter(ns=ns, channel=channel, _jobs=jobs)

"""Which run of a job is the only one: decided by the order of one stream that all workers read.

A worker that wants to start a unique job publishes its claim and waits until the claim comes back. By then it has read
whatever stands before it, and so has every other worker that decides on the same job: all come to the same answer.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from runner.adapters.amqp.memory import Book, Memory, Position, UniqueClaim
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.stream import Follower, Messages
from runner.codec import ID, WORD, new_id
from runner.errors import BrokerError
from runner.job import JobKey
from runner.units import format_duration

log = logging.getLogger(__name__)

LONGEST = timedelta(days=7)
"""The longest `unique`; the stream keeps its messages a day longer."""
_PATIENCE = timedelta(seconds=60)


@dataclass(slots=True, kw_only=True)
class Claims:
    """The port `Uniqueness`. `use` is a user of the consume link."""

    names: Names
    worker: str
    publisher: Publisher
    memory: Memory
    now: Callable[[], datetime]
    patience: timedelta = _PATIENCE
    follower: Follower = field(init=False)
    _waiting: dict[str, asyncio.Future[bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the follower of the stream."""
        self.follower = Follower(
            names=self.names,
            worker=self.worker,
            book=Book.CLAIMS,
            publisher=self.publisher,
            memory=self.memory,
            keep=self._keep,
        )

    async def use(self, connection: AbstractConnection) -> None:
        """Follow until the connection ends."""
        await self.follower.use(connection)

    async def wins(self, key: JobKey, run: str, claim: str, span: timedelta) -> bool:
        """Whether this run of the job is the only one; a run that has won once has won for good.

        Raises `BrokerError` when the stream does not answer in time. Then nobody knows, and it may be asked again.
        """
        try:
            async with asyncio.timeout(self.patience.total_seconds()):
                return await self._wins(key, run, claim, span)
        except TimeoutError:
            waited = format_duration(self.patience)
            raise BrokerError(f"{self.names.claims} did not tell within {waited} whether the job is unique") from None

    async def _wins(self, key: JobKey, run: str, claim: str, span: timedelta) -> bool:
        await self.follower.caught_up()
        if await self.memory.has_won(key, run):
            return True
        # Known to be taken: not even a claim, so that the stream has claims that lost only where workers raced.
        if await self.memory.is_taken(key, run, span):
            return False
        wanted = UniqueClaim(key=key, run=run, worker=self.worker, claim=claim, time=self.now(), span=span)
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[claim] = decided
        try:
            message = encode_claim(wanted)
            await self.publisher.publish_surely(
                self.names.memory, self.names.claim_key(self.worker), message, mandatory=True
            )
            return await decided
        finally:
            self._waiting.pop(claim, None)

    async def _keep(self, messages: Messages, position: Position) -> None:
        claims = [claim for message in messages if (claim := self._read(message)) is not None]
        await self.memory.add_claims(claims, position)
        for claim in claims:
            decided = self._waiting.get(claim.claim)
            if decided is not None and not decided.done():
                won = await self.memory.has_won(claim.key, claim.run)
                if not decided.done():
                    decided.set_result(won)

    def _read(self, message: AbstractIncomingMessage) -> UniqueClaim | None:
        if message.exchange != self.names.memory or message.routing_key is None:
            return None
        if not message.routing_key.startswith(self.names.claim_key("")):
            return None
        try:
            return decode_claim(message.body)
        except ValueError as error:
            log.warning("a claim in the stream cannot be read", extra={"fault": str(error)})
            return None


def encode_claim(claim: UniqueClaim) -> aio_pika.Message:
    """The message of a claim."""
    body = {
        "v": 1,
        "tenant": claim.key.tenant,
        "id": claim.key.id,
        "run": claim.run,
        "worker": claim.worker,
        "claim": claim.claim,
        "time": claim.time.isoformat(),
        "unique": claim.span.total_seconds(),
    }
    return aio_pika.Message(
        json.dumps(body).encode(),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=new_id(),
    )


def decode_claim(body: bytes) -> UniqueClaim:
    """The claim in a message. Raises `ValueError` saying what is wrong."""
    try:
        record = json.loads(body)
    except RecursionError:
        raise ValueError("the claim is nested too deeply") from None
    if not isinstance(record, dict) or record.get("v") != 1:
        raise ValueError("not a claim of version 1")
    tenant, job_id, run, worker, claim, time = (
        _text(record, name) for name in ("tenant", "id", "run", "worker", "claim", "time")
    )
    if not WORD.fullmatch(tenant) or not all(ID.fullmatch(word) for word in (job_id, run, claim)):
        raise ValueError("tenant, id, run or claim is malformed")
    told = datetime.fromisoformat(time)
    if told.tzinfo is None:
        raise ValueError("the time has no zone")
    return UniqueClaim(
        key=JobKey(tenant=tenant, id=job_id), run=run, worker=worker, claim=claim, time=told, span=_span(record)
    )


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")  # noqa: TRY004 - malformed input is a ValueError throughout
    return value


def _span(record: dict[str, Any]) -> timedelta:
    seconds = record.get("unique")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise ValueError("unique is missing")  # noqa: TRY004 - as above
    if not 0 < seconds <= LONGEST.total_seconds():
        raise ValueError("unique is out of range")
    return timedelta(seconds=seconds)

"""One connection to the broker that is made again whenever it breaks, for ever.

Crash-only: those who use the link run as tasks of one session, and the first of them that fails, or the connection's
end, ends the session; a new one starts after a pause with full jitter, on the next of the hosts. Nothing is repaired in
place, since the client library's own repair leaves channels behind that are neither open nor closed.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from yarl import URL

from runner.adapters.amqp.frames import tolerate_odd_frames
from runner.adapters.amqp.pulse import Pulse
from runner.errors import BrokerError

log = logging.getLogger(__name__)

BROKER_FAULTS = (aiormq.exceptions.AMQPError, ConnectionError, OSError, TimeoutError, RuntimeError)
"""What the client library raises when the connection or a channel is broken (a RuntimeError for a closed channel)."""

RPC_TIMEOUT = 10.0
"""Seconds. A call that takes longer closes its channel, so it ends the session."""

_CONNECT_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
_PAUSE_FIRST = 0.2
PAUSE_LONGEST = 10.0
"""The longest pause between two tries to connect, in seconds."""
_PROBE_TIMEOUT = 10.0

User = Callable[[AbstractConnection], Awaitable[None]]
"""Uses a connection for as long as it lives. Returning or raising ends the session."""


class LinkObserver(Protocol):
    """Hears of connections."""

    def amqp_connected(self, role: str) -> None:
        """A connection was made."""

    def amqp_disconnected(self, role: str) -> None:
        """A connection was lost."""


class SessionOver(BrokerError):
    """The connection is gone, or one of its users failed."""


class AckUnknown(BrokerError):
    """The connection broke while an ack was being sent: the broker may have it or not."""


@dataclass(slots=True)
class Link:
    """A connection in one role (`consume`, `publish`, `logs`), kept up.

    `enter` is awaited on each new connection before its users start. One that `publishes` is not asked whether the
    broker is there: short of memory or disk, the broker answers nothing on it, but goes on with its heartbeats.
    """

    urls: Sequence[str]
    name: str
    role: str
    pulse: Pulse
    observer: LinkObserver
    users: Sequence[User]
    enter: User | None = None
    publishes: bool = False
    fault: str | None = None
    since: float | None = None
    _tries: int = field(default=0)

    @property
    def up(self) -> bool:
        """Whether there is a connection now."""
        return self.since is not None

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        tolerate_odd_frames()
        while True:
            # A task of its own: among the failures of a session that is being closed, our cancellation would be lost.
            attempt = asyncio.get_running_loop().create_task(self._attempt())
            try:
                await asyncio.wait({attempt})
            finally:
                attempt.cancel()
                await asyncio.wait({attempt})
            # The library cancels whoever waits for a connection that it closes; then there is no result.
            if not attempt.cancelled() and (errors := attempt.result()) is not None:
                self._lost(errors)
            await asyncio.sleep(self._pause())

    async def _attempt(self) -> BaseExceptionGroup[BaseException] | None:
        """One session; what ended it."""
        lost = None
        try:
            await self._session(self.urls[self._tries % len(self.urls)])
        except* (*BROKER_FAULTS, BrokerError) as errors:
            lost = errors
        return lost

    def _lost(self, errors: BaseExceptionGroup[BaseException]) -> None:
        self.fault = "; ".join(dict.fromkeys(describe(error) for error in leaves(errors)))
        self._tries += 1
        log.warning("broker connection lost", extra={"role": self.role, "fault": self.fault})

    def _pause(self) -> float:
        most = min(PAUSE_LONGEST, _PAUSE_FIRST * 2 ** min(self._tries, 10))
        return random.uniform(0, most)  # noqa: S311 - spreads the load, keeps no secret

    async def _session(self, url: str) -> None:
        asked = self.pulse.clock()
        connection = await self._connect(url)
        self.pulse.asked = asked
        try:
            if self.enter is not None:
                await self.enter(connection)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._until_closed(connection))
                tasks.create_task(self._probe(connection))
                for user in self.users:
                    tasks.create_task(_use(user, connection))
                self.since = asyncio.get_running_loop().time()
                self.fault = None
                self.observer.amqp_connected(self.role)
                log.info("broker connection made", extra={"role": self.role})
        finally:
            if self.since is not None:
                self.since = None
                self.observer.amqp_disconnected(self.role)
            await _close(connection)

    async def _connect(self, url: str) -> AbstractConnection:
        heartbeat = max(1, round(self.pulse.heartbeat.total_seconds()))
        address = URL(url).update_query(heartbeat=heartbeat)
        name = f"runner:{self.name}:{self.role}"
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await aio_pika.connect(
                address, timeout=_CONNECT_TIMEOUT, client_properties={"connection_name": name}
            )

    async def _until_closed(self, connection: AbstractConnection) -> None:
        try:
            await connection.closed()
        finally:
            # Cancelled with the other users. The library may swallow a user's cancellation, but not a closed channel.
            await _close(connection)
        raise SessionOver("the connection was closed")

    async def _probe(self, connection: AbstractConnection) -> None:
        """Opening a channel is a round trip that proves both directions; a peer that says nothing ends the session."""
        while True:
            await asyncio.sleep(self.pulse.period)
            if not self.publishes:
                await self._ask(connection)
            self._tries = 0

    async def _ask(self, connection: AbstractConnection) -> None:
        asked = self.pulse.clock()
        async with asyncio.timeout(_PROBE_TIMEOUT):
            channel = await connection.channel(publisher_confirms=False)
            await channel.close()
        self.pulse.asked = asked


def is_our_own() -> bool:
    """Whether a cancellation is: the library cancels callers whose frames it will never answer, too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def faults_as(kind: type[BrokerError], what: str) -> Iterator[None]:
    """Turns a fault of the connection, and the library's cancellation when that is closed, into `kind`."""
    try:
        yield
    except asyncio.CancelledError:
        if is_our_own():
            raise
        raise kind(f"{what}: the connection was closed") from None
    except BROKER_FAULTS as error:
        raise kind(f"{what}: {describe(error)}") from error


def acking() -> AbstractContextManager[None]:
    """Turns whatever keeps us from knowing that an ack has arrived into `AckUnknown`."""
    return faults_as(AckUnknown, "nobody knows whether a delivery was acked")


async def _use(user: User, connection: AbstractConnection) -> None:
    try:
        await user(connection)
    except asyncio.CancelledError:
        if is_our_own():
            raise
    raise SessionOver("a user of the connection stopped")


async def _close(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.close()
    except BROKER_FAULTS:
        log.debug("broker connection could not be closed properly")


async def until_closed(channel: AbstractChannel) -> None:
    """Raise `SessionOver` when the channel is closed, or the broker ends a consumer on it: its queue was deleted."""
    ended = asyncio.Event()
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(lambda _: ended.set())
    closed = asyncio.ensure_future(channel.closed())
    closed.add_done_callback(lambda _: ended.set())
    try:
        await ended.wait()
        raise SessionOver("a channel was closed" if closed.done() else "a queue was deleted")
    finally:
        closed.cancel()


def leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors in a group of groups."""
    found: list[BaseException] = []
    for error in errors.exceptions:
        found.extend(leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def describe(error: BaseException) -> str:
    """One line for a person."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

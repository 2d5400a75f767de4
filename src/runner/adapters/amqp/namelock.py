"""Keeps two daemons from running under one name: they would share a lease queue."""

import asyncio
from dataclasses import dataclass

import aiormq
from aio_pika.abc import AbstractConnection

from runner.adapters.amqp.link import RPC_TIMEOUT
from runner.adapters.amqp.names import Names
from runner.errors import ConfigError

_PATIENCE = 60.0
"""Seconds. A connection that died without a word holds its queue until the broker misses its heartbeats."""
_AGAIN = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLock:
    """An exclusive queue on the consume connection; it is gone with the connection."""

    names: Names
    worker: str

    async def take(self, connection: AbstractConnection) -> None:
        """Return when the name is ours. Raises `ConfigError` when somebody else holds it for a minute."""
        name = self.names.worker_lock(self.worker)
        for _ in range(round(_PATIENCE / _AGAIN)):
            async with asyncio.timeout(RPC_TIMEOUT):
                channel = await connection.channel(publisher_confirms=False)
                try:
                    await channel.declare_queue(name, exclusive=True)
                except aiormq.exceptions.ChannelLockedResource:
                    pass
                else:
                    return
            await asyncio.sleep(_AGAIN)
        raise ConfigError(f"worker.name: another worker is called {self.worker}; give this one a name of its own")

"""What the broker has to have: made, or verified, for an operator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aio_pika.abc import AbstractConnection

from runner.adapters.amqp import topology
from runner.adapters.amqp.connect import connect_once
from runner.adapters.amqp.link import BROKER_FAULTS, RPC_TIMEOUT, describe
from runner.app.broker import expected_topology
from runner.errors import BrokerError
from runner.settings import Settings

_PATIENCE = RPC_TIMEOUT * 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What stands now. `made` are the parts that were missing before."""

    made: tuple[str, ...]
    exchanges: int
    queues: int
    bindings: int


async def apply_topology(settings: Settings) -> Applied:
    """Declare what is missing. Raises `ConfigError` with a fault for each part that differs, and `BrokerError`."""
    wanted = expected_topology(settings)
    async with _connection(settings) as connection:
        before = await topology.check(connection, wanted)
        await topology.apply(connection, wanted)
    return Applied(
        made=tuple(fault.partition(" is missing")[0] for fault in before.missing),
        exchanges=len(wanted.exchanges),
        queues=len(wanted.queues),
        bindings=len(wanted.bindings),
    )


async def check_topology(settings: Settings) -> list[str]:
    """What is missing or different, a sentence each. Raises `BrokerError`."""
    async with _connection(settings) as connection:
        findings = await topology.check(connection, expected_topology(settings))
    return [*findings.missing, *findings.different]


@asynccontextmanager
async def _connection(settings: Settings) -> AsyncIterator[AbstractConnection]:
    async with connect_once(settings.amqp.url, "runner:topology") as connection:
        try:
            async with asyncio.timeout(_PATIENCE):
                yield connection
        except BROKER_FAULTS as error:
            raise BrokerError(f"the broker broke off: {describe(error)}") from error

"""One connection to the broker for a command or a client: made once, with no way back when it breaks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractConnection
from yarl import URL

from runner.adapters.amqp.frames import tolerate_odd_frames
from runner.adapters.amqp.link import BROKER_FAULTS, describe
from runner.errors import BrokerError

_CONNECT_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
_HEARTBEAT = "10"


@asynccontextmanager
async def connect_once(urls: Sequence[str], name: str) -> AsyncIterator[AbstractConnection]:
    """A connection to the first of the hosts that answers. Raises `BrokerError` when none does.

    `name` is what the broker's operator sees. The heartbeat is 10 s unless the address says otherwise.
    """
    tolerate_odd_frames()
    connection = await _connect(urls, name)
    try:
        yield connection
    finally:
        await _close(connection)


def server_version(connection: AbstractConnection) -> str:
    """What the broker calls itself: `RabbitMQ 3.13.7`."""
    told = connection.transport.connection.server_properties if connection.transport else {}
    product, version = told.get("product", "a broker"), told.get("version", "of an unknown version")
    return f"{product!s} {version!s}"


async def _connect(urls: Sequence[str], name: str) -> AbstractConnection:
    faults: list[str] = []
    for url in urls:
        address = URL(url)
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=_HEARTBEAT)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                return await aio_pika.connect(
                    address, timeout=_CONNECT_TIMEOUT, client_properties={"connection_name": name}
                )
        except BROKER_FAULTS as error:
            # The host alone: an address has a password in it.
            faults.append(f"no broker at {address.host}:{address.port or 5672}: {describe(error)}")
    raise BrokerError("; ".join(faults) + "; is it up, and is amqp.url ($RUNNER_AMQP__URL) right?")


async def _close(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.close()
    except BROKER_FAULTS:
        return

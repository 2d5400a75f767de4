"""Waiting for the end of a channel leaves nothing behind."""

import asyncio
from typing import cast

import pytest
from aio_pika.abc import AbstractChannel
from tests.fakes import until

from runner.adapters.amqp.link import SessionOver, until_closed


class Underlay:
    def __init__(self) -> None:
        self.on_consumer_cancel_callbacks: set[object] = set()


class Channel:
    """A channel that is waited for."""

    def __init__(self) -> None:
        self.underlay = Underlay()
        self.over = asyncio.get_running_loop().create_future()

    async def get_underlay_channel(self) -> Underlay:
        return self.underlay

    def closed(self) -> asyncio.Future[None]:
        return self.over


async def test_whoever_is_cancelled_waits_for_the_channel_no_longer() -> None:
    channel = Channel()
    waiting = asyncio.create_task(until_closed(cast("AbstractChannel", channel)))
    await until(lambda: channel.underlay.on_consumer_cancel_callbacks, "it waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert channel.over.cancelled()


async def test_a_closed_channel_ends_the_session() -> None:
    channel = Channel()
    channel.over.set_result(None)
    with pytest.raises(SessionOver, match="a channel was closed"):
        await until_closed(cast("AbstractChannel", channel))

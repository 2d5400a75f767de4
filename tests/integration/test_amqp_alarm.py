"""A broker that has run out of memory takes nothing more for a while; the worker waits, and nothing is lost."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aio_pika
import pytest
from tests.integration.amqp_house import KEY, eventually, open_room, open_side
from tests.services import Broker

from runner.adapters.amqp import link as link_module

pytestmark = pytest.mark.broker

CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
TIGHT, ROOMY = "0.00001", "0.4"
_LONGER_THAN_A_PUBLISH = 11.0


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "broker") as broker:
        yield broker


async def set_watermark(broker: Broker, fraction: str) -> None:
    environment = {**os.environ, **broker._environment()}
    process = await asyncio.create_subprocess_exec(
        CTL,
        "-n",
        environment["RABBITMQ_NODENAME"],
        "set_vm_memory_high_watermark",
        fraction,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()


async def test_an_alarm_is_sat_out(own: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections stay, what is claimed is claimed once, and what waits is published once.

    On one connection a message that is not answered is only late: published again, it would be there twice.
    """
    monkeypatch.setattr(link_module, "_PROBE_TIMEOUT", 5.0)
    async with (
        open_room(own.url, "jobs") as room,
        open_side(room.names, room.queues, own.url, heartbeat=timedelta(seconds=5)) as side,
    ):
        await room.submit({"id": "j1", "stack": "busybox"}, KEY)
        side.intake.want(1)
        delivery = await side.take()
        await set_watermark(own, TIGHT)
        try:
            claiming = asyncio.create_task(delivery.claim("c1"))
            message = aio_pika.Message(b"late", message_id="late")
            waiting = asyncio.create_task(side.publisher.publish_surely("jobs.dead", "", message, mandatory=True))
            await asyncio.sleep(_LONGER_THAN_A_PUBLISH)
            assert not claiming.done()
            assert not waiting.done()
            assert delivery.live, "the connection that holds the delivery is still there"
        finally:
            await set_watermark(own, ROOMY)
        lease = await asyncio.wait_for(claiming, 30)
        await asyncio.wait_for(waiting, 30)
        assert side.counts.connections == 2, "no connection was given up for its silence"
        await eventually(lambda: side.leases._holds["c1"].copy is not None, "its copy is here")
        await lease.settle()
        await room.holds(room.names.worker_lease("w1"), 0)
        await room.holds("jobs.dead", 1)
        assert await room.depth(room.names.jobs(room.queues[0])) == 0

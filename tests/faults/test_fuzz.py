"""Messages of random and mutated bytes: the daemon lives, and each of them ends in the dead letters with a reason."""

import asyncio
import json
import os
import random
from pathlib import Path

import aio_pika
import pytest
from tests.e2e.daemon import BUSY, eventually, open_site
from tests.services import Endpoint

from runner.job import DeadCode

pytestmark = [pytest.mark.engine, pytest.mark.broker]

MESSAGES = int(os.environ.get("RUNNER_FUZZ_MESSAGES", "600"))
"""How many; the whole ten thousand take some minutes."""

# No stack of this name exists, so that even what is a job after its mutation runs nothing.
JOB = {
    "stack": "no-such-stack",
    "command": ["sh", "-c", "echo hi"],
    "env": {"A": "b"},
    "limits": {"cpus": 0.5, "memory": "64m", "timeout": "10s"},
    "retry": {"max": 2, "on": ["failed"]},
    "labels": {"team": "x"},
    "payload": {"rows": [1, 2.5, None, "ü"]},
}


def mutated(chance: random.Random) -> bytes:
    """A job's message with some bytes changed, cut out or put in; or bytes that never were one."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(300))
    # Each its own id: of two jobs with one id the second is a duplicate, which is told and not buried.
    body = bytearray(json.dumps({"id": f"fuzz-{chance.randbytes(8).hex()}", **JOB}).encode())
    for _ in range(chance.randrange(1, 8)):
        at, span = chance.randrange(len(body)), chance.randrange(6)
        body[at : at + span] = chance.choice((chance.randbytes(span), b'"', b"{}", b"null", b"-1e999", b"\\u0000", b""))
    return bytes(body)


async def test_no_message_brings_the_daemon_down(
    broker: Endpoint, engine: Endpoint, busybox_image: str, namespace: str, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)  # noqa: S311 - mutates, keeps no secret
    opened = open_site(broker=broker.url, engine=engine.url, image=busybox_image, folder=tmp_path, ns=namespace)
    async with opened as site, site.daemon(worker__max_deferred="0") as daemon:
        await daemon.ready()

        async def all_buried() -> bool:
            return (await site.messages()).get("dead", 0) == MESSAGES

        async with daemon.unhindered(but=BUSY):
            await publish(broker.url, namespace, [mutated(chance) for _ in range(MESSAGES)], chance)
            await eventually(all_buried, f"{MESSAGES} dead letters", timeout=60 + MESSAGES / 20)
        codes = await reasons(broker.url, namespace)
        assert codes.keys() <= {code.value for code in DeadCode}
        assert sum(codes.values()) == MESSAGES
        await daemon.stop()


async def publish(url: str, ns: str, bodies: list[bytes], chance: random.Random) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(ns, ensure=False)
        for start in range(0, len(bodies), 100):
            await asyncio.gather(
                *(
                    exchange.publish(aio_pika.Message(body), f"default.{chance.choice(('high', 'normal', 'low'))}.acme")
                    for body in bodies[start : start + 100]
                )
            )


async def reasons(url: str, ns: str) -> dict[str, int]:
    """How many dead letters have each code; every one has a reason."""
    found: dict[str, int] = {}
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=200)
        queue = await channel.get_queue(f"{ns}.dead", ensure=False)
        async with asyncio.timeout(120), queue.iterator() as letters:
            async for letter in letters:
                assert letter.headers["x-reason"]
                code = str(letter.headers["x-code"])
                found[code] = found.get(code, 0) + 1
                await letter.ack()
                if sum(found.values()) == MESSAGES:
                    break
    return found

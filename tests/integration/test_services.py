"""The private services themselves: each fault can be made, and undone, and nothing is left behind."""


import aio_pika
import aiodocker
import pytest
from tests.services import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.broker]


async def run_in(url: str, image: str, *command: str) -> tuple[int, str]:
    async with aiodocker.Docker(url=url) as docker:
        container = await docker.containers.create({"Image": image, "Cmd": list(command)})
        try:
            await container.start()
            status = await container.wait()
            return int(status["StatusCode"]), "".join(await container.log(stdout=True, stderr=True))
        finally:
            await container.delete(force=True)


async def test_the_shared_broker_takes_a_message(broker: Endpoint, namespace: str) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(namespace, exclusive=True)
        await channel.default_exchange.publish(aio_pika.Message(b"hi"), routing_key=namespace)
        message = await queue.get(timeout=5)
    assert message.body == b"hi"


async def test_the_shared_engine_runs_busybox(engine: Endpoint, busybox_image: str) -> None:
    assert await run_in(engine.url, busybox_image, "sh", "-c", "whoami; exit 3") == (3, "root\n")

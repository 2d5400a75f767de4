"""The private services themselves: each fault can be made, and undone, and nothing is left behind."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

import aio_pika
import aiodocker
import pytest
from aio_pika.connection import make_url
from aio_pika.exceptions import AMQPConnectionError, ChannelPreconditionFailed
from scripts.devservices.bridge import Bridge
from scripts.devservices.process import Process, ServiceError, as_root, launch
from tests.services import Broker, Endpoint, Engine, build_busybox

pytestmark = [pytest.mark.engine, pytest.mark.broker]


@asynccontextmanager
async def connected(url: str, timeout: float = 30) -> AsyncIterator[aio_pika.Connection]:
    # Unlike `aio_pika.connect`, this closes a connection that failed.
    connection = aio_pika.Connection(make_url(url))
    try:
        await connection.connect(timeout=timeout)
        yield connection
    finally:
        await connection.close()


async def connects(url: str, timeout: float = 30) -> bool:
    async with connected(url, timeout):
        return True


async def echo_through(url: str, queue_name: str, body: bytes) -> bytes:
    async with connected(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(queue_name, durable=True)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue_name)
        received = await queue.get(timeout=30)
        await received.ack()
        await queue.delete()
        return received.body


async def run_in(url: str, image: str, *command: str) -> tuple[int, str]:
    async with aiodocker.Docker(url=url) as docker:
        container = await docker.containers.create({"Image": image, "Cmd": list(command)})
        try:
            await container.start()
            status = await container.wait()
            return int(status["StatusCode"]), "".join(await container.log(stdout=True, stderr=True))
        finally:
            await container.delete(force=True)


async def start_sleeper(docker: aiodocker.Docker, image: str) -> aiodocker.containers.DockerContainer:
    container = await docker.containers.create({"Image": image, "Cmd": ["sleep", "600"]}, name="sleeper")
    await container.start()
    return container


async def process_of(docker: aiodocker.Docker, name: str) -> Process:
    container = await docker.containers.get(name)
    process = Process.find(int((await container.show())["State"]["Pid"]))
    assert process is not None
    return process


def output_of(*command: str) -> str:
    return subprocess.run(as_root(*command), check=True, capture_output=True, text=True).stdout


async def test_the_shared_broker_takes_a_message(broker: Endpoint, namespace: str) -> None:
    assert await echo_through(broker.url, namespace, b"hi") == b"hi"


async def test_the_shared_engine_runs_busybox(engine: Endpoint, busybox_image: str) -> None:
    assert await run_in(engine.url, busybox_image, "sh", "-c", "whoami; exit 3") == (3, "root\n")


async def test_a_broker_of_ones_own_takes_settings_and_every_fault(tmp_path: Path, namespace: str) -> None:
    async with Broker(tmp_path / "broker", conf=["max_message_size = 1000"]) as broker:
        url = broker.url
        with pytest.raises(ChannelPreconditionFailed):
            await echo_through(url, namespace, b"x" * 1001)
        await broker.pause()
        with pytest.raises(TimeoutError):
            await connects(url, timeout=0.5)
        await broker.resume()
        assert await echo_through(url, namespace, b"resumed") == b"resumed"
        await broker.kill()
        with pytest.raises(AMQPConnectionError):
            await connects(url)
        assert broker.process is None
        await broker.start()
        assert broker.url == url
        assert await echo_through(url, namespace, b"back") == b"back"
        found = Broker(tmp_path / "broker")
        assert found.process == broker.process
    assert found.process is None
    with pytest.raises(AMQPConnectionError):
        await connects(url)


async def test_containers_outlive_an_engine_with_live_restore(tmp_path: Path) -> None:
    async with Engine(tmp_path / "engine", flags=["--live-restore"]) as engine:
        image = await build_busybox(engine.url)
        async with aiodocker.Docker(url=engine.url) as docker:
            await start_sleeper(docker, image)
            sleeper = await process_of(docker, "sleeper")
        await engine.kill()
        assert sleeper.alive()
        await engine.start()
        async with aiodocker.Docker(url=engine.url) as docker:
            assert await process_of(docker, "sleeper") == sleeper
        await engine.restart()
        async with aiodocker.Docker(url=engine.url) as docker:
            assert await process_of(docker, "sleeper") == sleeper
    assert not sleeper.alive()


async def test_a_paused_engine_hangs_and_goes_on(tmp_path: Path) -> None:
    async with Engine(tmp_path / "engine") as engine, aiodocker.Docker(url=engine.url) as docker:
        await docker.version()
        await engine.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await docker.version()
        await engine.resume()
        async with asyncio.timeout(30):
            await docker.version()


async def test_a_process_that_has_ended_is_not_taken_for_one_that_stands_still(tmp_path: Path) -> None:
    process = launch(["sleep", "600"], record=tmp_path / "record", log=tmp_path / "log")
    await process.suspend()
    assert process.alive()
    await process.end(grace=30)
    with pytest.raises(ServiceError, match=f"process {process.pid} has ended"):
        await process.suspend()


async def test_stopping_a_killed_engine_leaves_nothing(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "engine")
    await engine.start()
    image = await build_busybox(engine.url)
    async with aiodocker.Docker(url=engine.url) as docker:
        await start_sleeper(docker, image)
        sleeper = await process_of(docker, "sleeper")
    await engine.kill()
    await engine.stop()
    assert not sleeper.alive()
    assert not engine.socket.parent.exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert Bridge(engine.folder).name not in output_of("ip", "link")
    await engine.stop()


@pytest.fixture
def foreign_chain() -> Iterator[str]:
    """A chain as another engine has it, with a rule in it."""
    chain = f"RUNNER-TEST-{token_hex(4)}"
    output_of("iptables", "-w", "-N", chain)
    output_of("iptables", "-w", "-A", chain, "-s", "192.0.2.1", "-j", "ACCEPT")
    yield chain
    output_of("iptables", "-w", "-F", chain)
    output_of("iptables", "-w", "-X", chain)


async def test_engines_stand_side_by_side_and_touch_no_rules_but_their_own(tmp_path: Path, foreign_chain: str) -> None:
    one, two = Engine(tmp_path / "one"), Engine(tmp_path / "two")
    foreign = f"-A {foreign_chain} -s 192.0.2.1/32 -j ACCEPT"
    async with one, two:
        assert one.url != two.url
        for engine in (one, two):
            assert len([rule for rule in rules() if Bridge(engine.folder).name in rule]) == 3
        assert foreign in rules()
    assert foreign in rules()
    assert not [rule for rule in rules() if Bridge(one.folder).name in rule or Bridge(two.folder).name in rule]


def rules() -> list[str]:
    return [line for table in ("nat", "filter") for line in output_of("iptables-save", "-t", table).splitlines()]


async def test_an_engine_that_gets_no_bridge_runs_in_a_closed_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Bridge) -> None:
        raise ServiceError("not permitted")

    monkeypatch.setattr(Bridge, "add", refuse)
    async with Engine(tmp_path / "engine") as engine:
        image = await build_busybox(engine.url)
        code, output = await run_in(engine.url, image, "ip", "route")
    assert code == 0
    assert "eth0" in output

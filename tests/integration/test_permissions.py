"""The permissions that `runner topology apply` prints, given to users of a real broker."""

import asyncio
import shlex
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import AsyncMock

import aio_pika
import aiormq
import pytest
from tests.fake_worker import batch, fake_worker, finished
from tests.services import Broker

from runner.adapters.amqp.names import Names
from runner.app.permissions import permission_commands, tenant_permissions, vhost_of
from runner.app.topology import apply_topology
from runner.client import BrokerError, Client
from runner.settings import Settings, load_settings

pytestmark = pytest.mark.broker

NAMESPACE = "jobs"
REFUSED = aiormq.exceptions.ChannelAccessRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Walled:
    """A broker whose users may do no more than the commands allow."""

    url: str

    def url_of(self, user: str) -> str:
        return self.url.replace("guest:guest", f"{user}:{user}")


def settings_of(url: str, worker: str, *, declare: bool) -> Settings:
    environ = {
        "RUNNER_AMQP__URL": url,
        "RUNNER_AMQP__NAMESPACE": NAMESPACE,
        "RUNNER_AMQP__DECLARE": str(declare).lower(),
        "RUNNER_WORKER__NAME": worker,
    }
    return load_settings(environ)


@pytest.fixture(scope="module")
async def walled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walled]:
    """Tenants `acme` and `rival`; workers `runner-maker`, which declares, and `runner-plain`, which may not."""
    async with Broker(tmp_path_factory.mktemp("broker")) as broker:
        maker = settings_of(broker.url, "maker", declare=True)
        plain = settings_of(broker.url, "plain", declare=False)
        commands = permission_commands(maker, ("acme", "rival")) + permission_commands(plain, ())
        for user in ("acme", "rival", "runner-maker", "runner-plain"):
            rabbitmqctl(broker, "add_user", user, user)
        await apply_topology(maker)
        for command in commands:
            if command and not command.startswith("#"):
                rabbitmqctl(broker, *shlex.split(command)[1:])
        yield Walled(url=broker.url)


def rabbitmqctl(broker: Broker, *words: str) -> None:
    program = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
    subprocess.run([program, *words], env=broker._environment(), check=True, capture_output=True, timeout=60)


@pytest.fixture
async def acme(walled: Walled) -> AsyncIterator[Client]:
    async with Client(walled.url_of("acme"), NAMESPACE) as client, asyncio.timeout(30):
        yield client


async def attempt(url: str, exchange: str, key: str) -> None:
    """Publish as that user; raises what the broker says."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(aio_pika.Message(b"{}"), key, mandatory=False, timeout=10)


async def test_a_tenant_can_submit_follow_and_cancel(walled: Walled, acme: Client) -> None:
    async with fake_worker(walled.url, NAMESPACE) as worker:
        job = await acme.submit(stack="busybox", tenant="acme")
        await worker.take()
        await job.cancel("enough")
        await worker.cancelled()
        await worker.log(batch(job.id, 1, [("out", "hi\n")], end=True), tenant="acme")
        await worker.tell(finished(job.id, tenant="acme"))
        assert [line.text async for line in job.logs()] == ["hi"]
        assert (await job.result()).succeeded


async def test_a_tenant_cannot_act_for_another(acme: Client) -> None:
    with pytest.raises(BrokerError, match=r"may not publish default\.normal\.rival"):
        await acme.enqueue({"stack": "busybox"}, tenant="rival")
    with pytest.raises(BrokerError, match=r"may not publish job\.rival\.x\.cancel"):
        await acme.cancel("rival", "x")
    with pytest.raises(BrokerError, match="cannot follow rival/x"):
        await acme.follow("rival", "x")


async def test_a_refusal_does_not_end_what_is_followed(walled: Walled, acme: Client) -> None:
    async with fake_worker(walled.url, NAMESPACE) as worker:
        job = await acme.submit(stack="busybox", tenant="acme")
        with pytest.raises(BrokerError, match="cannot follow"):
            await acme.follow("rival", "x")
        with pytest.raises(BrokerError, match="may not publish"):
            await acme.cancel("rival", "x")
        await worker.tell(finished(job.id, tenant="acme", ran=False))
        assert (await job.result()).succeeded
        assert (await acme.enqueue({"stack": "busybox"}, tenant="acme")).tenant == "acme"


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        ("jobs", "default.normal.acmeX"),
        ("jobs", "default.normal.rival.acme"),
        ("jobs", "a.b.default.normal.acme"),
        ("jobs", "default.urgent.acme"),
        ("jobs.control", "all.drain"),
        ("jobs.control", "worker.maker.drain"),
        ("jobs.control", "job.acme.x.y.cancel"),
        ("jobs.events", "acme.x.finished"),
        ("jobs.logs", "acme.x"),
        ("jobs.reply", "acme.x"),
        ("jobs.shared", "default.normal.acme"),
        ("jobs.delay.out", "default.normal.acme"),
        ("jobs.delay.00", "default.normal.acme"),
        ("jobs.lease", "maker"),
        ("jobs.lost", ""),
        ("jobs.dead", ""),
        ("jobs.unrouted", ""),
        ("", "jobs.q.default.normal"),
        ("amq.topic", "x"),
    ],
)
async def test_a_tenant_can_publish_nothing_else(walled: Walled, exchange: str, key: str) -> None:
    with pytest.raises(REFUSED):
        await attempt(walled.url_of("acme"), exchange, key)


async def test_what_a_tenants_queue_smuggles_into_control_bears_a_mark(walled: Walled, acme: Client) -> None:
    """The broker dead-letters without a look at topic permissions, so that workers have to look at the mark."""
    async with (
        fake_worker(walled.url, NAMESPACE) as worker,
        await aio_pika.connect(walled.url_of("acme")) as connection,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(
            exclusive=True,
            arguments={
                "x-message-ttl": 0,
                "x-dead-letter-exchange": "jobs.control",
                "x-dead-letter-routing-key": "job.rival.x.cancel",
            },
        )
        await queue.bind("jobs.events", "acme.#")
        job = await acme.enqueue({"stack": "busybox"}, tenant="acme")
        await worker.tell(finished(job.id, tenant="acme"))
        message = await worker.cancelled()
        assert message.routing_key == "job.rival.x.cancel"
        assert "x-death" in message.headers


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        ("jobs.events", "#"),
        ("jobs.events", "*.#"),
        ("jobs.events", "rival.#"),
        ("jobs.logs", "acme"),
        ("jobs.logs", "acmeX.#"),
        ("jobs.reply", "#"),
        ("jobs.control", "job.acme.#"),
        ("jobs", "default.normal.acme"),
        ("jobs.dead", ""),
        ("jobs.lost", ""),
    ],
)
async def test_a_tenant_can_listen_to_nothing_else(walled: Walled, exchange: str, key: str) -> None:
    async with await aio_pika.connect(walled.url_of("acme")) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        with pytest.raises(REFUSED):
            await queue.bind(exchange, key)


@pytest.mark.parametrize("name", ["jobs.q.default.normal", "jobs.dead", "jobs.w.maker.lease", "jobs.cancelled"])
async def test_a_tenant_can_take_from_no_queue_of_ours(walled: Walled, name: str) -> None:
    async with await aio_pika.connect(walled.url_of("acme")) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(name, ensure=False)
        with pytest.raises(REFUSED):
            await queue.get(timeout=10)


@pytest.mark.parametrize("name", ["jobs.q.default.normal.acme", "jobs.x", "x", "amq_gen-x"])
async def test_a_tenant_can_make_no_queue_that_it_names(walled: Walled, name: str) -> None:
    async with await aio_pika.connect(walled.url_of("acme")) as connection:
        with pytest.raises(REFUSED):
            await (await connection.channel()).declare_queue(name, exclusive=True)


async def test_a_worker_that_declares_can_make_the_topology(walled: Walled) -> None:
    applied = await apply_topology(settings_of(walled.url_of("runner-maker"), "maker", declare=True))
    assert applied.made == ()


@pytest.mark.parametrize(("user", "name"), [("runner-maker", "maker"), ("runner-plain", "plain")])
async def test_a_worker_can_do_its_work(walled: Walled, user: str, name: str) -> None:
    names = Names(NAMESPACE)
    async with await aio_pika.connect(walled.url_of(user)) as connection:
        channel = await connection.channel()
        lease = await channel.declare_queue(
            names.worker_lease(name), durable=True, arguments={"x-dead-letter-exchange": names.lost}
        )
        await lease.bind(names.lease, name)
        news = await channel.declare_queue(names.worker_superseded(name), durable=True)
        await news.bind(names.lease, names.superseded_key(name))
        control = await channel.declare_queue(names.worker_control(name), durable=True)
        for key in (f"worker.{name}.*", "all.*", "job.*.*.cancel"):
            await control.bind(names.control, key)
        await channel.declare_queue(names.worker_lock(name), exclusive=True)
        await channel.set_qos(prefetch_count=1)
        for taken in (names.worker_lease(name), f"{NAMESPACE}.q.default.normal", names.unrouted, names.lost):
            queue = await channel.get_queue(taken, ensure=False)
            await queue.cancel(await queue.consume(AsyncMock()))
        for stream in (names.cancelled, names.claims):
            queue = await channel.get_queue(stream, ensure=False)
            await queue.cancel(await queue.consume(AsyncMock()))
    for exchange, key in (
        (names.dead, ""),
        (names.events, "acme.x.started"),
        (names.logs, "acme.x"),
        (names.reply, "acme.x"),
        (names.lease, name),
        (names.lease, "other"),
        (names.lease, names.superseded_key("other")),
        (names.memory, names.claim_key(name)),
        (names.memory, names.mark_key("cancelled", name)),
        (names.delay(3), "1.0.0.0.default.normal.acme"),
        (names.delay_out, "default.normal.acme"),
        ("", "amq.gen-somebody"),
    ):
        await attempt(walled.url_of(user), exchange, key)


@pytest.mark.parametrize(("user", "name"), [("runner-maker", "maker"), ("runner-plain", "plain")])
async def test_a_worker_cannot_stand_in_for_another(walled: Walled, user: str, name: str) -> None:
    names = Names(NAMESPACE)
    for key in ("other", "#", names.superseded_key("other")):
        async with await aio_pika.connect(walled.url_of(user)) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(names.worker_control(name), durable=True)
            with pytest.raises(REFUSED):
                await queue.bind(names.lease, key)
    for key in (names.claim_key("other"), names.mark_key("claims", "other"), "job.acme.x.cancel"):
        with pytest.raises(REFUSED):
            await attempt(walled.url_of(user), names.memory, key)


@pytest.mark.parametrize("name", ["jobs.w.maker.lease", "jobs.w.plainX.lease", "jobs.q.default.new", "jobs"])
async def test_a_worker_that_must_not_declare_makes_its_own_queues_alone(walled: Walled, name: str) -> None:
    async with await aio_pika.connect(walled.url_of("runner-plain")) as connection:
        with pytest.raises(REFUSED):
            await (await connection.channel()).declare_queue(name, durable=True)


def test_a_namespace_with_odd_letters_is_taken_by_the_letter() -> None:
    written = tenant_permissions("a-b", "acme").write
    assert written == r"^(a\-b|a\-b\.control|amq\.gen-.+)$"


@pytest.mark.parametrize(
    ("url", "vhost"), [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2F", "/"), ("amqp://h/a%20b?x=1", "a b")]
)
def test_the_virtual_host_is_that_of_the_address(url: str, vhost: str) -> None:
    assert vhost_of(url) == vhost

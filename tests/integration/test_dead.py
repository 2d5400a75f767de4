"""The dead letters at a real broker: what workers buried, what the broker buried, and what an operator does with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from click.testing import CliRunner, Result
from tests.e2e.daemon import eventually
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp.names import Names, delay_path
from runner.app.broker import expected_topology
from runner.app.dead import Chosen, Fate, Letter, Swept, go_through
from runner.app.topology import apply_topology
from runner.cli import cli
from runner.errors import BrokerError
from runner.job import Priority, Route
from runner.settings import Settings, load_settings

pytestmark = pytest.mark.broker

NOW = datetime(2030, 1, 1, tzinfo=UTC)
JOB = b'{"stack": "busybox"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A namespace with its topology."""

    settings: Settings
    names: Names
    channel: AbstractChannel

    async def bury(
        self,
        body: bytes = JOB,
        *,
        letter_id: str = "letter",
        code: str = "rejected",
        at: datetime = NOW,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Put in a letter as a worker does; its id."""
        told = {"x-code": code, "x-reason": "limits.cpus: too many", "x-from": "default.normal.acme"}
        message = aio_pika.Message(body, headers={**told, **(headers or {})}, message_id=letter_id, timestamp=at)
        await (await self.channel.get_exchange(self.names.dead, ensure=False)).publish(message, "")
        return letter_id

    async def submit(self, key: str = "default.normal.acme", body: bytes = JOB, **properties: Any) -> None:
        exchange = await self.channel.get_exchange(self.names.submit)
        await exchange.publish(aio_pika.Message(body, **properties), key)

    async def take(self, queue: str = "q.default.normal") -> AbstractIncomingMessage:
        """The next message of a queue."""
        source = await self.channel.get_queue(f"{self.names.ns}.{queue}", ensure=False)
        await eventually(lambda: self.waiting(queue), f"a message in {queue}")
        return await source.get(no_ack=True)

    async def waiting(self, queue: str) -> int:
        declared = await self.channel.declare_queue(f"{self.names.ns}.{queue}", passive=True)
        return declared.declaration_result.message_count or 0

    async def buried(self) -> None:
        """Return when there is a letter."""
        await eventually(lambda: self.waiting("dead"), "a dead letter")

    async def sweep(
        self, fate: Fate, chosen: Chosen | None = None, to: Route | None = None
    ) -> tuple[Swept, list[Letter]]:
        told: list[Letter] = []
        swept = await go_through(self.settings, chosen or Chosen(), fate, told.append, now=NOW, to=to)
        return swept, told

    async def letters(self) -> list[Letter]:
        return (await self.sweep(Fate.KEEP))[1]

    async def call(self, *words: str, answer: str | None = None) -> Result:
        """Call `runner dead …`."""
        env = {"RUNNER_AMQP__URL": self.settings.amqp.url[0], "RUNNER_AMQP__NAMESPACE": self.names.ns}
        return await asyncio.to_thread(CliRunner(env=env).invoke, cli, ["dead", *words], input=answer)


@pytest.fixture(scope="module")
async def place(broker: Endpoint) -> AsyncIterator[House]:
    """A topology takes two seconds to make, so all tests here share one."""
    namespace = f"t{token_hex(6)}"
    settings = load_settings({"RUNNER_AMQP__URL": broker.url, "RUNNER_AMQP__NAMESPACE": namespace})
    await apply_topology(settings)
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        try:
            yield House(settings=settings, names=Names(namespace), channel=channel)
        finally:
            wanted = expected_topology(settings)
            for queue in wanted.queues:
                await channel.queue_delete(queue.name)
            for exchange in reversed(wanted.exchanges):
                await channel.exchange_delete(exchange.name)


@pytest.fixture
async def house(place: House) -> House:
    """The namespace, with no message in it."""
    for queue in ("dead", "lost", "q.default.high", "q.default.normal", "q.default.low"):
        await (await place.channel.get_queue(f"{place.names.ns}.{queue}", ensure=False)).purge()
    return place


def plain(message: AbstractIncomingMessage) -> tuple[bytes, str | None, str | None]:
    return message.body, message.routing_key, message.message_id


def told_by(message: AbstractIncomingMessage) -> dict[str, Any]:
    """Its headers, without the broker's count of deliveries."""
    return {name: value for name, value in message.headers.items() if name != "x-delivery-count"}


async def test_what_a_worker_buried_says_why_and_whose_it_is(house: House) -> None:
    letter_id = await house.bury(headers={"x-id": "job-1"})
    (letter,) = await house.letters()
    assert (letter.id, letter.job_id, letter.tenant, letter.code) == (letter_id, "job-1", "acme", "rejected")
    assert (letter.reason, letter.came_by, letter.buried) == ("limits.cpus: too many", "default.normal.acme", NOW)
    assert letter.body == JOB


async def test_looking_leaves_everything_as_it_was_however_often(house: House) -> None:
    ids = [await house.bury(letter_id=f"l{number}") for number in range(30)]
    for _ in range(25):
        assert [letter.id for letter in await house.letters()] == ids
    assert await house.waiting("dead") == 30


async def test_thousands_of_letters_are_one_look(house: House) -> None:
    await asyncio.gather(*(house.bury(letter_id=f"l{number}") for number in range(3000)))
    letters = [letter.id for letter in await house.letters()]
    swept, _ = await house.sweep(Fate.DROP, Chosen(ids=frozenset(letters[10:2990])))
    assert swept == Swept(kept=20, dropped=2980)
    assert [letter.id for letter in await house.letters()] == letters[:10] + letters[2990:]


async def test_a_job_is_submitted_again_as_it_was_and_as_nothing_more(house: House) -> None:
    for number in range(3):
        await house.bury(letter_id=f"l{number}", headers={"x-id": f"job-{number}", "traceparent": "00-a-b-01"})
    swept, told = await house.sweep(Fate.REPLAY, Chosen(ids=frozenset({"job-1"})))
    assert swept == Swept(kept=2, replayed=1)
    assert [letter.id for letter in told] == ["l1"]
    job = await house.take()
    assert plain(job) == (JOB, "default.normal.acme", "job-1")
    assert told_by(job) == {"traceparent": "00-a-b-01"}
    assert job.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert job.timestamp is not None
    assert job.timestamp > datetime.now(UTC) - timedelta(minutes=1)
    assert [letter.id for letter in await house.letters()] == ["l0", "l2"]


async def test_a_job_is_submitted_elsewhere_if_so_told(house: House) -> None:
    await house.bury(headers={"x-from": "gone.normal.acme"})
    route = Route(pool="default", priority=Priority.HIGH, tenant="acme")
    await house.sweep(Fate.REPLAY, to=route)
    assert (await house.take("q.default.high")).routing_key == "default.high.acme"


async def test_a_letter_without_an_address_is_kept_until_it_gets_one(house: House) -> None:
    await house.bury(headers={"x-from": "nonsense"})
    swept, told = await house.sweep(Fate.REPLAY)
    assert (swept, told) == (Swept(kept=1, unaddressed=1), [])
    route = Route(pool="default", priority=Priority.NORMAL, tenant="acme")
    swept, _ = await house.sweep(Fate.REPLAY, to=route)
    assert swept == Swept(replayed=1)


@pytest.mark.parametrize(
    ("chosen", "dropped"),
    [
        (Chosen(code="undecodable"), ["l0"]),
        (Chosen(tenant="other"), ["l1"]),
        (Chosen(reason="TOO MANY"), ["l0", "l1", "l2"]),
        (Chosen(reason="no such thing"), []),
        (Chosen(older_than=timedelta(days=7)), ["l2"]),
        (Chosen(code="rejected", tenant="acme"), ["l2"]),
        (Chosen(ids=frozenset({"l0", "job-of-l1"})), ["l0", "l1"]),
    ],
)
async def test_letters_are_chosen_by_all_that_is_asked(house: House, chosen: Chosen, dropped: list[str]) -> None:
    await house.bury(letter_id="l0", code="undecodable", at=NOW - timedelta(days=6))
    await house.bury(letter_id="l1", headers={"x-from": "default.normal.other", "x-id": "job-of-l1"})
    await house.bury(letter_id="l2", at=NOW - timedelta(days=8))
    _, told = await house.sweep(Fate.DROP, chosen)
    assert [letter.id for letter in told] == dropped
    assert [letter.id for letter in await house.letters()] == [
        name for name in ("l0", "l1", "l2") if name not in dropped
    ]


async def exhaust(house: House) -> None:
    """Take the next job again and again until the broker buries it."""
    queue = await house.channel.get_queue(f"{house.names.ns}.q.default.normal")
    async with asyncio.timeout(60):
        while not await house.waiting("dead"):
            message = await queue.get(fail=False)
            if message is not None:
                await message.nack(requeue=True)


async def test_what_the_broker_buried_is_explained(house: House) -> None:
    await house.submit(message_id="job-7", reply_to="answers", correlation_id="c")
    await exhaust(house)
    (letter,) = await house.letters()
    assert (letter.id, letter.job_id, letter.tenant) == ("job-7", "job-7", "acme")
    assert letter.code == "delivery_limit"
    assert letter.reason.startswith(f"the broker buried it: was taken from {house.names.ns}.q.default.normal again")
    assert letter.buried is not None
    await house.sweep(Fate.REPLAY)
    job = await house.take()
    assert plain(job) == (JOB, "default.normal.acme", "job-7")
    assert (told_by(job), job.reply_to, job.correlation_id) == ({}, "answers", "c")


async def test_a_submitter_cannot_have_its_job_replayed_as_anothers(house: House) -> None:
    queue = f"{house.names.ns}.q.default.normal"
    forged = {
        "x-code": "rejected",
        "x-reason": "harmless",
        "x-from": "default.normal.victim",
        "x-route": "default.normal.victim",
        "x-death": [
            {
                "queue": queue,
                "reason": "delivery_limit",
                "count": 1,
                "exchange": house.names.submit,
                "routing-keys": ["default.normal.victim"],
                "time": NOW,
            }
        ],
        "CC": ["default.low.victim"],
    }
    await house.submit(headers=forged, message_id="job-8")
    await house.take("q.default.low")  # the copy; a worker buries it, since it came by a foreign key
    await exhaust(house)
    (letter,) = await house.letters()
    assert (letter.tenant, letter.came_by, letter.code) == ("acme", "default.normal.acme", "delivery_limit")
    await house.sweep(Fate.REPLAY)
    job = await house.take()
    assert (job.routing_key, told_by(job)) == ("default.normal.acme", {})
    assert await house.waiting("q.default.low") == 0


async def test_a_delayed_job_that_nothing_takes_any_more_is_explained(house: House) -> None:
    route = Route(pool="gone", priority=Priority.NORMAL, tenant="acme")
    path = delay_path(1, route)
    assert path is not None
    level = await house.channel.get_exchange(house.names.delay(path[0]))
    await level.publish(aio_pika.Message(JOB, headers={"x-route": str(route)}, message_id="m"), path[1])
    await house.buried()
    (letter,) = await house.letters()
    assert (letter.code, letter.tenant, letter.route) == ("unroutable", "acme", route)
    assert letter.reason.startswith("no queue takes 'gone.normal.acme' any more")


async def test_a_lease_that_the_broker_buried_leads_to_its_job(house: House) -> None:
    headers: Any = {"x-route": "default.normal.acme", "x-submitted-as": "job-9", "x-claim": "c1"}
    lost = await house.channel.get_exchange(house.names.lost)
    await lost.publish(aio_pika.Message(JOB, headers=headers, message_id="m"), "some-worker")
    queue = await house.channel.get_queue(house.names.lost)

    async def never_settle(message: AbstractIncomingMessage) -> None:
        await message.nack(requeue=True)

    tag = await queue.consume(never_settle)
    await house.buried()
    await queue.cancel(tag)
    (letter,) = await house.letters()
    assert (letter.job_id, letter.came_by, letter.code) == ("job-9", "default.normal.acme", "delivery_limit")
    await house.sweep(Fate.REPLAY)
    assert plain(await house.take()) == (JOB, "default.normal.acme", "job-9")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"", b'"text"', b'{"id": "not an id!"}'])
async def test_a_letter_may_hold_anything(house: House, body: bytes) -> None:
    await house.bury(body, headers={"x-code": 7, "x-reason": None, "x-death": "no list"})
    (letter,) = await house.letters()
    assert (letter.body, letter.code, letter.job_id) == (body, "7", None)
    assert json.loads(json.dumps(letter.fields()))["bytes"] == len(body)


async def test_a_connection_that_breaks_in_the_middle_loses_nothing(house: House, broker: Endpoint) -> None:
    ids = [await house.bury(letter_id=f"l{number}", headers={"x-id": f"job-{number}"}) for number in range(200)]
    async with Proxy(broker.url) as proxy:
        settings = load_settings({"RUNNER_AMQP__URL": proxy.url, "RUNNER_AMQP__NAMESPACE": house.names.ns})
        replayed: list[str | None] = []
        cuts: list[asyncio.Task[None]] = []

        def tell(letter: Letter) -> None:
            replayed.append(letter.job_id)
            if len(replayed) == 20:
                cuts.append(asyncio.ensure_future(proxy.cut()))

        with pytest.raises(BrokerError):
            await go_through(settings, Chosen(), Fate.REPLAY, tell, now=NOW)
        await asyncio.gather(*cuts)

    async def all_back() -> bool:
        """Every letter is there again, or its job is; of some there may be both."""
        return await house.waiting("dead") + await house.waiting("q.default.normal") >= len(ids)

    await eventually(all_back, "the letters are back")
    left = [letter.id for letter in await house.letters()]
    submitted = {(await house.take()).message_id for _ in range(await house.waiting("q.default.normal"))}
    assert len(left) < 200
    assert submitted | {f"job-{name[1:]}" for name in left} == {f"job-{name[1:]}" for name in ids}


async def test_the_commands_list_show_replay_and_drop(house: House) -> None:
    for number in range(3):
        await house.bury(letter_id=f"l{number}", headers={"x-id": f"job-{number}"})
    listed = await house.call("list")
    assert listed.exit_code == 0
    head, *rows = listed.stdout.splitlines()
    assert head.split() == ["LETTER", "JOB", "TENANT", "AGE", "CODE", "REASON"]
    assert [row.split()[:3] for row in rows] == [[f"l{number}", f"job-{number}", "acme"] for number in range(3)]
    shown = await house.call("show", "job-1")
    assert "limits.cpus: too many" in shown.stdout
    assert JOB.decode() in shown.stdout
    assert json.loads((await house.call("show", "l1", "--json")).stdout)["body"] == JOB.decode()
    replayed = await house.call("replay", "l1", "--json")
    assert json.loads(replayed.stdout) | {"buried": None} == {
        "id": "l1",
        "job": "job-1",
        "tenant": "acme",
        "code": "rejected",
        "reason": "limits.cpus: too many",
        "from": "default.normal.acme",
        "buried": None,
        "bytes": len(JOB),
        "done": "replayed",
    }
    dropped = await house.call("drop", "--tenant", "acme")
    assert (dropped.exit_code, dropped.stdout) == (0, "")
    assert dropped.stderr == "runner: 2 letters removed, 0 kept\n"
    assert (await house.take()).message_id == "job-1"


async def test_everything_goes_only_when_that_is_meant(house: House) -> None:
    await house.bury()
    for words, code in [
        (("drop",), 2),
        (("drop", "--all", "--tenant", "acme"), 2),
        (("drop", "--older-than", "soon"), 2),
        (("replay", "--to", "nowhere"), 2),
        (("drop", "no-such-letter"), 1),
        (("show", "no-such-letter"), 1),
        (("drop", "--tenant", "nobody"), 0),
    ]:
        assert (await house.call(*words)).exit_code == code, words
    assert (await house.call("drop", "--all", answer="n\n")).exit_code == 1
    assert await house.waiting("dead") == 1
    assert (await house.call("drop", "--all", "--yes")).exit_code == 0
    assert await house.waiting("dead") == 0


async def test_without_the_topology_it_says_so(broker: Endpoint, namespace: str) -> None:
    settings = load_settings({"RUNNER_AMQP__URL": broker.url, "RUNNER_AMQP__NAMESPACE": namespace})
    with pytest.raises(BrokerError, match="dead"):
        await go_through(settings, Chosen(), Fate.KEEP, lambda _: None, now=NOW)

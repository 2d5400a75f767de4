"""How jobs are taken from a real broker: never too many, by weight, and none lost or run twice on the way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from typing import Any

import pytest
from aio_pika.abc import AbstractConnection
from aio_pika.channel import Channel
from aio_pika.message import IncomingMessage
from aio_pika.queue import Queue
from tests.integration.amqp_house import Room, Side, eventually, open_room, open_side
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp import intake, topology
from runner.adapters.amqp.delivery import JobDelivery
from runner.adapters.amqp.intake import JobIntake
from runner.adapters.amqp.leases import LeaseHold, Leases, MakeMessage
from runner.adapters.amqp.link import AckUnknown, SessionOver
from runner.adapters.amqp.pulse import boot_time
from runner.adapters.amqp.share import WEIGHTS
from runner.errors import BrokerError
from runner.job import Job, Priority
from runner.ports import Delivery, Lease, QueueKey, Vanished

pytestmark = pytest.mark.broker

NORMAL = QueueKey(pool="default", priority=Priority.NORMAL)


@pytest.fixture(scope="module")
async def place(broker: Endpoint) -> AsyncIterator[Room]:
    async with open_room(broker.url, f"t{token_hex(6)}", tenants=["named"]) as opened:
        yield opened


@pytest.fixture
async def room(place: Room) -> AsyncIterator[Room]:
    yield place
    await place.purge()


@pytest.fixture
async def side(room: Room, broker: Endpoint) -> AsyncIterator[Side]:
    async with open_side(room.names, room.queues, broker.url) as opened:
        yield opened


def id_of(delivery: Delivery) -> str:
    assert isinstance(delivery.submission, Job), delivery.submission
    return delivery.submission.key.id


async def fill(room: Room, count: int, *priorities: Priority, tenant: str = "acme") -> None:
    for number in range(count):
        for priority in priorities or [Priority.NORMAL]:
            body = {"id": f"{priority}-{number}", "stack": "busybox"}
            await room.submit(body, f"default.{priority}.{tenant}")


async def consumers(room: Room) -> int:
    return sum([(await room.count(room.names.jobs(queue)))[1] for queue in room.queues])


async def waiting(room: Room) -> int:
    return sum([await room.depth(room.names.jobs(queue)) for queue in room.queues])


async def until_consumers(room: Room, count: int) -> None:
    async def there() -> bool:
        return await consumers(room) == count

    await eventually(there, f"{count} consumers")


async def until_waiting(room: Room, count: int) -> None:
    async def there() -> bool:
        return await waiting(room) == count

    await eventually(there, f"{count} jobs wait")


async def test_there_are_never_more_consumers_than_jobs_are_wanted(room: Room, side: Side) -> None:
    for wanted in (2, 6, 1, 4, 0, 3, 99, 0):
        side.intake.want(wanted)
        await until_consumers(room, min(wanted, len(room.queues)))


async def test_a_worker_with_one_slot_never_holds_two_jobs(room: Room, side: Side) -> None:
    await fill(room, 10, *Priority)
    for _ in range(30):
        side.intake.want(1)
        delivery = await side.take()
        side.intake.want(0)
        assert len(side.given) == 1
        side.given.clear()
        await delivery.drop()
        assert side.given == []
    assert await waiting(room) == 0


async def test_a_consumer_is_ended_before_its_job_is_acked(room: Room, side: Side) -> None:
    await fill(room, 5)
    side.intake.want(1)
    delivery = await side.take()
    side.intake.want(0)
    await delivery.drop()
    assert await room.count(room.names.jobs(room.queues[0])) == (0, 0)
    await until_waiting(room, 4)
    await until_consumers(room, 0)
    assert len(side.given) == 1


async def test_what_is_claimed_is_no_longer_in_the_job_queue(room: Room, side: Side) -> None:
    await fill(room, 1)
    side.intake.want(1)
    delivery = await side.take()
    lease = await delivery.claim("c1")
    lease_queue = room.names.worker_lease("w1")
    await eventually(lambda: side.leases._holds["c1"].copy is not None, "the copy is here")
    assert await waiting(room) == 0
    assert await room.depth(lease_queue) == 0, "it is with us, unacked, where it cannot expire"
    await lease.settle()
    assert not side.leases._holds


async def test_priorities_are_served_by_weight_and_none_starves(room: Room, side: Side) -> None:
    await fill(room, 60, *Priority)
    served: Counter[str] = Counter()
    for _ in range(65):
        side.intake.want(1)
        delivery = await side.take()
        side.intake.want(0)
        served[id_of(delivery).partition("-")[0]] += 1
        await delivery.drop()
    for priority, weight in WEIGHTS.items():
        assert served[priority] == pytest.approx(65 * weight / 13, abs=3), served


async def test_a_job_that_waits_for_room_does_not_hide_those_behind_it(room: Room, side: Side) -> None:
    await fill(room, 4)
    taken = []
    for _ in range(4):
        side.intake.want(1)
        taken.append(await side.take())
    assert sorted(map(id_of, taken)) == [f"normal-{number}" for number in range(4)]
    for delivery in taken:
        await delivery.drop()
    assert await waiting(room) == 0


async def test_looking_past_jobs_leaves_no_channels_behind(room: Room, broker: Endpoint) -> None:
    connections: list[AbstractConnection] = []

    async def watch(connection: AbstractConnection) -> None:
        connections.append(connection)
        await asyncio.Event().wait()

    def channels() -> int:
        transport = connections[0].transport
        assert transport is not None
        return len(transport.connection.channels)

    async with open_side(room.names, room.queues, broker.url, users=[watch]) as side:
        side.intake.want(6)
        await until_consumers(room, 6)
        side.intake.want(0)
        await until_consumers(room, 0)
        before = channels()
        for _ in range(3):
            await fill(room, 3)
            taken = []
            for _ in range(3):
                side.intake.want(1)
                taken.append(await side.take())
            side.intake.want(0)
            for delivery in taken:
                await delivery.drop()
            await eventually(lambda: channels() <= before, "spare channels are closed")


async def test_several_jobs_of_one_queue_come_at_once_where_more_wait(
    room: Room, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_LOOK_PAST", 60.0)  # else others would come beside those that are not settled
    monkeypatch.setattr(intake, "_AT_ONCE", 60.0)  # the machine may be slow
    await fill(room, 12)
    await room.holds(room.names.jobs(NORMAL), 12)
    side.intake.want(12)
    taken = [await side.take() for _ in range(4)]
    assert [id_of(delivery) for delivery in taken] == [f"normal-{number}" for number in range(4)]
    with pytest.raises(TimeoutError):
        await side.take(timeout=0.3)
    for number in range(8):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(taken[number].drop())
            taken.append(await side.take())
    for delivery in taken[8:]:
        await delivery.drop()
    assert sorted(map(id_of, taken)) == sorted(f"normal-{number}" for number in range(12))
    side.intake.want(6)
    await until_consumers(room, 6)  # one of each queue, as ever


async def test_however_many_come_at_once_no_more_are_held_than_there_are_slots(room: Room, side: Side) -> None:
    slots, jobs, ended, most = 10, 60, 0, 0
    await fill(room, jobs)
    really_wrap = side.intake.wrap

    def wrap(*args: Any) -> Delivery:
        nonlocal most
        delivery = really_wrap(*args)
        most = max(most, len(side.given) - ended)
        return delivery

    side.intake.wrap = wrap
    side.intake.want(slots)
    running: list[asyncio.Task[Lease]] = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(jobs):
            delivery = await side.take()
            running.append(tasks.create_task(delivery.claim(f"c{number}")))
            while len(running) == slots or (number == jobs - 1 and running):
                await (await running.pop(0)).settle()
                ended += 1
            side.intake.want(slots - (len(side.given) - ended))
    assert most == slots
    assert await waiting(room) == 0


async def test_two_workers_share_what_waits_in_one_queue(
    room: Room, side: Side, broker: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has four jobs of it at most that it has not claimed, so those that claim as fast get as many."""
    for name in ("_LOOK_AGAIN", "_LOOK_PAST", "_QUIET", "_AT_ONCE"):  # the machine may be slow
        monkeypatch.setattr(intake, name, 3600.0)
    await fill(room, 40)
    await room.holds(room.names.jobs(NORMAL), 40)
    async with open_side(room.names, room.queues, broker.url, worker="w2") as other:
        for turn in range(1, 6):
            unclaimed = list[Delivery]()
            for one in (side, other):
                one.intake.want(40)
                unclaimed += [await one.take() for _ in range(4)]
            await room.holds(room.names.jobs(NORMAL), 40 - 8 * turn)
            assert [len(one.given) for one in (side, other)] == [4 * turn, 4 * turn]
            for delivery in unclaimed:
                await (await delivery.claim(id_of(delivery))).settle()
    await room.purge("w2")


async def test_jobs_of_a_tenants_own_queue_come_one_by_one(
    room: Room, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_LOOK_PAST", 60.0)
    monkeypatch.setattr(intake, "_AT_ONCE", 60.0)
    await fill(room, 6, tenant="named")
    side.intake.want(12)
    for _ in range(6):
        delivery = await side.take()
        with pytest.raises(TimeoutError):
            await side.take(timeout=0.1)
        await delivery.drop()


async def test_closing_gives_back_what_nobody_took(room: Room, side: Side) -> None:
    await fill(room, 2, *Priority)
    side.intake.want(3)
    await eventually(lambda: len(side.given) == 3, "three jobs have come")
    await side.intake.close()
    await until_waiting(room, 6)
    await until_consumers(room, 0)
    assert len(side.given) == 3


async def test_closing_while_a_consumer_is_being_opened_brings_nothing(room: Room, broker: Endpoint) -> None:
    """Put back while its consumer is open, a job would come again and again up to its delivery limit."""
    await fill(room, 1)
    for steps in range(0, 60, 4):
        async with open_side(room.names, room.queues, broker.url) as side:
            side.intake.want(6)
            for _ in range(steps):
                await asyncio.sleep(0)
            await side.intake.close()
            await until_waiting(room, 1)
            assert await consumers(room) == 0
    message = await room.get(room.names.jobs(QueueKey(pool="default", priority=Priority.NORMAL)))
    assert int(str(message.headers.get("x-delivery-count", 0))) <= 15


@dataclass
class Gate:
    """Holds up the first call until it is opened; `reached` when it is there."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            await self.opened.wait()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Behind the broker's answer to the first consumer that is ended."""
    gate, really_cancel = Gate(), Queue.cancel

    async def cancel(queue: Queue, tag: str) -> None:
        await really_cancel(queue, tag)
        await gate.wait()

    monkeypatch.setattr(Queue, "cancel", cancel)
    monkeypatch.setattr(intake, "RPC_TIMEOUT", 60.0)
    return gate


async def test_a_job_may_be_settled_while_the_intake_is_closed(
    room: Room, side: Side, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_LOOK_AGAIN", 3600.0)
    side.intake.want(6)
    await until_consumers(room, 6)
    last = list(side.intake._sources)[-1]
    await fill(room, 1, last.priority, tenant=last.tenant or "acme")
    delivery = await side.take()
    busy = side.intake._arranging, side.intake._changed
    await eventually(lambda: not busy[0].locked() and not busy[1].is_set(), "what the job changed is seen to")
    closing = asyncio.create_task(side.intake.close())
    async with asyncio.timeout(30):
        await gate.reached.wait()
        await delivery.drop()
        gate.opened.set()
        await closing
    await until_consumers(room, 0)
    assert await waiting(room) == 0


async def test_jobs_may_be_settled_while_a_queue_gets_fewer_consumers(
    room: Room, side: Side, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LOOK_AGAIN", "_LOOK_PAST", "_QUIET", "_AT_ONCE"):  # it becomes wide, and stays so
        monkeypatch.setattr(intake, name, 3600.0)
    side.intake.queues = [NORMAL]
    await fill(room, 4)
    await room.holds(room.names.jobs(NORMAL), 4)
    side.intake.want(8)
    for delivery in [await side.take() for _ in range(4)]:
        await delivery.drop()
    await until_consumers(room, 4)
    side.intake.want(1)
    async with asyncio.timeout(30):
        await gate.reached.wait()
        await fill(room, 3)  # to those consumers that are still there
        for delivery in [await side.take() for _ in range(3)]:
            await delivery.drop()
        gate.opened.set()
    await until_consumers(room, 0)
    await fill(room, 1)
    side.intake.want(1)
    await (await side.take()).drop()


async def test_no_consumer_is_opened_for_a_job_that_came_by_another_way_meanwhile(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, opened, really_make, really_open = Gate(), list[QueueKey](), JobIntake._make_source, intake._Source.open

    async def make(*args: Any) -> intake._Source:
        await gate.wait()
        return await really_make(*args)

    async def open_(source: intake._Source, bring: Any) -> None:
        opened.append(source.key)
        await really_open(source, bring)

    monkeypatch.setattr(JobIntake, "_make_source", make)
    monkeypatch.setattr(intake._Source, "open", open_)
    side.intake.want(1)
    async with asyncio.timeout(30):
        await gate.reached.wait()
        side.intake.want(0)
        gate.opened.set()
        async with side.intake._arranging:
            assert opened == []


async def test_a_named_tenants_jobs_come_from_its_own_queue(room: Room, side: Side) -> None:
    await fill(room, 1, tenant="named")
    own = QueueKey(pool="default", priority=Priority.NORMAL, tenant="named")
    await room.holds(room.names.jobs(own), 1)
    side.intake.want(1)
    delivery = await side.take()
    assert isinstance(delivery.submission, Job)
    assert delivery.submission.key.tenant == "named"
    await delivery.drop()


async def test_a_queue_without_a_rank_is_left_alone(room: Room, side: Side) -> None:
    side.intake.rank = lambda queue: 0.0 if queue.tenant is None else None
    await fill(room, 1, tenant="named")
    await fill(room, 1)
    side.intake.want(6)
    delivery = await side.take()
    served = {queue for queue in room.queues if queue.tenant is None}

    async def listened_to() -> bool:
        return {queue for queue in room.queues if (await room.count(room.names.jobs(queue)))[1]} == served

    await eventually(listened_to, "all queues but the tenant's have consumers")
    await delivery.drop()
    await until_consumers(room, len(served))
    with pytest.raises(TimeoutError):
        await side.take(timeout=0.3)
    assert await waiting(room) == 1


async def test_what_comes_by_other_ways_need_not_be_wanted(room: Room, side: Side) -> None:
    await fill(room, 1)
    side.intake.want(1)
    delivery = await side.take()
    side.intake.want(0)
    side.intake.offer(delivery)
    assert await side.take() is delivery
    await delivery.drop()


# Faults


async def test_a_job_that_was_not_claimed_comes_again_after_a_cut(room: Room, broker: Endpoint) -> None:
    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        await fill(room, 1)
        side.intake.want(1)
        first = await side.take()
        assert first.live
        await wire.cut()
        await eventually(lambda: not first.live, "the delivery is known to be dead")
        side.intake.want(1)
        second = await side.take()
        assert id_of(second) == id_of(first)
        assert (second.fresh, second.live) == (True, True)
        with pytest.raises(BrokerError):
            await first.claim("c1")
        with pytest.raises(BrokerError):
            await first.drop()
        lease = await second.claim("c2")
        await eventually(lambda: set(side.leases._holds) == {"c2"}, "one lease is left")
        await lease.settle()
        assert await waiting(room) == 0
        side.intake.want(1)
        with pytest.raises(TimeoutError):
            await side.take(timeout=0.5)


async def test_taking_goes_on_after_a_cut(room: Room, broker: Endpoint) -> None:
    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        side.intake.want(6)
        await until_consumers(room, 6)
        for number in range(3):
            await wire.cut()
            await room.submit({"id": f"j{number}", "stack": "busybox"})
            delivery = await side.take()
            assert id_of(delivery) == f"j{number}"
            await delivery.drop()
            side.intake.want(6)
            await until_consumers(room, 6)  # by then the broker has seen the ack, too


async def test_taking_goes_on_when_a_queue_is_deleted_and_made_again(room: Room, side: Side) -> None:
    side.intake.want(6)
    await until_consumers(room, 6)
    name = room.names.jobs(QueueKey(pool="default", priority=Priority.LOW))
    await room.channel.queue_delete(name)
    await asyncio.sleep(0.1)
    await topology.apply(room.connection, room.wanted)
    await fill(room, 1, Priority.LOW)
    delivery = await side.take()
    assert id_of(delivery) == "low-0"
    await delivery.drop()
    side.intake.want(6)
    await until_consumers(room, 6)


async def test_a_lease_of_an_earlier_life_that_is_given_back_is_not_lost(room: Room, broker: Endpoint) -> None:
    await fill(room, 1)
    async with open_side(room.names, room.queues, broker.url) as first_life:
        first_life.intake.want(1)
        await (await first_life.take()).claim("c1")
        await eventually(lambda: first_life.leases._holds["c1"].copy is not None, "the copy is here")
    for _ in range(3):
        async with open_side(room.names, room.queues, broker.url) as next_life:
            async with asyncio.timeout(30):
                message = await next_life.leases.orphans.get()
            orphan = next_life.desk.open_lease(message, message.ack)
            assert orphan.vanished is not None
            assert orphan.vanished.claim == "c1"
            await orphan.release()
            await asyncio.sleep(0.1)
            assert next_life.leases.orphans.empty()
    await room.holds(room.names.worker_lease("w1"), 1)


async def test_nothing_is_claimed_over_a_connection_that_is_dead_and_looks_alive(
    room: Room, broker: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_acquire, published = Leases.acquire, asyncio.Event()

    async def acquire(leases: Leases, claim: str, make: MakeMessage) -> LeaseHold:
        hold = await really_acquire(leases, claim, make)
        published.set()
        return hold

    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        await fill(room, 1)
        side.intake.want(1)
        first = await side.take()
        wire.black_hole()
        assert first.live
        with monkeypatch.context() as patched:
            patched.setattr(Leases, "acquire", acquire)
            claiming = asyncio.create_task(first.claim("c1"))
            async with asyncio.timeout(30):
                await published.wait()  # what it publishes does get through
        await wire.cut()
        wire.heal()
        with pytest.raises(BrokerError):
            await claiming
        side.intake.want(1)
        lease = await (await side.take()).claim("c2")
        await lease.settle()
        await room.holds(room.names.worker_lease("w1"), 0)
        assert side.leases.orphans.empty()


async def test_an_answer_of_long_ago_says_nothing_of_the_connection(
    room: Room, broker: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        await fill(room, 1)
        side.intake.want(6)
        first = await side.take()
        source = side.intake._sources[NORMAL]
        really_acquire, dead = Leases.acquire, asyncio.Event()

        async def acquire_late(leases: Leases, claim: str, make: MakeMessage) -> LeaseHold:
            hold = await really_acquire(leases, claim, make)
            await eventually(lambda: source._heard > float("-inf"), "the broker has answered")
            much_later = boot_time() + 3600
            monkeypatch.setattr(intake, "boot_time", lambda: much_later)
            wire.black_hole()
            dead.set()
            return hold

        with monkeypatch.context() as patched:
            patched.setattr(Leases, "acquire", acquire_late)
            claiming = asyncio.create_task(first.claim("c1"))
            async with asyncio.timeout(30):
                await dead.wait()
            assert not (await asyncio.wait({claiming}, timeout=0.5))[0], "nothing has come back over this connection"
        await wire.cut()
        wire.heal()
        with pytest.raises(BrokerError):
            await claiming
        side.intake.want(6)
        lease = await (await side.take()).claim("c2")
        await lease.settle()


async def test_a_lease_outlives_an_ack_of_which_nobody_knows_whether_it_arrived(
    room: Room, broker: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        await fill(room, 1)
        side.intake.want(1)
        delivery = await side.take()
        assert isinstance(delivery, JobDelivery)
        really_ack = IncomingMessage.ack

        async def ack_and_break(message: IncomingMessage) -> None:
            await really_ack(message)
            if message is not delivery.message:
                return
            await room.holds(room.names.jobs(QueueKey(pool="default", priority=Priority.NORMAL)), 0)
            await wire.cut()
            raise ConnectionResetError

        monkeypatch.setattr(IncomingMessage, "ack", ack_and_break)
        with pytest.raises(BrokerError):
            await delivery.claim("c1")
        async with asyncio.timeout(30):
            message = await side.leases.orphans.get()
        orphan = side.desk.open_lease(message, message.ack)
        assert (orphan.vanished, id_of(orphan)) == (Vanished(worker="w1", claim="c1"), id_of(delivery))
        await orphan.drop()


async def test_a_delivery_whose_channel_is_closed_before_its_ack_leaves_no_lease(
    room: Room, broker: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(broker.url) as wire, open_side(room.names, room.queues, wire.url, broker.url) as side:
        side.intake.queues = [NORMAL]
        await fill(room, 1)
        side.intake.want(6)
        first = await side.take()
        source = side.intake._sources[NORMAL]
        really_acquire = Leases.acquire

        async def acquire_and_lose(leases: Leases, claim: str, make: MakeMessage) -> LeaseHold:
            hold = await really_acquire(leases, claim, make)
            await eventually(lambda: source._heard > float("-inf"), "the broker has answered")
            monkeypatch.setattr(intake, "boot_time", lambda: source._heard)
            await wire.refuse()
            await eventually(lambda: source.channel.is_closed, "the channel is known to be closed")
            return hold

        with monkeypatch.context() as patched:
            patched.setattr(Leases, "acquire", acquire_and_lose)
            with pytest.raises(SessionOver):
                await first.claim("c1")
        await wire.accept()
        side.intake.want(6)
        second = await side.take()
        assert id_of(second) == id_of(first)
        await (await second.claim("c2")).settle()
        await room.holds(room.names.worker_lease("w1"), 0)
        assert side.leases.orphans.empty()


@pytest.mark.parametrize(("call", "seen"), [("answers", SessionOver), ("ack", AckUnknown)])
async def test_a_claim_whose_call_the_library_cancels_is_not_cancelled_itself(
    room: Room, broker: Endpoint, monkeypatch: pytest.MonkeyPatch, call: str, seen: type[Exception]
) -> None:
    """It does that to whoever waits for an answer on a connection that it closes."""

    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    async with open_side(room.names, room.queues, broker.url, broker.url) as side:
        side.intake.queues = [NORMAL]
        await fill(room, 1)
        side.intake.want(6)
        delivery = await side.take()
        with monkeypatch.context() as patched:
            owner: type = intake._Source if call == "answers" else IncomingMessage
            patched.setattr(owner, call, cancelled)
            with pytest.raises(seen):
                await delivery.claim("c1")
        assert "c1" not in side.leases._holds, "nobody renews it"


# Answers of the broker


@pytest.fixture
def far_broker(side: Side, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """By the intake's clock each look at it comes a second after the last one. Its questions wait at the gate."""
    for name in ("_LOOK_AGAIN", "_LOOK_PAST", "_QUIET", "_AT_ONCE"):  # the queue becomes wide, and stays so
        monkeypatch.setattr(intake, name, 3600.0)
    monkeypatch.setattr(intake, "boot_time", count().__next__)
    side.intake.queues = [NORMAL]
    return Gate()


async def test_claims_that_wait_for_an_answer_share_the_next_question(
    room: Room, side: Side, far_broker: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(room, 4)
    await room.holds(room.names.jobs(NORMAL), 4)
    side.intake.want(8)
    taken = [await side.take() for _ in range(4)]
    side.intake.want(8)  # so that the consumers stay, and the channel has to be asked
    channel, waiting_for, questions = side.intake._sources[NORMAL].channel, list[int](), list[int]()
    really_answer, really_ask = intake._Source.answers, Channel.set_qos

    async def answers(source: intake._Source) -> None:
        waiting_for.append(1)
        await really_answer(source)

    async def ask(asked: Channel, **more: Any) -> Any:
        if asked is channel:
            questions.append(1)
            await far_broker.wait()
        return await really_ask(asked, **more)

    monkeypatch.setattr(intake._Source, "answers", answers)
    monkeypatch.setattr(Channel, "set_qos", ask)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(delivery.claim(f"c{number}")) for number, delivery in enumerate(taken)]
        await eventually(lambda: len(waiting_for) == 5, "all wait, and who asks ahead")
        assert len(questions) == 1
        far_broker.opened.set()
    assert len(questions) == 2
    for claim in claims:
        await claim.result().settle()


async def test_where_answers_take_long_no_question_is_put_ahead(
    room: Room, side: Side, far_broker: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_broker.reached.set()  # nobody is held up
    questions, really_ask = list[Channel](), Channel.set_qos

    async def ask(asked: Channel, **more: Any) -> Any:
        questions.append(asked)
        return await really_ask(asked, **more)

    monkeypatch.setattr(Channel, "set_qos", ask)
    told = list[int]()
    for number in range(3):
        await fill(room, 1)
        side.intake.want(8)
        delivery = await side.take()
        side.intake.want(8)
        questions.clear()
        await (await delivery.claim(f"c{number}")).settle()
        told.append(questions.count(side.intake._sources[NORMAL].channel))  # type: ignore[arg-type]
    assert told == [2, 1, 1]

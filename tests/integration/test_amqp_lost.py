"""What becomes of leases when connections, workers and the broker's own queues go away."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aio_pika
import pytest
from tests.integration.lease_side import HEARTBEAT, Room, Side, eventually, open_room, open_side, passport
from tests.proxy import Proxy
from tests.services import Endpoint

from runner.adapters.amqp import leases as leases_module
from runner.adapters.amqp import link, lost
from runner.adapters.amqp.leases import LeaseHold
from runner.adapters.amqp.names import Header
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse, boot_time
from runner.job import Job
from runner.ports import Vanished

pytestmark = pytest.mark.broker

LIFETIME, LONG = timedelta(seconds=2), timedelta(seconds=60)
"""Of leases that are to expire, and of those that are not, however slow the machine is."""
OWNER, OTHER = "owner", "other"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers last one second, or three just after a connection was made."""
    monkeypatch.setattr(link, "PAUSE_LONGEST", 1.0)
    monkeypatch.setattr(lost, "PAUSE_LONGEST", 1.0)


@pytest.fixture
async def room(broker: Endpoint, namespace: str) -> AsyncIterator[Room]:
    async with open_room(broker.url, namespace, [OWNER, OTHER]) as room:
        yield room


@pytest.fixture
async def wire(broker: Endpoint) -> AsyncIterator[Proxy]:
    """What the owner's connections go through."""
    async with Proxy(broker.url) as proxy:
        yield proxy


def owner_side(room: Room, wire: Proxy, **more: Any) -> Any:
    settings: dict[str, Any] = {"consume": wire.url, "publish": wire.url, "lifetime": LIFETIME}
    return open_side(room.names, OWNER, **{**settings, **more})


def other_side(room: Room, broker: Endpoint) -> Any:
    return open_side(room.names, OTHER, consume=broker.url, publish=broker.url, lifetime=LIFETIME)


async def left(room: Room) -> dict[str, int]:
    """The messages that are ready in the queues of leases."""
    names = room.names
    queues = [names.worker_lease(OWNER), names.lost]
    return {name: count for name in queues if (count := await room.depth(name))}


async def give_up(hold: LeaseHold) -> None:
    """Give a lease up while no copy of it is on its way: one that arrived after its owner's end would be left."""
    await eventually(lambda: not hold.renewing and hold.held == hold.seq, "its newest copy has arrived")
    await hold.give_up()


async def taken_from(side: Side, timeout: float = 30) -> Any:
    return await asyncio.wait_for(side.taken.get(), timeout)


async def test_a_held_lease_is_renewed_by_one_copy_after_the_other(room: Room, wire: Proxy) -> None:
    async with owner_side(room, wire) as owner:
        hold = await owner.claim("c1")
        await eventually(lambda: hold.held >= 12, "it outlived its first copy twice")
        assert hold.held >= hold.seq - 1
        await give_up(hold)
        assert owner.taken.empty()
    assert await left(room) == {}


async def test_a_lease_survives_a_cut(room: Room, broker: Endpoint, wire: Proxy) -> None:
    async with owner_side(room, wire, lifetime=LONG) as owner, other_side(room, broker) as other:
        hold = await owner.claim("c1")
        for _ in range(3):
            seq = hold.seq
            await wire.cut()
            await eventually(lambda seq=seq: hold.held > seq, "it was renewed as soon as it was back")
        assert await hold.ours()
        assert (other.taken.empty(), owner.taken.empty(), owner.leases.orphans.empty()) == (True, True, True)
        await give_up(hold)
    assert await left(room) == {}


async def test_the_job_of_a_worker_that_is_gone_runs_again(room: Room, broker: Endpoint, wire: Proxy) -> None:
    async with other_side(room, broker) as other:
        async with owner_side(room, wire) as owner:
            await owner.claim("c1", attempts=3)
        delivery = await taken_from(other)
        assert isinstance(delivery.submission, Job)
        assert delivery.vanished == Vanished(worker=OWNER, claim="c1")
        assert (delivery.number, delivery.lost, delivery.fresh) == (4, 1, False)
        await delivery.defer(timedelta())
        await eventually(lambda: _is_empty(room), "nor is a copy left that was on its way when the owner went")
    assert await room.depth(f"{room.names.ns}.q.default.normal") == 1


async def test_a_worker_that_comes_back_late_hears_that_its_job_was_taken_over(
    room: Room, broker: Endpoint, wire: Proxy
) -> None:
    async with owner_side(room, wire) as owner, other_side(room, broker) as other:
        hold = await owner.claim("c1")
        await wire.refuse()
        await (await taken_from(other)).drop()
        unsure = asyncio.ensure_future(hold.ours())
        await asyncio.sleep(0)
        assert not unsure.done()
        await wire.accept()
        await asyncio.wait_for(hold.taken_over(), 30)
        assert await unsure is False
        assert (owner.superseded, owner.counts.lost) == (["c1"], 1)
        await eventually(lambda: owner.connected, "the owner is back")
        assert hold.copy is None
        assert (owner.leases.orphans.empty(), other.taken.empty()) == (True, True)
        await eventually(lambda: _is_empty(room), "nor is a copy left that was on its way at the cut")
    assert await left(room) == {}


async def test_the_next_life_knows_when_it_has_heard_of_all_that_was_taken_over(
    room: Room, broker: Endpoint, wire: Proxy
) -> None:
    async with other_side(room, broker) as other:
        async with owner_side(room, wire) as owner:
            await asyncio.wait_for(owner.leases.heard.wait(), 30)
            await owner.claim("c1")
            await owner.claim("c2")
        for _ in range(2):
            await (await taken_from(other)).drop()
        async with owner_side(room, wire) as again:
            await asyncio.wait_for(again.leases.heard.wait(), 30)
            assert sorted(again.superseded) == ["c1", "c2"]
            await eventually(lambda: _is_empty(room), "nor is a copy left that was on its way when the owner went")
    assert await left(room) == {}


def offered(caplog: pytest.LogCaptureFixture) -> set[str]:
    """The claims whose expired leases were offered to their owner."""
    return {vars(record)["claim"] for record in caplog.records if record.msg == "expired lease offered to its owner"}


async def test_a_lease_that_expired_while_the_broker_was_out_of_reach_goes_back_to_its_owner(
    room: Room,
    broker: Endpoint,
    wire: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(lost, "PAUSE_LONGEST", 20.0)
    async with owner_side(room, wire) as owner, other_side(room, broker) as other:
        holds = [await owner.claim(f"c{number}") for number in range(3)]
        await wire.refuse()
        await eventually(lambda: not owner.connected, "the owner is cut off")
        await eventually(lambda: offered(caplog) >= {"c0", "c1", "c2"}, "all leases have expired")
        await wire.accept()
        for hold in holds:
            assert await asyncio.wait_for(hold.ours(), 30)
            await eventually(lambda hold=hold: hold.copy and Header.OFFERED not in hold.copy.headers, "it was renewed")
        assert (other.taken.empty(), owner.leases.orphans.empty(), owner.superseded) == (True, True, [])
        for hold in holds:
            await give_up(hold)
        await eventually(lambda: _is_empty(room), "nor is a copy left that was on its way at the cut")
    assert await left(room) == {}


async def test_an_owner_that_sees_to_its_own_lease_takes_it_back(room: Room, wire: Proxy) -> None:
    async with owner_side(room, wire) as owner:
        hold = await owner.claim("c1")
        await wire.refuse()
        await eventually(lambda: room.depth(room.names.lost), "it has expired, and nobody is there to see to it")
        await wire.accept()
        assert await asyncio.wait_for(hold.ours(), 30)
        assert owner.taken.empty()
        await hold.give_up()


async def test_two_copies_of_one_lease_run_the_job_once(room: Room, broker: Endpoint, wire: Proxy) -> None:
    async with owner_side(room, wire):
        pass
    async with other_side(room, broker) as other:
        await room.put(OWNER, "c1", 4, 0.2)
        await room.put(OWNER, "c1", 5, 0.2)
        await room.put(OWNER, "c2", 1, 0.2)
        claims = []
        for _ in range(2):
            delivery = await taken_from(other)
            claims.append(delivery.vanished.claim)
            await delivery.drop()
        assert claims == ["c1", "c2"]
        assert (other.taken.empty(), await left(room)) == (True, {})


async def test_a_lease_whose_owner_has_no_queue_any_more_is_taken_over_at_once(room: Room, broker: Endpoint) -> None:
    async with other_side(room, broker) as other:
        message = _lost_copy("c9")
        exchange = await room.channel.get_exchange(room.names.lost, ensure=False)
        await exchange.publish(message, "")
        delivery = await taken_from(other)
        assert Header.OFFERED not in delivery.message.headers
        assert delivery.vanished == Vanished(worker="nobody", claim="c9")
        await delivery.drop()


async def test_a_copy_that_comes_back_for_a_settled_job_is_acked(room: Room, wire: Proxy, broker: Endpoint) -> None:
    async with owner_side(room, wire, lifetime=LONG) as owner, other_side(room, broker) as other:
        hold = await owner.claim("c1")
        await wire.refuse()
        await eventually(lambda: not owner.connected, "the owner is cut off")
        await hold.give_up()
        await wire.accept()
        await eventually(lambda: owner.connected, "the owner is back")
        await eventually(lambda: _is_empty(room), "the copy was acked")
        assert (owner.leases.orphans.empty(), other.taken.empty()) == (True, True)
    assert await left(room) == {}


async def test_what_an_earlier_life_left_comes_back_once_and_again_after_a_cut(room: Room, wire: Proxy) -> None:
    async with owner_side(room, wire, lifetime=timedelta(seconds=30)) as earlier:
        await earlier.claim("c1")
    await room.put(OWNER, "c1", 2, 30)
    async with owner_side(room, wire, sees_to_lost=False) as owner:
        first = await owner.orphan()
        assert first.vanished == Vanished(worker=OWNER, claim="c1")
        await wire.cut()
        lease = await (await owner.orphan()).resume("c1")
        assert await lease.ours()
        await lease.settle()
        await eventually(lambda: _is_empty(room), "both copies are gone")
        assert owner.leases.orphans.empty()
        assert owner.counts.adopted == 1


async def test_a_copy_of_a_claim_that_was_taken_over_from_an_earlier_life_is_acked(
    room: Room, broker: Endpoint, wire: Proxy
) -> None:
    async with other_side(room, broker) as other:
        async with owner_side(room, wire) as earlier:
            await earlier.claim("c1")
        await (await taken_from(other)).drop()
        async with owner_side(room, wire) as owner:
            await eventually(lambda: owner.superseded == ["c1"], "the new life hears of it")
            await room.put(OWNER, "c1", 7, 30)
            await eventually(lambda: _is_empty(room), "the copy was acked")
            assert owner.leases.orphans.empty()
    assert await room.depth(room.names.worker_superseded(OWNER)) == 0


async def test_a_lease_is_made_again_when_its_queue_was_deleted(
    room: Room, wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "_MISSING", 1.0)
    async with owner_side(room, wire) as owner:
        hold = await owner.claim("c1")
        await room.channel.queue_delete(room.names.worker_lease(OWNER))
        await eventually(lambda: hold.copy is None, "the copy is gone")
        await eventually(lambda: hold.copy is not None, "there is another one")
        assert await hold.ours()
        await hold.give_up()


class Stuck(Publisher):
    """Never publishes a renewal of one claim."""

    def __init__(self, claim: str) -> None:
        super().__init__()
        self.claim = claim
        self.renewals: Counter[str] = Counter()

    async def publish(self, exchange: str, routing_key: str, message: aio_pika.Message, **more: Any) -> None:
        claim, seq = str(message.headers.get(Header.CLAIM)), message.headers.get(Header.LEASE_SEQ)
        if isinstance(seq, int) and seq > 1:
            self.renewals[claim] += 1
            if claim == self.claim:
                await asyncio.Event().wait()
        await super().publish(exchange, routing_key, message, **more)


class Held(Publisher):
    """Publishes a renewal when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def publish(self, exchange: str, routing_key: str, message: aio_pika.Message, **more: Any) -> None:
        if message.headers.get(Header.LEASE_SEQ) == 2:
            self.reached.set()
            await self.go.wait()
        await super().publish(exchange, routing_key, message, **more)


async def test_a_worker_that_ends_waits_for_the_copy_that_is_on_its_way(
    room: Room, wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "_DRAINED_WITHIN", 3600.0)
    publisher = Held()
    async with owner_side(room, wire, publisher=publisher) as owner:
        hold = await owner.claim("c1")
        await asyncio.wait_for(publisher.reached.wait(), 30)
        await hold.give_up()
        drained = asyncio.ensure_future(owner.leases.drained())
        await eventually(lambda: _is_empty(room), "the first copy is acked")
        assert not drained.done()
        publisher.go.set()
        await asyncio.wait_for(drained, 30)
    assert await left(room) == {}


async def test_a_renewal_that_hangs_holds_up_no_other_and_is_not_piled_up(room: Room, wire: Proxy) -> None:
    publisher = Stuck("stuck")
    async with owner_side(room, wire, publisher=publisher) as owner:
        stuck, free = await owner.claim("stuck"), await owner.claim("free")
        await eventually(lambda: free.held >= 5, "the other one is renewed")
        assert publisher.renewals["stuck"] == 1
        assert stuck.copy is not None
        await stuck.give_up()
        await free.give_up()


async def endangered_now(hold: LeaseHold) -> bool:
    """Whether whoever asks now is told at once."""
    telling = asyncio.ensure_future(hold.endangered(timedelta()))
    await asyncio.sleep(0)
    told = telling.done()
    telling.cancel()
    return told


async def test_a_worker_is_endangered_before_its_lease_expires(room: Room, broker: Endpoint, wire: Proxy) -> None:
    """The owner's clock is set ahead of the machine's, so that a machine that stands still changes nothing."""
    lifetime, margin, ahead = timedelta(seconds=6), timedelta(seconds=1.5), timedelta(seconds=1)
    sides = (owner_side(room, wire, lifetime=lifetime, heartbeat=HEARTBEAT), other_side(room, broker))
    async with sides[0] as owner, sides[1] as other:
        hold, pulse = await owner.claim("c1"), owner.leases.pulse
        early = asyncio.ensure_future(hold.endangered(ahead))
        late = asyncio.ensure_future(hold.endangered(timedelta()))
        await eventually(
            lambda: hold.held >= 6 and boot_time() - hold.proven < 1, "it was renewed for as long as it lasts, and now"
        )
        assert not early.done()
        wire.black_hole()
        taken = asyncio.ensure_future(taken_from(other))
        due = lifetime - margin
        pulse.clock = lambda: hold.proven + (due - ahead / 2).total_seconds()
        await asyncio.wait_for(early, 30)
        assert not await endangered_now(hold)
        pulse.clock = lambda: hold.proven + (due + ahead / 2).total_seconds()
        await asyncio.wait_for(late, 30)
        fenced, pulse.clock = pulse.clock(), boot_time
        delivery = await taken
        assert boot_time() > fenced + (margin - ahead / 2).total_seconds()
        await delivery.drop()
        wire.heal()
        await asyncio.wait_for(hold.taken_over(), 30)


async def test_a_worker_that_cannot_publish_is_not_endangered_while_it_hears_the_broker(
    room: Room, broker: Endpoint, wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pulse, "period", 0.2)  # a heartbeat has many questions, so that the machine may stand still
    heartbeat, lifetime = timedelta(seconds=3), timedelta(seconds=1)
    async with owner_side(room, wire, consume=broker.url, lifetime=lifetime, heartbeat=heartbeat) as owner:
        hold = await owner.claim("c1")
        danger = asyncio.ensure_future(hold.endangered(timedelta()))
        wire.black_hole()
        seq = hold.seq
        overdue = owner.leases.pulse.clock() + 4
        await eventually(
            lambda: owner.leases.pulse.clock() > overdue, "lives of the lease have passed, and a heartbeat"
        )
        assert hold.held <= seq + 1
        assert not danger.done()
        assert await hold.ours()
        danger.cancel()
        wire.heal()
        await hold.give_up()


def _lost_copy(claim: str) -> aio_pika.Message:
    return passport().message(claim=claim, worker="nobody", lease_seq=1)


async def _is_empty(room: Room) -> bool:
    return await left(room) == {}

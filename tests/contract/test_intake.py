"""What every intake does, the real one and the fake: how jobs come, and each way on that a delivery can take."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from secrets import token_hex

import pytest
from tests.fakes import ROUTE, FakeDelivery, FakeIntake
from tests.integration.amqp_house import Room, eventually, open_room, open_side
from tests.services import Endpoint

from runner.adapters.amqp.names import DeadHeader
from runner.job import Blame, DeadCode, Invalid, Job
from runner.ports import Delivery, Intake

NOW = timedelta(0)
GOOD = {"id": "a", "stack": "busybox", "command": ["true"]}


@dataclass
class House:
    """An intake, and what its tests need to know of the broker behind it."""

    intake: Intake
    submit: Callable[[bytes], Awaitable[None]]
    waiting: Callable[[], Awaitable[int]]
    held: Callable[[], Awaitable[int]]
    dead: Callable[[], Awaitable[tuple[DeadCode, str, bytes]]]
    taken: list[Delivery] = field(default_factory=list)

    async def put(self, **fields: object) -> None:
        await self.submit(json.dumps(GOOD | fields).encode())

    async def take(self, want: int = 1) -> Delivery:
        self.intake.want(want)
        async with asyncio.timeout(30):
            return await self.intake.take()

    async def nothing_comes(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await self.intake.take()

    async def is_empty(self) -> None:
        """Nothing is left of any job, in whatever hands."""

        async def empty() -> bool:
            return await self.waiting() == await self.held() == 0

        await eventually(empty, "nothing is left")


@pytest.fixture(scope="module", params=["fake", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def endpoint(request: pytest.FixtureRequest) -> Endpoint | None:
    return None if request.param == "fake" else request.getfixturevalue("broker")


@pytest.fixture(scope="module")
async def room(endpoint: Endpoint | None) -> AsyncIterator[Room | None]:
    if endpoint is None:
        yield None
        return
    async with open_room(endpoint.url, f"t{token_hex(6)}") as opened:
        yield opened


@pytest.fixture
async def house(endpoint: Endpoint | None, room: Room | None) -> AsyncIterator[House]:
    if endpoint is None or room is None:
        yield fake_house()
        return
    async with open_side(room.names, room.queues, endpoint.url) as side:

        async def waiting() -> int:
            return sum([await room.depth(room.names.jobs(queue)) for queue in room.queues])

        async def held() -> int:
            # What is not acked is with the worker; a held lease is, too.
            return len(side.leases._holds)

        async def dead() -> tuple[DeadCode, str, bytes]:
            letter = await room.get(room.names.dead)
            headers = letter.headers
            assert headers[DeadHeader.FROM] == str(ROUTE)
            return DeadCode(str(headers[DeadHeader.CODE])), str(headers[DeadHeader.REASON]), letter.body

        yield House(intake=side.intake, submit=room.submit, waiting=waiting, held=held, dead=dead)
    await room.purge()


def fake_house() -> House:
    intake = FakeIntake(brings_back=True)

    async def submit(body: bytes) -> None:
        intake.submit(body)

    async def waiting() -> int:
        return len(intake.queued)

    async def held() -> int:
        return sum(1 for delivery in intake.given if delivery.how is None)

    async def dead() -> tuple[DeadCode, str, bytes]:
        [letter] = intake.dead
        assert letter.dead is not None
        return (*letter.dead, letter.body)

    return House(intake=intake, submit=submit, waiting=waiting, held=held, dead=dead)


def number_of(delivery: Delivery) -> tuple[int, int, int, bool]:
    return delivery.number, delivery.lost, delivery.deferrals, delivery.fresh


async def test_a_job_comes_as_it_was_submitted(house: House) -> None:
    await house.put(payload={"n": 1}, labels={"team": "red"})
    delivery = await house.take()
    job = delivery.submission
    assert isinstance(job, Job)
    assert (job.key.tenant, job.key.id, job.route) == ("acme", "a", ROUTE)
    assert (job.command, job.payload, job.labels) == (("true",), b'{"n": 1}', {"team": "red"})
    assert number_of(delivery) == (1, 0, 0, True)
    assert (delivery.vanished, delivery.not_before, delivery.live) == (None, None, True)
    await delivery.drop()


async def test_what_is_no_job_comes_as_well(house: House) -> None:
    await house.submit(b"{broken")
    delivery = await house.take()
    assert isinstance(delivery.submission, Invalid)
    assert (delivery.submission.code, delivery.submission.tenant) == (DeadCode.UNDECODABLE, "acme")
    await delivery.bury(DeadCode.UNDECODABLE, "not JSON")
    assert await house.dead() == (DeadCode.UNDECODABLE, "not JSON", b"{broken")
    await house.is_empty()


async def test_nothing_comes_that_was_not_wanted(house: House) -> None:
    await house.put()
    await house.nothing_comes()
    await (await house.take()).drop()
    await house.is_empty()


async def test_no_more_comes_than_was_wanted(house: House) -> None:
    for number in range(5):
        await house.put(id=f"j{number}")
    first = await house.take(want=2)
    second = await house.intake.take()
    await house.nothing_comes()
    await first.drop()
    await second.drop()
    await house.nothing_comes()
    for _ in range(3):
        await (await house.take()).drop()
    await house.is_empty()


async def test_no_longer_wanting_is_heeded(house: House) -> None:
    house.intake.want(3)
    house.intake.want(0)
    await asyncio.sleep(0.1)
    await house.put()
    await house.nothing_comes()


async def test_a_job_that_was_claimed_and_settled_is_gone(house: House) -> None:
    await house.put()
    delivery = await house.take()
    lease = await delivery.claim("c1")
    assert (lease.number, lease.lost) == (1, 0)
    assert await house.held() == 1
    assert await house.waiting() == 0
    await lease.settle()
    await house.is_empty()
    house.intake.want(1)
    await house.nothing_comes()


@pytest.mark.parametrize(
    ("blame", "lost", "given_back"), [(Blame.PLATFORM, 1, 0), (Blame.JOB, 0, 0), (Blame.NONE, 0, 1)]
)
async def test_a_job_that_is_to_start_again_does(house: House, blame: Blame, lost: int, given_back: int) -> None:
    await house.put(name="same")
    first = await house.take()
    await (await first.claim("c1")).retry(NOW, blame)
    second = await house.take()
    assert number_of(second) == (2, lost, 0, False)
    assert isinstance(first.submission, Job)
    assert isinstance(second.submission, Job)
    assert second.submission.key == first.submission.key
    assert second.submission.name == "same"
    assert abs(second.submission.published - first.submission.published) < timedelta(milliseconds=1)
    lease = await second.claim("c2")
    assert (lease.number, lease.lost, lease.given_back) == (2, lost, given_back)
    await lease.retry(NOW, Blame.JOB)
    third = await (await house.take()).claim("c3")
    assert (third.number, third.lost, third.given_back) == (3, lost, given_back), "the counts stay"
    await third.settle()
    await house.is_empty()


async def test_a_job_that_was_claimed_and_passed_on_was_not_started(house: House) -> None:
    await house.put()
    await (await (await house.take()).claim("c1")).defer(NOW)
    again = await house.take()
    assert number_of(again) == (1, 0, 1, False)
    await again.drop()
    await house.is_empty()


async def test_a_job_that_is_passed_on_counts_how_often(house: House) -> None:
    await house.put()
    for deferrals in range(3):
        delivery = await house.take()
        assert number_of(delivery) == (1, 0, deferrals, deferrals == 0)
        await delivery.defer(NOW)
    last = await house.take()
    lease = await last.claim("c1")
    await lease.retry(NOW, Blame.JOB)
    again = await house.take()
    assert number_of(again) == (2, 0, 0, False), "a start begins the count anew"
    await again.drop()
    await house.is_empty()


async def test_a_job_that_is_postponed_comes_again_as_it_was(house: House) -> None:
    await house.put()
    await (await house.take()).postpone(NOW)
    again = await house.take()
    assert number_of(again) == (1, 0, 0, False)
    await again.drop()
    await house.is_empty()


async def test_a_job_without_an_id_keeps_the_one_that_it_got(house: House) -> None:
    await house.submit(b'{"stack": "busybox"}')
    first = await house.take()
    await first.defer(NOW)
    second = await house.take()
    await (await second.claim("c1")).retry(NOW, Blame.JOB)
    third = await house.take()
    ids = {delivery.submission.key.id for delivery in (first, second, third) if isinstance(delivery.submission, Job)}
    assert len(ids) == 1
    await third.drop()


async def test_a_job_that_is_buried_is_kept_byte_for_byte(house: House) -> None:
    body = b'{"id": "a",  "stack":"busybox", "payload": "\xc3\xa9" }'
    await house.submit(body)
    await (await house.take()).bury(DeadCode.REJECTED, "no such stack: é")
    assert await house.dead() == (DeadCode.REJECTED, "no such stack: é", body)
    await house.is_empty()


async def test_a_job_that_is_buried_under_its_lease_is_kept_byte_for_byte(house: House) -> None:
    body = b'{"id": "a",  "stack":"busybox", "payload": "\xc3\xa9" }'
    await house.submit(body)
    lease = await (await house.take()).claim("c1")
    await lease.bury(DeadCode.REJECTED, "its code is no archive")
    await lease.settle()
    assert await house.dead() == (DeadCode.REJECTED, "its code is no archive", body)
    await house.is_empty()


async def test_a_job_is_passed_on_under_leases_as_often_as_it_says(house: House) -> None:
    await house.put()
    for passed in range(3):
        lease = await (await house.take()).claim(f"c{passed}")
        assert lease.deferrals == passed
        await lease.defer(NOW)
    lease = await (await house.take()).claim("c3")
    await lease.retry(NOW, Blame.JOB)
    lease = await (await house.take()).claim("c4")
    assert lease.deferrals == 0
    await lease.settle()
    await house.is_empty()


async def test_a_job_that_is_released_is_where_it_was(house: House) -> None:
    await house.put()
    delivery = await house.take()
    await house.intake.close()
    await delivery.release()

    async def back() -> bool:
        return await house.waiting() == 1

    await eventually(back, "the job is in its queue")


async def test_a_closed_intake_takes_nothing_more(house: House) -> None:
    house.intake.want(2)
    await asyncio.sleep(0.1)
    await house.intake.close()
    house.intake.want(2)
    await house.put()
    await house.nothing_comes()
    assert await house.waiting() == 1


async def test_a_delivery_stays_valid_when_the_intake_is_closed(house: House) -> None:
    await house.put()
    delivery = await house.take()
    await house.intake.close()
    lease = await delivery.claim("c1")
    await lease.settle()
    await house.is_empty()


def test_a_delivery_that_was_not_settled_once_is_noticed() -> None:
    delivery = FakeDelivery(submission=Invalid(**dict.fromkeys(Invalid.__slots__)))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="settled 0 times"):
        delivery.check()
    delivery.settled.extend(["drop", "drop"])
    with pytest.raises(AssertionError, match="settled 2 times"):
        delivery.check()

"""What every journal does, the real one and the fake."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.fake_journal import FakeJournal

from runner.adapters.journal import open_journal
from runner.job import JobKey
from runner.ports import ClaimRecord, Journal

KEY = JobKey(tenant="acme", id="one")
LATELY = timedelta(minutes=10)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["fake", "real"])
async def journal(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Journal]:
    if request.param == "fake":
        yield FakeJournal(clock)
        return
    async with open_journal(tmp_path / "state", clock) as real:
        yield real


def record(claim: str = "c1", key: JobKey = KEY) -> ClaimRecord:
    return ClaimRecord(
        claim=claim,
        key=key,
        container_name=f"runner-w-{claim}",
        attempt=1,
        claimed=datetime(2030, 1, 1, tzinfo=UTC),
    )


async def test_a_job_that_nobody_knows_was_not_finished(journal: Journal) -> None:
    assert not await journal.finished_lately(KEY, LATELY)


async def test_a_claim_is_not_a_finished_job(journal: Journal) -> None:
    await journal.claimed(record())
    await journal.started("c1", "f" * 64, datetime(2030, 1, 1, 1, tzinfo=UTC))

    assert not await journal.finished_lately(KEY, LATELY)


async def test_a_finished_job_is_known_for_as_long_as_one_asks(journal: Journal, clock: Clock) -> None:
    await journal.claimed(record())
    await journal.ended("c1", finished=True)

    assert await journal.finished_lately(KEY, LATELY)
    clock.now += LATELY
    assert await journal.finished_lately(KEY, LATELY)
    clock.now += timedelta(microseconds=1)
    assert not await journal.finished_lately(KEY, LATELY)


async def test_an_attempt_that_ended_is_not_a_finished_job(journal: Journal) -> None:
    await journal.claimed(record())
    await journal.ended("c1", finished=False)

    assert not await journal.finished_lately(KEY, LATELY)


async def test_one_finished_claim_among_several_of_a_job_is_enough(journal: Journal) -> None:
    for claim, finished in [("c1", True), ("c2", False)]:
        await journal.claimed(record(claim))
        await journal.ended(claim, finished=finished)

    assert await journal.finished_lately(KEY, LATELY)


@pytest.mark.parametrize("other", [JobKey(tenant="acme", id="two"), JobKey(tenant="other", id="one")])
async def test_a_job_is_known_by_tenant_and_id(journal: Journal, other: JobKey) -> None:
    await journal.claimed(record())
    await journal.ended("c1", finished=True)

    assert not await journal.finished_lately(other, LATELY)


async def test_the_end_of_an_unknown_claim_is_no_news(journal: Journal) -> None:
    await journal.ended("never claimed", finished=True)

    assert not await journal.finished_lately(KEY, LATELY)


async def test_writing_a_claim_down_twice_changes_nothing(journal: Journal) -> None:
    await journal.claimed(record())
    await journal.ended("c1", finished=True)
    await journal.claimed(record())

    assert await journal.finished_lately(KEY, LATELY)

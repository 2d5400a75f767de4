"""What an earlier life owed is published once, and not at all when another worker has the job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.fake_journal import FakeJournal
from tests.fakes import NOW, Clock, make_job, until

from runner.app.debts import Debts
from runner.codec import Notice
from runner.job import EventKind
from runner.ports import ClaimRecord

KEY = make_job("a").key


def notice(claim: str) -> Notice:
    return Notice(key="k", message_id=claim, kind=EventKind.FINISHED, tenant="acme", time=NOW, body="{}")


@dataclass(slots=True, kw_only=True)
class Office:
    """Debts for c1 and c2, and a broker that confirms when it is told to."""

    journal: FakeJournal = field(default_factory=lambda: FakeJournal(Clock()))
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    confirms: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    debts: Debts = field(init=False)

    def __post_init__(self) -> None:
        self.debts = Debts(journal=self.journal, owed={claim: notice(claim) for claim in ("c1", "c2")})

    async def send(self, told: Notice) -> None:
        self.begun.append(told.message_id)
        await self.confirms.wait()
        self.sent.append(told.message_id)

    @asynccontextmanager
    async def paying(self) -> AsyncIterator[None]:
        for claim in ("c1", "c2"):
            record = ClaimRecord(claim=claim, key=KEY, container_name=claim, attempt=1, claimed=NOW)
            await self.journal.claimed(record)
        task = asyncio.create_task(self.debts.pay(self.send, self.heard))
        try:
            yield
            async with asyncio.timeout(30):
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_what_is_owed_is_published_once_it_is_known_what_was_taken_over() -> None:
    office = Office()
    office.confirms.set()
    async with office.paying():
        await office.debts.waive("c1")
        await office.debts.waive("another")
        assert office.begun == []
        office.heard.set()
    assert office.sent == ["c2"]
    assert office.debts.owed == {}


async def test_what_is_taken_over_while_the_broker_does_not_confirm_is_not_published() -> None:
    office = Office()
    office.heard.set()
    async with office.paying():
        await until(lambda: office.begun == ["c1", "c2"], "both are being published")
        await office.debts.waive("c1")
        office.confirms.set()
    assert office.sent == ["c2"]
    record, _, finished = office.journal.over["c1"]
    assert (record.claim, finished) == ("c1", False), "a new job of this id is no duplicate"


async def test_what_was_published_cannot_be_taken_back() -> None:
    office = Office()
    office.heard.set()
    office.confirms.set()
    async with office.paying():
        await until(lambda: len(office.sent) == 2, "both are published")
    await office.debts.waive("c1")
    assert "c1" not in office.journal.over

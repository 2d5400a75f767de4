"""What becomes of logs on their way when their publisher fails as nobody foresaw."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.fakes import make_job, until

from runner.adapters.amqp.logs import LogPublisher
from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.ports import Batch

KEY = make_job("j1").key


class Breaking(Publisher):
    """Confirms nothing, and fails the first publish when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.breaks = asyncio.Event()

    async def publish(self, *_: Any, **__: Any) -> None:
        self.begun += 1
        if self.begun > 1:
            await asyncio.Event().wait()
        await self.breaks.wait()
        raise ZeroDivisionError


def batches(claim: str, count: int) -> Sequence[Batch]:
    """Of ten bytes each."""
    return [
        Batch(key=KEY, claim=claim, seq=seq, out=10 * seq, err=0, lines=[], until_out=10 * seq + 10)
        for seq in range(1, count + 1)
    ]


async def test_nothing_is_begun_any_more_when_the_publisher_fails() -> None:
    dropped: list[int] = []
    publisher = Breaking()
    logs = LogPublisher(names=Names("jobs"), publisher=publisher, dropped=dropped.append)
    async with asyncio.timeout(30):
        running = asyncio.create_task(logs.run())
        for claim in ("c1", "c2"):
            for batch in batches(claim, 12):
                logs.offer(batch)
        await until(lambda: publisher.begun == 16)
        publisher.breaks.set()
        while not running.done():
            logs.offer(batches("c3", 1)[0])  # at any moment of the end
            logs.forget("c3")
            await asyncio.sleep(0)
    failure = running.exception()
    assert isinstance(failure, ExceptionGroup)
    assert [type(error) for error in failure.exceptions] == [ZeroDivisionError]
    assert publisher.begun == 16
    dropped.clear()
    for claim in ("c1", "c2"):
        assert not await logs.flush(KEY, claim, 0)
    assert dropped == [10] * 8

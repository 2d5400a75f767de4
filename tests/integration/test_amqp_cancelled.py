"""Cancels that workers remember, through the real stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import aio_pika
import pytest
from tests.integration.stream_house import Board, key, make_board, open_board, reader
from tests.proxy import Proxy
from tests.services import Broker, Endpoint

from runner.adapters.amqp.cancelled import Cancelled
from runner.adapters.amqp.memory import Cancel, Memory, Position
from runner.job import JobKey

pytestmark = pytest.mark.broker


@pytest.fixture
async def board(broker: Endpoint, namespace: str) -> AsyncIterator[Board]:
    async with open_board(broker.url, namespace) as opened:
        yield opened


class SlowMemory:
    """Takes its time after it has written something down."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.written = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def add_cancels(self, cancels: Sequence[Cancel], position: Position) -> None:
        await self._memory.add_cancels(cancels, position)
        if cancels:
            self.written.set()
            await self.goes_on.wait()


async def known(cancelled: JobKey, source: Cancelled) -> str | None:
    async with asyncio.timeout(30):
        return await source.reason(cancelled)


async def test_a_cancel_is_heard_at_once_and_remembered(broker: Endpoint, board: Board, state_dir: Path) -> None:
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("one"), worker.cancelled) is None
        await board.cancel("one", b'{"reason": "typo"}')
        await worker.calls.until("one")

        assert worker.calls.heard == [("acme/one", "typo")]
        assert await known(key("one"), worker.cancelled) == "typo"
        assert await known(JobKey(tenant="other", id="one"), worker.cancelled) is None


async def test_a_new_worker_knows_what_was_cancelled_before_it_was_there(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    for number in range(1500):
        await board.cancel(f"job-{number}", b'{"reason": "all of them"}')
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("job-1499"), worker.cancelled) == "all of them"
        assert await known(key("job-0"), worker.cancelled) == "all of them"


async def test_a_worker_knows_the_last_cancel_before_each_of_its_starts(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    for life in range(10):
        await board.cancel(f"job-{life}")
        async with reader(broker.url, board.names.ns, state_dir) as worker:
            assert await known(key(f"job-{life}"), worker.cancelled) == ""
            assert worker.calls.heard == [(f"acme/job-{life}", "")]  # it reads on where it stopped
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("job-0"), worker.cancelled) == ""
        assert worker.calls.heard == []


@pytest.mark.parametrize(
    ("routing_key", "headers"),
    [
        ("job.acme.one.cancel.please", {}),
        ("job.Acme.one.cancel", {}),
        ("job.acme.one two.cancel", {}),
        ("job.other.x.find", {"CC": ["job.acme.one.cancel"]}),
        ("job.other.x.find", {"BCC": ["job.acme.one.cancel"]}),
    ],
)
async def test_only_a_tenants_own_key_cancels(
    broker: Endpoint, board: Board, state_dir: Path, routing_key: str, headers: dict[str, list[str]]
) -> None:
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        await board.publish(board.names.control, routing_key, b"{}", headers=headers)
        await board.cancel("two")
        await worker.calls.until("two")

        assert worker.calls.heard == [("acme/two", "")]
        assert await known(key("one"), worker.cancelled) is None


async def test_what_comes_by_another_exchange_cancels_nothing(broker: Endpoint, board: Board, state_dir: Path) -> None:
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        other = await board.channel.declare_exchange(f"{board.names.ns}.other", auto_delete=True)
        queue = await board.channel.get_queue(board.names.cancelled, ensure=False)
        await queue.bind(other, "job.acme.one.cancel")
        await board.publish(other.name, "job.acme.one.cancel", b"{}")
        await board.cancel("two")
        await worker.calls.until("two")

        assert worker.calls.heard == [("acme/two", "")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", ""),
        (b"not JSON", ""),
        (b'{"reason": 7}', ""),
        (json.dumps({"reason": "é" * 600}).encode(), "é" * 512),
    ],
)
async def test_a_reason_is_what_can_be_read_of_it(
    broker: Endpoint, board: Board, state_dir: Path, body: bytes, reason: str
) -> None:
    await board.cancel("one", body)
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("one"), worker.cancelled) == reason


async def test_a_cancel_that_came_while_we_were_cut_off_is_known_before_the_next_answer(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    async with Proxy(broker.url) as proxy, reader(proxy.url, board.names.ns, state_dir) as worker:
        assert await known(key("one"), worker.cancelled) is None
        for number in range(5):
            await proxy.cut()
            await board.cancel(f"job-{number}")
            await worker.calls.until(f"job-{number}")
            assert await known(key(f"job-{number}"), worker.cancelled) == ""


async def test_a_cancel_is_heard_even_if_the_connection_breaks_once_it_is_written_down(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    async with Proxy(broker.url) as proxy, reader(proxy.url, board.names.ns, state_dir) as worker:
        await worker.cancelled.follower.caught_up()
        slow = SlowMemory(worker.memory)
        worker.cancelled.memory = cast("Memory", slow)
        await board.cancel("one")
        async with asyncio.timeout(30):
            await slow.written.wait()
            await proxy.cut()
            while proxy.connections == 0:  # noqa: ASYNC110 - the other link is back, so the break was noticed
                await asyncio.sleep(0.01)
        slow.goes_on.set()
        await worker.calls.until("one")


async def test_without_a_connection_nothing_is_answered(broker: Endpoint, board: Board, state_dir: Path) -> None:
    await board.cancel("one")
    async with Proxy(broker.url) as proxy:
        proxy.black_hole()
        async with reader(broker.url, board.names.ns, state_dir, publish_url=proxy.url) as worker:
            asked = asyncio.create_task(worker.cancelled.reason(key("one")))
            await worker.calls.until("one")  # it reads, but cannot know that this was all
            assert not asked.done()
            proxy.heal()
            async with asyncio.timeout(30):
                assert await asked == ""


async def test_a_stream_that_was_made_anew_is_read_from_its_beginning(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    for number in range(20):
        await board.cancel(f"old-{number}")
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("old-19"), worker.cancelled) == ""
    await board.remove(board.names.cancelled)
    await board.make()
    await board.cancel("new")
    async with reader(broker.url, board.names.ns, state_dir, silence=0.3) as worker:
        assert await known(key("new"), worker.cancelled) == ""
        assert await known(key("old-19"), worker.cancelled) is None


async def test_a_longer_stream_in_place_of_ours_is_told_by_what_is_in_it(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    await board.cancel("old")
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("old"), worker.cancelled) == ""
    await board.remove(board.names.cancelled)
    await board.make()
    for number in range(20):
        await board.cancel(f"new-{number}")
    async with reader(broker.url, board.names.ns, state_dir) as worker:
        assert await known(key("new-0"), worker.cancelled) == ""
        assert await known(key("old"), worker.cancelled) is None


async def test_a_stream_that_is_made_anew_under_us_is_followed_again(
    broker: Endpoint, board: Board, state_dir: Path
) -> None:
    async with reader(broker.url, board.names.ns, state_dir, silence=0.3) as worker:
        for number in range(20):
            await board.cancel(f"old-{number}")
        await worker.calls.until("old-19")
        await board.remove(board.names.cancelled)
        await board.make()
        await board.cancel("new")
        await worker.calls.until("new")
        assert await known(key("new"), worker.cancelled) == ""


async def test_a_restarted_broker_still_has_what_was_cancelled(tmp_path: Path, namespace: str) -> None:
    async with Broker(tmp_path / "broker") as own:
        # No board around the restart: it would want to clean up over the connection that the restart has cut.
        async with await aio_pika.connect(own.url, timeout=5) as connection:
            board = await make_board(connection, namespace)
            await board.cancel("one", b'{"reason": "typo"}')
            async with reader(own.url, namespace, tmp_path / "w1") as worker:
                assert await known(key("one"), worker.cancelled) == "typo"
        await own.restart()
        async with open_board(own.url, namespace) as board:
            await board.cancel("two")
            async with reader(own.url, namespace, tmp_path / "w1") as worker:
                assert await known(key("two"), worker.cancelled) == ""
                assert worker.calls.heard == [("acme/two", "")]
            async with reader(own.url, namespace, tmp_path / "w2", "w2") as worker:
                assert await known(key("one"), worker.cancelled) == "typo"

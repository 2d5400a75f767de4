"""Of several runs of one unique job, exactly one wins: decided by workers over the real stream."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import pytest
from tests.integration.stream_house import Board, Reader, key, make_board, open_board, reader
from tests.proxy import Proxy
from tests.services import Broker, Endpoint

from runner.adapters.amqp.claims import encode_claim
from runner.adapters.amqp.memory import UniqueClaim
from runner.errors import BrokerError

pytestmark = pytest.mark.broker

HOUR = timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def board(broker: Endpoint, namespace: str) -> AsyncIterator[Board]:
    async with open_board(broker.url, namespace) as opened:
        yield opened


async def wins(worker: Reader, job_id: str, run: str, span: timedelta = HOUR) -> bool:
    async with asyncio.timeout(60):
        return await worker.claims.wins(key(job_id), run, f"claim-{job_id}-{run}-{worker.consume.name}", span)


async def test_of_two_workers_that_race_for_a_job_exactly_one_wins(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    jobs = [f"job-{number}" for number in range(50)]
    async with (
        reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one,
        reader(broker.url, board.names.ns, tmp_path / "w2", "w2") as two,
    ):
        decided = await asyncio.gather(
            *(wins(worker, job, f"run-{job}-{worker.consume.name}") for job in jobs for worker in (one, two))
        )
        assert [decided[n : n + 2].count(True) for n in range(0, 100, 2)] == [1] * 50
        async with reader(broker.url, board.names.ns, tmp_path / "w3", "w3") as late:
            await late.claims.follower.caught_up()
            for n, job in enumerate(jobs):
                for won, name in zip(decided[2 * n : 2 * n + 2], ("w1", "w2"), strict=True):
                    for worker in (one, two, late):
                        assert await worker.memory.has_won(key(job), f"run-{job}-{name}") is won


async def test_of_many_runs_on_many_workers_exactly_one_wins(broker: Endpoint, board: Board, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(reader(broker.url, board.names.ns, tmp_path / name, name))
            for name in ("w1", "w2", "w3", "w4")
        ]
        decided = await asyncio.gather(
            *(wins(worker, "one", f"run-{number}-{worker.consume.name}") for number in range(25) for worker in workers)
        )

    assert Counter(decided) == {True: 1, False: 99}


async def test_a_run_that_has_won_passes_again_and_everywhere(broker: Endpoint, board: Board, tmp_path: Path) -> None:
    async with reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one:
        assert await wins(one, "one", "r1")
    async with (
        reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one,
        reader(broker.url, board.names.ns, tmp_path / "w2", "w2") as two,
    ):
        assert await wins(two, "one", "r1")
        assert await wins(one, "one", "r1")
        assert not await wins(two, "one", "r2")


async def test_a_run_passes_after_its_span_too_and_so_does_the_next_job(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    clock = Clock()
    async with reader(broker.url, board.names.ns, tmp_path / "w1", clock=clock) as worker:
        assert await wins(worker, "one", "r1")
        clock.now += HOUR - timedelta(seconds=1)
        assert not await wins(worker, "one", "r2")
        clock.now += timedelta(seconds=1)
        assert await wins(worker, "one", "r3")
        assert await wins(worker, "one", "r1")
        assert not await wins(worker, "one", "r2")


async def test_ids_of_different_jobs_do_not_meet(broker: Endpoint, board: Board, tmp_path: Path) -> None:
    async with reader(broker.url, board.names.ns, tmp_path / "w1") as worker:
        assert await wins(worker, "one", "r1")
        assert await wins(worker, "two", "r2")


async def test_a_claim_to_what_is_taken_is_not_even_published(broker: Endpoint, board: Board, tmp_path: Path) -> None:
    async with reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one:
        assert await wins(one, "one", "r1")
        before = await one.memory.position(one.claims.follower.book)
        for number in range(10):
            assert not await wins(one, "one", f"late-{number}")
        assert await wins(one, "two", "r2")
        after = await one.memory.position(one.claims.follower.book)

    assert before is not None
    assert after is not None
    assert after.offset == before.offset + 1


async def test_a_worker_that_comes_back_agrees_with_what_was_decided_meanwhile(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    async with reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one:
        assert await wins(one, "zero", "r0")
    async with reader(broker.url, board.names.ns, tmp_path / "w2", "w2") as two:
        assert await wins(two, "one", "r1")
    async with reader(broker.url, board.names.ns, tmp_path / "w1", "w1") as one:
        assert not await wins(one, "one", "r2")


async def test_only_workers_can_claim(broker: Endpoint, board: Board, tmp_path: Path) -> None:
    async with reader(broker.url, board.names.ns, tmp_path / "w1") as worker:
        forged = UniqueClaim(
            key=key("one"), run="forged", worker="w9", claim="c9", time=datetime.now(UTC), span=timedelta(days=7)
        )
        for body in (encode_claim(forged).body, b"no claim", encode_claim(replace(forged, run="other")).body):
            await board.publish("", board.names.claims, body)
            await board.publish(board.names.control, "claim.w9", body)
        await board.publish(board.names.memory, "claim.w9", b"no claim either")

        assert await wins(worker, "one", "r1")
        assert not await worker.memory.has_won(key("one"), "forged")


async def test_when_the_broker_does_not_answer_nobody_knows_and_one_may_ask_again(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    async with (
        Proxy(broker.url) as proxy,
        reader(
            broker.url, board.names.ns, tmp_path / "w1", publish_url=proxy.url, patience=timedelta(seconds=1)
        ) as worker,
    ):
        await worker.claims.follower.caught_up()
        proxy.black_hole()
        with pytest.raises(BrokerError, match="did not tell within 1s"):
            await wins(worker, "one", "r1")
        proxy.heal()
        worker.claims.patience = timedelta(seconds=40)
        assert await wins(worker, "one", "r1")
        assert not await wins(worker, "one", "r2")


async def test_a_claim_that_is_cut_off_is_answered_when_the_connection_is_back(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    patience = timedelta(seconds=50)
    async with (
        Proxy(broker.url) as proxy,
        reader(proxy.url, board.names.ns, tmp_path / "w1", "w1", patience=patience) as one,
        reader(broker.url, board.names.ns, tmp_path / "w2", "w2", patience=patience) as two,
    ):
        for number in range(5):
            job = f"job-{number}"
            await one.claims.follower.caught_up()
            asked = [asyncio.create_task(wins(worker, job, f"r-{worker.consume.name}")) for worker in (one, two)]
            await asyncio.sleep(0)
            await proxy.cut()
            assert sorted(await asyncio.gather(*asked)) == [False, True]


async def test_two_streams_of_cuts_and_races_still_have_one_winner_each(
    broker: Endpoint, board: Board, tmp_path: Path
) -> None:
    patience = timedelta(seconds=50)
    async with (
        Proxy(broker.url) as near,
        Proxy(broker.url) as far,
        reader(near.url, board.names.ns, tmp_path / "w1", "w1", patience=patience) as one,
        reader(far.url, board.names.ns, tmp_path / "w2", "w2", patience=patience) as two,
    ):
        jobs = [f"job-{number}" for number in range(60)]
        asked = []
        for number, job in enumerate(jobs):
            asked += [asyncio.create_task(wins(worker, job, f"r-{worker.consume.name}")) for worker in (one, two)]
            if number % 15 == 7:
                await asyncio.wait(asked[: len(asked) // 2])
                await (near, far)[number % 2].cut()
        decided = await asyncio.gather(*asked)

    assert [decided[n : n + 2].count(True) for n in range(0, 120, 2)] == [1] * 60


async def test_a_restarted_broker_still_has_the_claims(tmp_path: Path, namespace: str) -> None:
    async with Broker(tmp_path / "broker") as own:
        async with await aio_pika.connect(own.url, timeout=5) as connection:
            await make_board(connection, namespace)
            async with reader(own.url, namespace, tmp_path / "w1", "w1") as one:
                assert await wins(one, "one", "r1")
        await own.restart()
        async with (
            open_board(own.url, namespace),
            reader(own.url, namespace, tmp_path / "w1", "w1") as one,
            reader(own.url, namespace, tmp_path / "w2", "w2") as two,
        ):
            assert not await wins(two, "one", "r2")
            assert await wins(two, "one", "r1")
            assert not await wins(one, "one", "r3")

"""A single call to the engine goes wrong, in any way: what is said of the job is true, and nothing is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from itertools import product
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from tests.engine_proxy import Deed, EngineProxy, after, cut_short, delay, drop, garble, hang, lose, refuse
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint

from runner.adapters.docker.client import TIME_LIMITS, Operation, TimeLimits
from runner.adapters.docker.engine import default_parallelism
from runner.errors import EngineError, EngineGone, EngineUnfit, StartError

pytestmark = pytest.mark.engine

CREATE, ATTACH, START = "POST .*/containers/create", "POST .*/attach", "POST .*/start$"
KILL, DELETE, INSPECT = "POST .*/kill", "DELETE .*/containers/", "GET .*/containers/runner-.*/json"
LOGS, LIST = "GET .*/logs", "GET .*/containers/json"
SLEEPS = ("sh", "-c", "echo up; exec sleep 1000")
GO = "while [ ! -s $JOB_PROGRESS_FILE ]; do sleep 0.05; done"
SHORT: TimeLimits = dict(TIME_LIMITS) | {
    Operation.CREATE: timedelta(seconds=4),
    Operation.START: timedelta(seconds=15),
    Operation.ATTACH: timedelta(seconds=3),
    Operation.DELETE: timedelta(seconds=1),
    Operation.KILL: timedelta(seconds=1),
    Operation.INSPECT: timedelta(seconds=3),
}
"""Time limits that a busy engine keeps, too, while it is asked for a few things at once."""


HouseFor = Callable[..., AbstractAsyncContextManager[tuple[House, EngineProxy]]]


@pytest.fixture
def house_for(engine: Endpoint, tmp_path: Path, busybox_image: str) -> HouseFor:
    """Opens a worker behind a proxy of its own; in the end it has left nothing, and counted everything."""

    @asynccontextmanager
    async def opened(limits: TimeLimits = SHORT) -> AsyncIterator[tuple[House, EngineProxy]]:
        worker = f"t{token_hex(6)}"
        state_dir = tmp_path / worker
        async with EngineProxy(engine.url) as proxy:
            async with open_house(proxy.url, worker, state_dir, busybox_image, limits=limits) as house:
                await house.client.info()
                yield house, proxy
                assert house.folders() == house.engine.names() == set()
                assert house.log.created - house.log.removed == 0
            async with open_house(engine.url, worker, state_dir, busybox_image) as direct:
                assert await direct.names() == set()

    return opened


@pytest.fixture
async def behind_proxy(house_for: HouseFor) -> AsyncIterator[tuple[House, EngineProxy]]:
    async with house_for() as opened:
        yield opened


@pytest.fixture
def house(behind_proxy: tuple[House, EngineProxy]) -> House:
    return behind_proxy[0]


@pytest.fixture
def proxy(behind_proxy: tuple[House, EngineProxy]) -> EngineProxy:
    return behind_proxy[1]


async def all_of(cases: Sequence[tuple[Any, ...]], one: Callable[..., Awaitable[None]]) -> None:
    """Try all cases, some at once; tells which of them failed, and how."""
    places = asyncio.Semaphore(6)

    async def try_it(case: tuple[Any, ...]) -> str | None:
        async with places:
            try:
                await one(*case)
            except (AssertionError, TimeoutError, EngineError, StartError, pytest.fail.Exception) as error:
                return f"{named(case)}: {error!r}"
        return None

    assert [failure for failure in await asyncio.gather(*map(try_it, cases)) if failure] == []


FAILS = [
    (CREATE, hang, EngineGone),
    (CREATE, drop, EngineGone),
    (CREATE, lose, EngineGone),
    (CREATE, garble, EngineError),
    (CREATE, cut_short, EngineGone),
    (CREATE, delay(4.5), EngineGone),
    (CREATE, refuse(500, "no space left on device"), EngineUnfit),
    (CREATE, refuse(500, "layer does not exist"), EngineError),
    (CREATE, refuse(409, "Conflict. The container name is already in use"), EngineError),
    (CREATE, refuse(400, "invalid CPUs"), StartError),
    (ATTACH, hang, EngineGone),
    (ATTACH, drop, EngineGone),
    (ATTACH, refuse(500, "broken"), EngineError),
    (START, hang, EngineGone),
    (START, drop, EngineGone),
    (START, lose, EngineGone),
    (START, refuse(500, "could not find bridge"), EngineError),
    (START, refuse(400, "OCI runtime create failed: mkdir: no space left on device"), EngineUnfit),
]


MADE_GOOD = [
    (CREATE, garble),
    (CREATE, refuse(500, "layer does not exist")),
    (ATTACH, refuse(500, "broken")),
    (START, refuse(500, "could not find bridge")),
    (START, refuse(409, "container is marked for removal and cannot be started")),
]


def named(case: tuple[Any, ...]) -> str:
    return " ".join(getattr(word, "__qualname__", str(word)) for word in case)


async def test_a_launch_that_fails_every_time(house_for: HouseFor) -> None:
    async def one(pattern: str, deed: Deed, error: type[Exception]) -> None:
        async with house_for() as (house, proxy):
            proxy.fault(pattern, deed)
            attempt = house.attempt(*SLEEPS)
            with pytest.raises(error):
                await house.launch(attempt)
            proxy.heal()
            discard = asyncio.create_task(house.engine.discard(attempt))
            assert (await house.run("true")).code == 0
            async with asyncio.timeout(30):
                await discard

    await all_of(FAILS, one)


async def test_a_start_that_fails_for_once_is_made_good(house_for: HouseFor) -> None:
    async def one(pattern: str, deed: Deed) -> None:
        async with house_for() as (house, proxy):
            fault = proxy.fault(pattern, deed, times=1)
            assert (await house.run("cat", stdin=b"made good")).code == 0
            assert (bytes(house.out), fault.met) == (b"made good", 1)
            assert sum("/containers/create" in line for line in proxy.heard) == 2

    await all_of(MADE_GOOD, one)


async def test_nothing_more_is_started_once_the_engine_starts_nothing(house: House, proxy: EngineProxy) -> None:
    told: asyncio.Queue[str | None] = asyncio.Queue()
    watching = asyncio.create_task(house.engine.fitness.run(told.put_nowait))
    proxy.fault(START, refuse(500, "could not find bridge docker0"))
    attempts = [house.attempt(*SLEEPS) for _ in range(4)]
    try:
        for attempt in attempts[:3]:
            with pytest.raises(EngineError):
                await house.launch(attempt)
        async with asyncio.timeout(30):
            why = await told.get()
        assert why is not None
        assert "could not find bridge docker0" in why
        asked = len(proxy.heard)
        with pytest.raises(EngineUnfit, match="docker0"):
            await house.launch(attempts[3])
        assert [line for line in proxy.heard[asked:] if "POST" in line and "probe-" not in line] == []
        proxy.heal()
        async with asyncio.timeout(30):
            assert await told.get() is None
        assert (await house.run("true")).code == 0
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    for attempt in attempts:
        await house.engine.discard(attempt)
    async with asyncio.timeout(30):
        while house.engine.names():  # noqa: ASYNC110 - the probes go by themselves
            await asyncio.sleep(0.05)


async def test_a_create_that_lands_long_after_it_was_given_up(house: House, proxy: EngineProxy) -> None:
    late = asyncio.Event()
    fault = proxy.fault(CREATE, after(late))
    attempt = house.attempt(*SLEEPS)
    with pytest.raises(EngineGone):
        await house.launch(attempt)
    discard = asyncio.create_task(house.engine.discard(attempt))
    async with asyncio.timeout(30):
        while not any(line.startswith("DELETE") for line in proxy.heard):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)
    late.set()
    async with asyncio.timeout(30):
        await discard
    assert fault.met == 1
    assert (house.log.created, house.log.removed) == (1, 1)


REMOVALS = [
    (hang,),
    (drop,),
    (lose,),
    (refuse(500, "driver failed to remove root filesystem: device or resource busy"),),
    (refuse(409, "removal of container x is already in progress"),),
    (garble,),
]


async def test_a_removal_goes_on_until_the_container_is_gone(house_for: HouseFor) -> None:
    async def one(deed: Deed) -> None:
        async with house_for() as (house, proxy):
            attempt = house.attempt(*SLEEPS)
            await house.launch(attempt)
            fault = proxy.fault(DELETE, deed)
            discard = asyncio.create_task(house.engine.discard(attempt))
            async with asyncio.timeout(30):
                while not fault.met:  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.05)
            proxy.heal()
            async with asyncio.timeout(30):
                await discard

    await all_of(REMOVALS, one)


async def test_removals_that_hang_hold_up_no_other(house_for: HouseFor) -> None:
    async with house_for(TIME_LIMITS) as (house, proxy):
        stuck = [house.attempt(*SLEEPS) for _ in range(default_parallelism() + 1)]
        ids = [(await house.launch(attempt)).id for attempt in stuck]
        go_on = asyncio.Event()
        proxy.fault(f"DELETE .*({'|'.join(ids)})", after(go_on))
        discards = [asyncio.create_task(house.engine.discard(attempt)) for attempt in stuck]
        async with asyncio.timeout(30):
            assert (await house.run("true")).code == 0
        assert not any(discard.done() for discard in discards)
        go_on.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*discards)
        assert house.log.cleanups_failed == 0


WRONG_FOR_ONCE = list(product((INSPECT, LOGS), (drop, garble, refuse(500, "broken"), cut_short)))


async def test_an_answer_that_is_wrong_for_once_does_not_lose_an_adopted_job(
    engine: Endpoint, house_for: HouseFor
) -> None:
    async def one(pattern: str, deed: Deed) -> None:
        async with house_for() as (house, proxy):
            attempt = house.attempt("sh", "-c", f"echo up; {GO}; exit 3")
            async with open_house(engine.url, house.worker, house.state_dir, house.image) as earlier:
                await earlier.launch(attempt)
                await earlier.heard(b"up")
            fault = proxy.fault(pattern, deed, times=2)
            container = await house.engine.adopt(attempt, house.hear)
            (house.state_dir / "jobs" / attempt.claim / "progress").write_text("go on")
            async with asyncio.timeout(30):
                end = await container.wait()
            assert (end.code, end.lost, bytes(house.out), fault.met) == (3, None, b"up\n", 2)
            await house.engine.discard(attempt)

    await all_of(WRONG_FOR_ONCE, one)


async def test_an_engine_that_only_answers_nonsense_is_not_believed_for_ever(
    engine: Endpoint, house: House, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.adapters.docker.adoption._TRIES", 4)
    attempt = house.attempt(*SLEEPS)
    async with open_house(engine.url, house.worker, house.state_dir, house.image) as earlier:
        await earlier.launch(attempt)
    fault = proxy.fault(INSPECT, refuse(500, "broken"))
    with pytest.raises(EngineError, match="broken"):
        await house.engine.adopt(attempt, house.hear)
    assert fault.met == 4
    proxy.heal()
    await house.engine.discard(attempt)


async def test_a_kill_that_goes_wrong_can_be_repeated(house_for: HouseFor) -> None:
    async def one(deed: Deed) -> None:
        # None of them takes time, and the second one is to succeed: whatever else the engine has to do.
        async with house_for(dict(SHORT) | {Operation.KILL: timedelta(minutes=1)}) as (house, proxy):
            attempt = house.attempt("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
            container = await house.launch(attempt)
            await house.heard(b"up")
            fault = proxy.fault(KILL, deed, times=1)
            async with asyncio.timeout(60):
                with suppress(EngineError):
                    await container.kill()
                await container.kill()
                end = await container.wait()
            assert (end.signal, end.lost, end.complete, fault.met) == (9, None, True, 1)
            await house.engine.discard(attempt)

    await all_of([(drop,), (lose,), (refuse(500, "broken"),)], one)


async def test_an_engine_that_cannot_list_is_swept_later(house: House, proxy: EngineProxy) -> None:
    attempt = house.attempt(*SLEEPS)
    await house.launch(attempt)
    discard = asyncio.create_task(house.engine.discard(attempt))
    await asyncio.sleep(0)
    discard.cancel()
    await asyncio.wait({discard})
    for deed in (garble, drop, cut_short, refuse(500, "broken")):
        proxy.fault(LIST, deed)
        with pytest.raises(EngineError):
            await house.sweep.once(grace=timedelta(0))
        proxy.heal()
    assert await house.sweep.once(grace=timedelta(0)) == 0

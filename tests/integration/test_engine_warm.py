"""Containers that wait for jobs: each serves one, which cannot tell, and none is left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import aiodocker
import pytest
from tests.fakes import until
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint

from runner import warmth
from runner.adapters.docker import container as running
from runner.adapters.docker import launch as launching
from runner.adapters.docker import rush as rushing
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.files import JobFolder
from runner.adapters.docker.warm import Standing
from runner.job import Attempt, Bytes, Limits, Stack

pytestmark = pytest.mark.engine

MIB = 2**20
LIMITS = Limits(memory=Bytes(32 * MIB), disk=Bytes(4 * MIB))
NOW = timedelta(0)
WHAT_A_JOB_SEES = r"""
env | grep -v ^JOB_DEADLINE= | sort; id; pwd; umask; ulimit -a; cat /proc/self/oom_score_adj
ls /proc/self/fd; ps -o args
tr '\0' ' ' < /proc/1/cmdline; cut -d: -f1 /proc/net/dev
ls -ln / /job /work /tmp /dev | sed -E 's/^([^ ]+) +[0-9]+ /\1 /; s/ [A-Z][a-z]{2} .{2} .{5} / /'
sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ //; s/ master:[0-9]+//; s,[0-9a-f]{64},,g; s/(upper|lower|work)dir=[^ ,]+//g' \
    /proc/self/mountinfo | sort
grep -E '^(Sig[^Q]|Shd|Cap|NoNew|Seccomp|Uid|Gid|Groups)' /proc/self/status
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids/pids.max 2>/dev/null
true
"""


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image, warm_memory=256 * MIB) as opened:
        yield opened
        await opened.engine.dropped()
        await opened.sweep.once(grace=NOW)


def stack_of(house: House) -> Stack:
    return Stack(name="busybox", revision="1", image=house.image)


def attempt_of(house: House, *command: str, limits: Limits = LIMITS) -> Attempt:
    return house.attempt(*command, limits=limits, stack=stack_of(house))


@asynccontextmanager
async def keeping(house: House, count: int, stack: Stack | None = None) -> AsyncIterator[None]:
    """So many containers wait."""
    standing = [Standing(stack=stack or stack_of(house), limits=LIMITS, count=count)]

    async def ask() -> list[Standing]:
        return standing

    running = asyncio.create_task(house.engine.warm.run(ask))
    try:
        await waiting(house, count)
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def waiting(house: House, count: int) -> None:
    async with asyncio.timeout(30):
        while len(house.engine.warm.names()) != count:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)


async def launch(house: House, attempt: Attempt) -> DockerContainer:
    house.engine.expect(attempt.container_name, attempt.plan)
    return await house.launch(attempt)


async def named(house: House, attempt: Attempt) -> None:
    """Return when the attempt's container has its name."""
    async with asyncio.timeout(30):
        while attempt.container_name not in await house.names():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)


async def hang(_client: EngineClient, _container: str, _name: str) -> None:
    """A rename that the engine does not answer."""
    await asyncio.Event().wait()


def endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for others to begin does so for longer than any test lasts."""
    for limit in ("_HELD_FOR", "_COMING_FOR"):
        monkeypatch.setattr(rushing, limit, 1000.0)


async def see(house: House, attempt: Attempt) -> str:
    """What the job writes, in a container of whichever kind there is."""
    try:
        container = await launch(house, attempt)
        async with asyncio.timeout(30):
            end = await container.wait()
        assert (end.code, end.complete) == (0, True)
        return bytes(house.out).decode()
    finally:
        await house.engine.discard(attempt)


async def test_a_job_gets_a_container_that_waited_and_a_new_one_takes_its_place(house: House) -> None:
    async with keeping(house, 2):
        before = house.engine.warm.names()
        assert before == await house.names()
        assert all(name.startswith(f"warm-{house.worker}-") for name in before)
        attempt = attempt_of(house, "sleep", "1000")
        container = await launch(house, attempt)
        assert container.warm
        await named(house, attempt)
        found = await house.inspect(attempt)
        assert (found["Id"], found["State"]["Running"]) == (container.id, True)
        assert (house.state_dir / "jobs" / attempt.claim).is_dir()
        await waiting(house, 2)
        assert house.engine.warm.names() != before
        assert house.log.warm == {"busybox": 2}
        await house.engine.discard(attempt)
        assert await house.names() == house.engine.warm.names()


async def test_each_container_serves_one_job(house: House) -> None:
    async with keeping(house, 1):
        ids = set()
        for _ in range(3):
            attempt = attempt_of(house, "true")
            container = await launch(house, attempt)
            await container.wait()
            ids.add((container.id, container.warm))
            await house.engine.discard(attempt)
            await waiting(house, 1)
    assert len(ids) == 3
    assert {warm for _, warm in ids} == {True}


async def test_a_job_cannot_tell_by_what_it_sees(house: House) -> None:
    attempt = attempt_of(house, "sh", "-c", WHAT_A_JOB_SEES)
    cold = await see(house, attempt)
    async with keeping(house, 1):
        waited = house.engine.warm.names()
        warm = await see(house, attempt)
        assert waited.isdisjoint(house.engine.warm.names())
    assert warm.splitlines() == cold.splitlines()
    assert f"jobs/{attempt.claim} /job ro" in warm


async def test_a_job_with_other_limits_gets_them(house: House) -> None:
    limits = replace(LIMITS, memory=Bytes(48 * MIB), pids=77, cpus=0.25)
    async with keeping(house, 1):
        attempt = attempt_of(house, "sleep", "1000", limits=limits)
        container = await launch(house, attempt)
        await named(house, attempt)
        config = (await house.inspect(attempt))["HostConfig"]
        await house.engine.discard(attempt)
    assert container.warm
    assert (config["Memory"], config["MemorySwap"]) == (52 * MIB, 52 * MIB)
    assert (config["NanoCpus"], config["PidsLimit"]) == (250_000_000, 78)


@pytest.mark.parametrize(
    "limits", [replace(LIMITS, disk=Bytes(8 * MIB)), replace(LIMITS, log_bytes=Bytes(8 * MIB))], ids=["disk", "log"]
)
async def test_a_job_that_needs_another_container_starts_cold(house: House, limits: Limits) -> None:
    async with keeping(house, 1):
        attempt = attempt_of(house, "true", limits=limits)
        container = await launch(house, attempt)
        await container.wait()
        await house.engine.discard(attempt)
        assert not container.warm
        assert len(house.engine.warm.names()) == 1


async def test_another_revision_starts_cold_and_what_waits_for_the_old_one_goes(house: House) -> None:
    async with keeping(house, 1):
        newer = replace(stack_of(house), env={"REVISION": "2"}, runtime="other")
        attempt = house.attempt("true", limits=LIMITS, stack=newer)
        house.engine.expect(attempt.container_name, attempt.plan)
        assert attempt.container_name not in house.engine.names()
    async with keeping(house, 1, replace(stack_of(house), cap_add=("CHOWN",))):
        await house.engine.dropped()
        assert len(await house.names()) == 1


async def test_a_container_that_ends_while_it_waits_is_replaced(
    house: House, engine: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmth, "_FIRST_PAUSE", 0.01)  # it may end so soon that its kind is held back
    async with keeping(house, 1):
        [name] = house.engine.warm.names()
        async with aiodocker.Docker(url=engine.url) as docker:
            await docker.containers.container(name).kill(signal="KILL")
            async with asyncio.timeout(30):
                while house.engine.warm.names() in ({name}, set()):  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.02)
        await house.engine.dropped()
        assert await house.names() == house.engine.warm.names()


async def test_a_kind_that_cannot_be_started_keeps_no_other_from_being_ready(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmth, "_FIRST_PAUSE", 3600.0)  # this machine may be slow
    monkeypatch.setattr(warmth, "_LONGEST_PAUSE", 3600.0)
    broken = replace(stack_of(house), name="broken", runtime="no-such-runtime")
    standing = [
        Standing(stack=broken, limits=LIMITS, count=5),
        Standing(stack=stack_of(house), limits=LIMITS, count=2),
    ]

    async def ask() -> list[Standing]:
        return standing

    running = asyncio.create_task(house.engine.warm.run(ask))
    try:
        await waiting(house, 2)
        assert house.log.calls["create"] == 3
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_what_was_expected_and_never_launched_leaves_nothing(house: House) -> None:
    async with keeping(house, 1):
        attempt = attempt_of(house, "true")
        house.engine.expect(attempt.container_name, attempt.plan)
        house.engine.drop(attempt.container_name)
        await house.engine.dropped()
        await waiting(house, 1)
        assert await house.names() == house.engine.warm.names()
        assert len(house.folders()) == 1


async def test_a_container_that_is_removed_in_the_very_moment_costs_the_job_nothing(house: House) -> None:
    async with keeping(house, 1):
        attempt = attempt_of(house, "true")
        waited = house.engine.expect(attempt.container_name, attempt.plan)  # else another may be ready in its place
        assert waited is not None
        await house.client.delete(waited)
        container = await house.launch(attempt)
        assert (await container.wait()).code == 0
        assert not container.warm
        await house.engine.discard(attempt)


async def test_all_that_waits_is_accounted_for_and_left_alone_by_sweeps(house: House) -> None:
    async with keeping(house, 2):
        for _ in range(2):
            await house.sweep.once(grace=NOW, idle=lambda: True)
        assert house.log.unaccounted == 0
        assert house.log.living == 2
        assert await house.names() == house.engine.warm.names()
        assert len(house.folders()) == 2


async def test_nothing_waits_after_the_end(house: House) -> None:
    async with keeping(house, 2):
        pass
    await house.engine.dropped()
    assert await house.names() == set()
    assert house.folders() == set()
    assert (house.log.living, house.log.warm) == (0, {"busybox": 0})


async def test_what_an_earlier_life_left_waiting_is_removed(house: House) -> None:
    name = f"warm-{house.worker}-7"
    body = {"Image": house.image, "Cmd": ["true"], "Labels": {"runner.worker": house.worker}}
    await house.client.create(name, body)
    JobFolder(house.state_dir / "jobs" / "warm-7").create()
    await house.sweep.at_start()
    assert await house.names() == set()
    assert house.folders() == set()


async def test_a_job_is_told_to_have_started_when_its_container_has_the_name(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_NAMED_WITHIN", 30.0)  # this machine may be slow
    async with keeping(house, 1):
        before = house.engine.warm.names()
        attempt = attempt_of(house, "true")
        container = await launch(house, attempt)
        assert (await house.inspect(attempt))["Id"] == container.id
        assert before.isdisjoint(await house.names())
        assert (await container.wait()).code == 0
        await house.engine.discard(attempt)
        assert await house.names() == house.engine.warm.names()


async def test_neither_a_job_nor_its_removal_waits_for_a_rename_that_hangs(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineClient, "rename", hang)
    async with keeping(house, 1):
        [name] = house.engine.warm.names()
        attempt = attempt_of(house, "true")
        async with asyncio.timeout(30):
            container = await launch(house, attempt)
            assert name in await house.names()
            assert (await container.wait()).code == 0
            await house.engine.discard(attempt)
        assert container.warm
        assert name not in await house.names()


async def test_a_container_that_cannot_be_renamed_serves_its_job_all_the_same(house: House) -> None:
    async with keeping(house, 1):
        [name] = house.engine.warm.names()
        attempt = attempt_of(house, "sh", "-c", "echo up; sleep 1000")
        # Its name is taken.
        body = {"Image": house.image, "Cmd": ["true"], "Labels": {"runner.worker": house.worker}}
        await house.client.create(attempt.container_name, body)
        await launch(house, attempt)
        async with asyncio.timeout(30):
            while ("rename", "refused") not in house.log.failures:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        await house.sweep.once(grace=NOW)
        assert name in await house.names()
        await house.engine.discard(attempt)
        assert name not in await house.names()


async def test_the_next_life_finds_a_container_that_has_not_got_its_name(
    engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineClient, "rename", hang)
    async with open_house(engine.url, namespace, state_dir, busybox_image, warm_memory=256 * MIB) as earlier:
        attempt = attempt_of(earlier, "sh", "-c", "echo up; sleep 1000")
        async with keeping(earlier, 1):
            [name] = earlier.engine.warm.names()
            waited = earlier.engine.expect(attempt.container_name, attempt.plan)
            container = await earlier.launch(attempt)
            await earlier.heard(b"up\n")
            await earlier.engine.close()  # as if killed
    async with open_house(engine.url, namespace, state_dir, busybox_image) as house:
        assert waited == container.id
        assert name in await house.names()
        monkeypatch.undo()
        house.engine.keep(attempt.container_name, waited)
        await house.sweep.at_start()
        adopted = await house.engine.adopt(attempt, house.hear)
        assert (adopted.id, adopted.started) == (container.id, container.started)
        await house.heard(b"up\n")
        await named(house, attempt)
        await house.engine.discard(attempt)
        assert (await house.names(), house.folders(), house.log.living) == (set(), set(), 0)


async def test_what_is_left_of_a_job_waits_for_those_on_their_way_and_what_still_runs_does_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless_patience(monkeypatch)
    ended, wanted, runs, coming = (
        attempt_of(house, *words) for words in (["true"], ["true"], ["sleep", "99"], ["true"])
    )
    async with asyncio.timeout(60), keeping(house, 4):
        for attempt in (ended, wanted):
            assert (await (await launch(house, attempt)).wait()).code == 0
        await launch(house, runs)
        assert house.engine.expect(coming.container_name, coming.plan) is not None
        held = asyncio.create_task(house.engine.discard(ended, patient=True))
        await house.engine.discard(runs, patient=True)
        await house.engine.discard(wanted)
        assert not held.done()
        assert ended.container_name in await house.names()
        await house.engine.discard(coming)
        await held
        assert not {ended.container_name, runs.container_name} & await house.names()


@pytest.mark.parametrize("why", ["it began", "hurry"])
async def test_what_is_left_of_a_job_waits_no_longer_once_the_other_began_or_somebody_wants_its_room(
    house: House, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    endless_patience(monkeypatch)
    ended, coming = attempt_of(house, "true"), attempt_of(house, "sleep", "99")
    async with asyncio.timeout(60), keeping(house, 2):
        assert (await (await launch(house, ended)).wait()).code == 0
        assert house.engine.expect(coming.container_name, coming.plan) is not None
        held = asyncio.create_task(house.engine.discard(ended, patient=True))
        await until(lambda: house.engine._launches.rush._held == 1)
        if why == "hurry":
            house.engine.hurry()
        else:
            assert (await house.launch(coming)).warm
        await held
        assert ended.container_name not in await house.names()
        await house.engine.discard(coming)


async def test_a_removal_that_is_cancelled_while_it_waits_is_left_to_the_sweep(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless_patience(monkeypatch)
    ended, coming = attempt_of(house, "true"), attempt_of(house, "true")
    async with asyncio.timeout(60), keeping(house, 2):
        assert (await (await launch(house, ended)).wait()).code == 0
        left = house.engine._launches.find(ended.container_name)
        assert house.engine.expect(coming.container_name, coming.plan) is not None
        held = asyncio.create_task(house.engine.discard(ended, patient=True))
        await until(lambda: house.engine._launches.rush._held == 1)
        held.cancel()
        await asyncio.wait({held})
        assert left is not None
        assert left.attachment is None
        assert ended.container_name not in house.engine.names()
        assert ended.container_name in await house.names()
        await house.sweep.once(grace=NOW)
        assert ended.container_name not in await house.names()
        await house.engine.discard(coming)


async def test_a_container_stays_when_its_job_has_ended_until_it_is_let_go_of_and_is_compared_then(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_SECOND_OPINION", 5.0)  # less than the init stays by itself
    attempt = attempt_of(house, "true")
    container = await house.launch(attempt)
    assert (await container.wait()).code == 0
    assert (await house.inspect(attempt))["State"]["Running"]
    before = house.log.calls["inspect"]
    await house.engine.discard(attempt)
    assert house.log.calls["inspect"] - before >= 2, "its end, and its absence"

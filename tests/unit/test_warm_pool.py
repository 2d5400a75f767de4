"""In which sizes containers wait, and how they become those of jobs of another size."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.attempts import make_attempt
from tests.engine_log import EngineLog

from runner.adapters.docker.census import Census
from runner.adapters.docker.config import Site
from runner.adapters.docker.files import JobFolders, folder_of
from runner.adapters.docker.handover import Handover
from runner.adapters.docker.launch import Launches
from runner.adapters.docker.sandbox import Sandbox
from runner.adapters.docker.warm import FOOTPRINT, Kind, Standing, WarmPool
from runner.errors import EngineError
from runner.job import Bytes, Limits, Stack

SITE = Site(worker="vm1", boot="boot", init=Path("/init"), hosts=Path("/hosts"))
STACK = Stack(name="busybox", revision="1", image="sha256:" + 64 * "0")
USUAL = Limits()
SMALL = replace(USUAL, cpus=0.1)
TOO_LARGE = replace(USUAL, cpus=1000.0)


def kind_of(limits: Limits) -> Kind:
    return Kind.of(STACK, limits, SITE)


class Engine:
    """Changes limits in several steps, and counts how many changes go on at once."""

    def __init__(self) -> None:
        self.now = self.most = self.updates = 0

    async def update(self, _container: str, resources: dict[str, Any]) -> None:
        assert resources["NanoCpus"] == round(SMALL.cpus * 1e9)
        self.updates += 1
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(5):
            await asyncio.sleep(0)
        self.now -= 1


class Streams:
    """Those of a container that nothing happens to."""

    ended = False

    def listen(self, on_data: object, on_end: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass


class House:
    """A pool whose containers are made at once, those of `TOO_LARGE` excepted."""

    def __init__(self, folder: Path) -> None:
        nothing = cast("Any", None)
        self.made: list[float] = []
        self.engine = Engine()
        self.folders = JobFolders(jobs=folder / "jobs")
        log = EngineLog()
        self.launches = Launches(
            client=cast("Any", self.engine),
            removal=nothing,
            scratch=nothing,
            observer=log,
            packages=None,
            worker=SITE.worker,
            folders=self.folders,
        )
        self.pool = WarmPool(make=self._make, drop=lambda _: None, observer=log, site=SITE, memory=Bytes(4 * FOOTPRINT))
        self.pool._open = True
        self.handover = Handover(
            warm=self.pool, launches=self.launches, census=Census(log), site=SITE, folders=self.folders
        )

    async def _make(self, name: str, _stack: Stack, limits: Limits) -> Sandbox:
        self.made.append(limits.cpus)
        if limits == TOO_LARGE:
            raise EngineError("no such machine")
        self.launches.of(name)
        folder = self.folders.of(folder_of(name, SITE.worker))
        folder.create()
        return Sandbox(cast("Any", self.engine), f"id of {name}", cast("Any", Streams()), folder, Bytes(0))

    async def fill(self, count: int) -> None:
        """Look after the pool until nothing is left to do; the operator wants so many of the usual size."""
        before = -1
        while before != len(self.made):
            before = len(self.made)
            await self.pool._balance([Standing(stack=STACK, limits=USUAL, count=count)])


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_only_an_update_sets_sizes_apart() -> None:
    assert kind_of(USUAL).key == kind_of(SMALL).key
    assert kind_of(USUAL) != kind_of(SMALL)
    assert kind_of(replace(SMALL, timeout=2 * SMALL.timeout)) == kind_of(SMALL)


async def test_what_takes_the_place_of_a_container_has_the_size_of_the_jobs(house: House) -> None:
    await house.fill(2)
    assert house.made == [USUAL.cpus] * 2
    first = house.pool.take(kind_of(SMALL))
    assert first is not None
    assert first.kind == kind_of(USUAL), "there is no other yet"
    await house.fill(2)
    assert house.made[2:] == [SMALL.cpus]
    second = house.pool.take(kind_of(SMALL))
    assert second is not None
    assert second.kind == kind_of(SMALL)


async def test_a_size_that_cannot_be_made_costs_the_operator_no_container(house: House) -> None:
    house.pool.take(kind_of(TOO_LARGE))
    await house.fill(2)
    assert house.made == [TOO_LARGE.cpus]
    house.pool._setbacks._until.clear()  # the pause is over
    await house.fill(2)
    assert house.made == [TOO_LARGE.cpus, USUAL.cpus, USUAL.cpus]


async def test_limits_are_changed_one_after_the_other_and_only_where_they_differ(house: House) -> None:
    await house.fill(4)
    attempts = [
        make_attempt("true", claim=f"c{number}", worker=SITE.worker, limits=limits, stack=STACK)
        for number, limits in enumerate([SMALL, USUAL, SMALL, SMALL])
    ]
    given = [house.handover.expect(attempt.container_name, attempt.plan) for attempt in attempts]
    async with asyncio.timeout(30):
        found = [await house.handover.expected(attempt) for attempt in attempts]
    assert None not in found
    assert (house.engine.updates, house.engine.most) == (3, 1)
    assert [sandbox.id for sandbox in found if sandbox] == given
    await house.launches.close()

"""`runner reap --expired` removes what nobody will come back for, and nothing else."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from tests.mounted import results_in_memory
from tests.services import Endpoint, Engine

from runner.adapters.docker.files import folder_of
from runner.adapters.journal import SqliteJournal, open_journal
from runner.adapters.lock import WorkerLock
from runner.app import reap
from runner.job import JobKey, container_name, warm_name
from runner.ports import ClaimRecord
from runner.settings import load_settings

pytestmark = pytest.mark.engine

LEASE = timedelta(seconds=120)
SECOND = timedelta(seconds=1)


def now() -> datetime:
    return datetime.now(UTC)


class Place:
    """A worker without a daemon."""

    def __init__(self, url: str, image: str, worker: str, state_dir: Path, docker: aiodocker.Docker) -> None:
        self.url = url
        self.worker = worker
        self.state_dir = state_dir
        self._docker = docker
        self._image = image

    @asynccontextmanager
    async def journal(self, at: datetime | None = None) -> AsyncIterator[SqliteJournal]:
        async with open_journal(self.state_dir, lambda: at or now()) as journal:
            yield journal

    def record(self, claim: str, claimed: datetime) -> ClaimRecord:
        key = JobKey(tenant="acme", id=claim)
        name = container_name(self.worker, claim)
        return ClaimRecord(claim=claim, key=key, container_name=name, attempt=1, claimed=claimed)

    async def make(self, claim: str, *, start: bool = False, waits: bool = False) -> str:
        """A container with the files of its job, which may be called as if it still waited for one; its id."""
        labels = {"runner.worker": self.worker}
        body: dict[str, Any] = {"Image": self._image, "Cmd": ["sleep", "1000"], "Labels": labels}
        name = (warm_name if waits else container_name)(self.worker, claim)
        container = await self._docker.containers.create(body, name=name)
        if start:
            await container.start()
        for place in self.places:
            (place / folder_of(name, self.worker)).mkdir(parents=True)
        return container.id

    async def ids(self) -> set[str]:
        """What there is of containers."""
        found = await self._docker.containers.list(all=True, filters={"label": [f"runner.worker={self.worker}"]})
        return {container.id for container in found}

    @property
    def places(self) -> list[Path]:
        """Where the files are: what jobs write has a place of its own, if this machine has one for it."""
        results = self.state_dir / "results"
        return [self.state_dir / "jobs", *([results / "jobs"] if results.exists() else [])]

    async def claims(self) -> set[str]:
        """Those that have a container, which are those that have files."""
        found = await self._docker.containers.list(all=True, filters={"label": [f"runner.worker={self.worker}"]})
        prefix = container_name(self.worker, "")
        claims = {container["Names"][0].lstrip("/").removeprefix(prefix) for container in found}
        assert all({path.name for path in place.iterdir()} == claims for place in self.places)
        return claims

    def environment(self) -> dict[str, str]:
        settings = {"worker__name": self.worker, "worker__state_dir": str(self.state_dir), "engine__url": self.url}
        return {f"RUNNER_{name.upper()}": value for name, value in settings.items()}

    async def reap(self, *words: str, code: int = 0) -> tuple[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "runner", "reap", *words),
            env=kept | self.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(90):
            out, err = await process.communicate()
        assert process.returncode == code, err
        return out.decode(), err.decode()


@pytest.fixture
async def place(engine: Endpoint, busybox_image: str, namespace: str, state_dir: Path) -> AsyncIterator[Place]:
    async with aiodocker.Docker(url=engine.url) as docker:
        yield Place(engine.url, busybox_image, namespace, state_dir, docker)
        for container in await docker.containers.list(all=True, filters={"label": [f"runner.worker={namespace}"]}):
            await container.delete(force=True)


async def test_what_the_next_life_will_want_is_kept(place: Place) -> None:
    with results_in_memory(place.state_dir):
        for claim in ("running", "ended", "fresh", "unknown", "over"):
            await place.make(claim, start=claim in ("running", "fresh"))
        async with place.journal() as journal:
            for claim in ("running", "ended", "fresh", "over"):
                await journal.claimed(place.record(claim, now()))
            await journal.started("running", "id", now() + timedelta(hours=1))
            await journal.started("ended", "id", now() - timedelta(hours=1))
            await journal.ended("over", finished=True)
        assert await place.reap("--expired") == ("2 containers removed\n", "")
        assert await place.claims() == {"running", "ended", "fresh"}
        assert await place.reap("--expired", "--json") == ('{"removed": 0, "left": 0}\n', "")
        assert await place.reap() == ("3 containers removed\n", "")
        assert await place.claims() == set()


async def test_a_job_that_nobody_ends_is_ended_after_its_deadline(place: Place) -> None:
    for claim in ("late", "just"):
        await place.make(claim, start=True)
    async with place.journal() as journal:
        for claim, ago in (("late", 31), ("just", 1)):
            await journal.claimed(place.record(claim, now()))
            await journal.started(claim, "id", now() - ago * SECOND)
    assert await place.reap("--expired") == ("1 containers removed\n", "")
    assert await place.claims() == {"just"}


async def test_a_lease_lasts_from_its_last_renewal(place: Place) -> None:
    async with place.journal() as journal:
        for claim, ago in (("old", LEASE + 60 * SECOND), ("new", 0 * SECOND)):
            await place.make(claim, start=True)
            await journal.claimed(place.record(claim, now() - ago))
            await journal.started(claim, "id", now() + timedelta(hours=1))
    async with place.journal(now() - LEASE + 60 * SECOND) as journal:
        await journal.renew()
    assert await place.reap("--expired") == ("0 containers removed\n", "")
    async with place.journal(now() - LEASE - SECOND) as journal:
        await journal.renew()
    assert await place.reap("--expired") == ("1 containers removed\n", "")
    assert await place.claims() == {"new"}


async def test_beside_a_daemon_all_that_it_has_is_left_alone(place: Place) -> None:
    claims = {"late", "expired", "ending", "unknown"}
    async with place.journal(now() - 2 * LEASE) as journal:
        for claim in claims:
            await place.make(claim, start=True)
        for claim in claims - {"unknown"}:
            await journal.claimed(place.record(claim, now() - 2 * LEASE))
        await journal.started("late", "id", now() - timedelta(hours=1))
        await journal.renew()
    async with place.journal() as journal:
        await journal.ended("ending", finished=True)
    with WorkerLock(place.state_dir).hold():
        assert await place.reap("--expired") == ("0 containers removed\n", "")
        _, err = await place.reap(code=78)
        assert "is in use by the process" in err
        assert await place.claims() == claims
    assert await place.reap("--expired") == ("4 containers removed\n", "")


async def test_beside_a_daemon_a_container_on_its_way_to_a_job_is_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reap, "GRACE", timedelta(0))
    settings = load_settings(place.environment())
    async with place.journal():
        on_its_way = await place.make("claimed", start=True, waits=True)
        await place.make("unknown", start=True)
    for folder in place.places:  # its job's, before the claim is on record and the container has the name
        (folder / "warm-claimed").rename(folder / "claimed")
    with WorkerLock(place.state_dir).hold():
        await reap.reap_expired(settings)
        assert await place.ids() == {on_its_way}
        assert all((folder / "claimed").is_dir() for folder in place.places)
    await reap.reap_expired(settings)
    assert await place.ids() == set()
    assert [name for folder in place.places for name in folder.iterdir()] == []


async def test_a_container_that_has_not_got_its_name_is_its_claims(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reap, "GRACE", timedelta(0))
    settings = load_settings(place.environment())
    async with place.journal() as journal:
        waits, mine, over = [await place.make(claim, start=True, waits=True) for claim in ("waits", "mine", "over")]
        await journal.claimed(replace(place.record("mine", now()), waited=mine))
        await journal.claimed(replace(place.record("over", now() - timedelta(hours=1)), waited=over))
    async with place.journal(now() - timedelta(minutes=30)) as journal:
        await journal.ended("over", finished=True)
    for folder in place.places:
        for claim in ("mine", "over"):
            (folder / f"warm-{claim}").rename(folder / claim)
    with WorkerLock(place.state_dir).hold():
        await reap.reap_expired(settings)
        assert await place.ids() == {waits, mine}
    await reap.reap_expired(settings)
    assert await place.ids() == {mine}
    assert {path.name for path in place.places[0].iterdir()} == {"mine"}
    async with place.journal() as journal:
        await journal.forgotten("mine")
    await reap.reap_expired(settings)
    assert await place.ids() == set()


async def test_where_nothing_ever_ran_nothing_is_made(place: Place) -> None:
    assert await place.reap("--expired") == ("0 containers removed\n", "")
    assert list(place.state_dir.iterdir()) == []


async def test_an_engine_that_hangs_is_not_waited_for(tmp_path: Path, namespace: str, state_dir: Path) -> None:
    async with Engine(tmp_path / "engine") as engine, aiodocker.Docker(url=engine.url) as docker:
        place = Place(engine.url, "none", namespace, state_dir, docker)
        await engine.pause()
        try:
            _, err = await place.reap("--expired", code=69)
        finally:
            await engine.resume()
    assert "did not answer ping within 5 s" in err


def test_a_lock_is_seen_without_being_touched(state_dir: Path) -> None:
    lock = WorkerLock(state_dir)
    assert not lock.held()
    with lock.hold():
        assert lock.held()
        assert WorkerLock(state_dir).held()
    assert not lock.held()

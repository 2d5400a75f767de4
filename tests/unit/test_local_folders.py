"""The folders of local workers, which come and go while one looks, and how such a worker ends."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.attempts import make_attempt

from runner.adapters.journal import open_journal
from runner.app import local
from runner.app.local import _ended_in_time, _killed, _only
from runner.app.stacks import claimed_images
from runner.errors import ConfigError
from runner.job import Choices
from runner.ports import ClaimRecord
from runner.settings import Settings, load_settings


def test_a_folder_that_its_owner_has_just_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    os.utime(old, (0, 0))

    def listed(folder: Path) -> Iterator[Path]:
        return iter([folder / "gone", folder / "old"])

    monkeypatch.setattr(Path, "iterdir", listed)
    assert _killed(tmp_path) == [old]


def test_a_fault_of_one_task_is_told_as_what_it_is() -> None:
    error = OSError("full")
    assert _only(ExceptionGroup("", [ExceptionGroup("", [error])])) is error
    assert _only(ExceptionGroup("", [error, ValueError()])) is None


async def test_whoever_is_in_a_hurry_does_not_wait_for_a_removal_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_HURRY", timedelta(milliseconds=50))
    hurry, gone, given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def removal() -> None:
        try:
            await gone.wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_ended_in_time(removal(), hurry))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.shield(waiting)
        hurry.set()
        assert not await waiting
        assert given_up.is_set()
        gone.set()
        assert await _ended_in_time(removal(), hurry)


@pytest.mark.parametrize("left", [[], ["runner-x"]])
async def test_the_folder_goes_with_its_worker_unless_a_container_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    class Sweep:
        async def once(self, *, grace: timedelta) -> None:
            """There is nothing."""

    @asynccontextmanager
    async def opened(_settings: Settings, _folder: Path) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(house=SimpleNamespace(sweep=Sweep()), left=left)

    monkeypatch.setattr(local, "_open", opened)
    async with local.open_local(load_settings({"RUNNER_WORKER__STATE_DIR": str(tmp_path)})):
        assert len(local.local_folders(tmp_path)) == 1
    assert len(local.local_folders(tmp_path)) == len(left)


async def test_the_daemons_user_removes_once_what_root_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "exec" / "w-exec-7"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    swept: list[Path] = []

    @asynccontextmanager
    async def opened(_settings: Settings, state: Path) -> AsyncIterator[SimpleNamespace]:
        async def found() -> list[str]:
            return [] if swept else ["runner-w-exec-7-1"]

        async def once(*, grace: timedelta) -> None:
            assert grace == timedelta(0)
            swept.append(state)

        yield SimpleNamespace(house=SimpleNamespace(sweep=SimpleNamespace(found=found, once=once)))

    async def cleared() -> int:
        os.utime(folder, (0, 0))
        return await local.clear_killed(load_settings({"RUNNER_WORKER__STATE_DIR": str(tmp_path)}))

    in_memory = tmp_path / "results" / "exec" / folder.name
    in_memory.mkdir(parents=True)
    monkeypatch.setattr(local, "place_in_memory", lambda state_dir, *names: state_dir.joinpath("results", *names))
    monkeypatch.setattr(local, "_open", opened)
    with monkeypatch.context() as daemon:
        daemon.setattr(local, "_may_open", lambda _: False)
        assert [await cleared(), await cleared()] == [1, 0]
    assert not in_memory.exists()
    in_memory.mkdir()
    assert [(state.name, state == folder) for state in swept] == [("w-exec-7", False)]
    assert local.local_folders(tmp_path) == []
    assert await cleared() == 0  # by root
    assert swept[1:] == [folder]
    assert not folder.exists()
    assert not in_memory.exists()


async def test_images_of_jobs_of_exec_are_in_use_as_well(tmp_path: Path) -> None:
    assert await claimed_images(tmp_path) == frozenset()
    (tmp_path / "exec" / "w-exec-2").mkdir(parents=True)  # it has no journal yet
    for folder, image in ((tmp_path, "sha256:daemons"), (tmp_path / "exec" / "w-exec-1", "sha256:ours")):
        attempt = make_attempt("true", image=image)
        async with open_journal(folder, lambda: datetime.now(UTC)) as journal:
            await journal.claimed(
                ClaimRecord(
                    claim=attempt.claim,
                    key=attempt.plan.job.key,
                    container_name=attempt.container_name,
                    attempt=1,
                    claimed=datetime.now(UTC),
                    choices=Choices.of(attempt.plan),
                )
            )
    assert await claimed_images(tmp_path) == {"sha256:daemons", "sha256:ours"}


async def test_the_journal_that_root_makes_is_read_by_the_daemons_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Path, int, int]] = []

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        given.append((Path(f"/proc/self/fd/{descriptor}").readlink(), uid, gid))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", fchown)
    folder = tmp_path / "exec" / "w-exec-1"
    async with open_journal(folder, lambda: datetime.now(UTC)):
        owner = folder.stat()
        assert given == [(folder / "journal.db", owner.st_uid, owner.st_gid)]

    other = tmp_path / "exec" / "w-exec-2"
    other.mkdir()
    (other / "journal.db").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="cannot be written"):
        async with open_journal(other, lambda: datetime.now(UTC)):
            pass
    assert not (tmp_path / "target").exists()
    assert len(given) == 1

"""The sweep: what is left of jobs that no task owns."""

import threading
from pathlib import Path

import pytest
from tests.engine_log import EngineLog

from runner.adapters.docker.audit import Audit
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import Listed
from runner.adapters.docker.files import JobFolder, JobFolders
from runner.adapters.docker.sweep import GRACE, Sweep


class NoContainers:
    """An engine that has none."""

    async def labelled(self, label: str) -> list[Listed]:
        assert label == "runner.worker=w1"
        return []


async def test_folders_are_removed_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's code may be a thousand files, and everybody's leases are renewed meanwhile."""
    threads, remove = list[threading.Thread](), JobFolder.remove

    def noting(folder: JobFolder) -> None:
        threads.append(threading.current_thread())
        remove(folder)

    monkeypatch.setattr(JobFolder, "remove", noting)
    for claim in ("c1", "c2", "kept"):
        JobFolder(tmp_path / claim).create()
    observer = EngineLog()
    sweep = Sweep(
        client=NoContainers(),  # type: ignore[arg-type]
        removal=None,  # type: ignore[arg-type]
        census=Census(observer),
        audit=Audit(observer),
        observer=observer,
        worker="w1",
        folders=JobFolders(jobs=tmp_path),
        known=lambda: frozenset({"runner-w1-kept"}),
    )
    assert await sweep.once(grace=GRACE) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert len(threads) == 2
    assert threading.main_thread() not in threads

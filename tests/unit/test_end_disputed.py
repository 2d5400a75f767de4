"""The engine is asked for a job's end before its container is removed, and heard without being waited for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from tests.engine_log import EngineLog

from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.ending import Matter
from runner.adapters.docker.files import JobFolders
from runner.adapters.docker.launch import Launches
from runner.adapters.metrics import DISPUTES
from runner.errors import EngineError
from runner.init.wire import Report
from runner.job import Limits

EXITED = {"Status": "exited", "StartedAt": "2026-01-02T03:04:05.6Z", "ExitCode": 0, "OOMKilled": False}
REPORT = Report(
    status=0,
    exec_errno=0,
    ended=datetime(2026, 1, 2, tzinfo=UTC),
    cpu_seconds=0.25,
    memory_peak_bytes=4096,
    oom_kills=0,
    places=(),
)


@dataclass(slots=True)
class Engine:
    """Knows one container, and notes what it was asked."""

    state: dict[str, Any] | None
    failure: Exception | None = None
    ends: bool = False
    asked: list[str] = field(default_factory=list)

    async def wait(self, _container: str) -> bool:
        self.asked.append("wait")
        if self.state is not None and self.ends:
            self.state = self.state | {"Status": "exited"}
        return True

    async def inspect(self, _container: str) -> dict[str, Any] | None:
        self.asked.append("inspect")
        if self.failure is not None:
            raise self.failure
        return None if self.state is None else {"State": self.state}

    async def remove(self, _name: str, _container: str | None = None) -> bool:
        self.asked.append("remove")
        return True


class Streams:
    """An attachment that ends when it is told to."""

    def listen(self, _on_data: object, on_end: Callable[[], None]) -> None:
        self.end = on_end

    def end_input(self) -> None:
        """The container may end, and does."""
        self.end()


def container_of(engine: Engine, report: Report | None = REPORT, *, streams: Streams | None = None) -> DockerContainer:
    nothing = cast("Any", None)
    container = DockerContainer(
        client=cast("Any", engine),
        container="c0ffee",
        attachment=cast("Any", streams),
        folder=nothing,
        limits=Limits(),
        excess=nothing,
        nonce=bytes(range(32)),
        on_output=lambda _stream, _data: None,
    )
    container._scanner.report = report
    return container


async def undo(engine: Engine, folder: Path, container: DockerContainer) -> EngineLog:
    nothing, log = cast("Any", None), EngineLog()

    class Scratch:
        def forget(self, name: str) -> None:
            pass

    launches = Launches(
        client=cast("Any", engine),
        removal=cast("Any", engine),
        scratch=cast("Any", Scratch()),
        observer=log,
        packages=nothing,
        worker="vm1",
        folders=JobFolders(jobs=folder),
    )
    launches.of("runner-vm1-c1", possible=True).container = container
    async with asyncio.timeout(30):
        await launches.undo("c1")
    return log


@pytest.mark.parametrize(
    ("other", "disputed"),
    [({}, {}), ({"ExitCode": 137}, {"exit_code": 1}), ({"OOMKilled": True}, {"oom": 1})],
    ids=["agreed", "code", "memory"],
)
async def test_what_the_engine_knows_otherwise_is_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict[str, Any], disputed: dict[str, int]
) -> None:
    engine = Engine(EXITED | other)
    log = await undo(engine, tmp_path, container_of(engine))
    assert engine.asked == ["inspect", "remove"]
    assert log.disputed == disputed
    assert len(caplog.records) == len(disputed)


async def test_one_that_has_not_noticed_the_end_yet_is_waited_for(tmp_path: Path) -> None:
    engine = Engine(EXITED | {"Status": "running", "ExitCode": 3}, ends=True)
    log = await undo(engine, tmp_path, container_of(engine))
    assert engine.asked == ["inspect", "wait", "inspect", "remove"]
    assert log.disputed == {"exit_code": 1}


async def test_the_container_is_let_go_of_and_nothing_asked_before_its_streams_have_ended(tmp_path: Path) -> None:
    engine, streams = Engine(EXITED), Streams()
    await undo(engine, tmp_path, container_of(engine, streams=streams))
    assert engine.asked == ["inspect", "remove"]


async def test_a_container_whose_end_has_to_be_asked_for_is_let_go_of_first() -> None:
    asked: list[list[str]] = []

    class Noted(Streams):
        def end_input(self) -> None:
            asked.append(list(engine.asked))
            self.end()

    class Folder:
        def output(self) -> None:
            return None

    engine, report = Engine(EXITED | {"OOMKilled": True}), replace(REPORT, status=1 << 8, oom_kills=None)
    container = container_of(engine, report, streams=Noted())
    container._folder = cast("Any", Folder())
    assert (await container._reported(report)).oom_kills == 1
    assert (asked, engine.asked) == ([[]], ["wait", "inspect"])


@pytest.mark.parametrize(
    "engine",
    [
        Engine(None),
        Engine(EXITED | {"Status": "running"}),
        Engine({"Status": "exited"}),
        Engine(EXITED, EngineError("away")),
    ],
    ids=["gone", "running", "garbled", "away"],
)
async def test_an_engine_that_does_not_know_keeps_nobody_from_removing(tmp_path: Path, engine: Engine) -> None:
    log = await undo(engine, tmp_path, container_of(engine))
    assert engine.asked[-1] == "remove"
    assert not log.disputed


async def test_without_a_report_there_is_nothing_to_compare(tmp_path: Path) -> None:
    engine = Engine(EXITED | {"ExitCode": 137})
    log = await undo(engine, tmp_path, container_of(engine, None))
    assert (engine.asked, log.disputed) == (["remove"], {})


def test_what_is_counted_is_there_before_it_happens() -> None:
    assert tuple(Matter) == DISPUTES

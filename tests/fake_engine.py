"""An engine in memory, whose containers do what a script says. It passes the same suite as the real one."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from runner.errors import NeverStarted
from runner.job import Attempt, Exit, Plan, Stream
from runner.ports import OnOutput

STARTED = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
"""When every job of the fake starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a container does.

    It writes `output`, shows `progress`, and ends with `end`; without that it runs until it is stopped, and
    `ignores_term` is for those that take SIGKILL only. `error` is raised by the launch instead; `hangs` makes the
    launch wait for ever. `unprepared` and `prepares_for_ever` do the same to what comes before the launch.
    """

    output: Sequence[tuple[Stream, bytes]] = ()
    progress: bytes | None = None
    end: Exit | None = None
    ignores_term: bool = False
    error: Exception | None = None
    hangs: bool = False
    unprepared: Exception | None = None
    prepares_for_ever: bool = False


RUNS = Script()
"""Runs until it is stopped."""


class FakeContainer:
    """Implements `runner.ports.Container`. Tests may `emit` and `finish` by hand."""

    def __init__(self, name: str, script: Script, on_output: OnOutput, started: datetime) -> None:
        self.id = hashlib.sha256(name.encode()).hexdigest()
        self.name = name
        self.warm = False
        self.started = started
        self.ended: datetime | None = None
        self.told = script.progress
        self.may_exceed = True
        self.too_much: str | None = None
        self.looks = 0  # at its progress
        self.waiting = 0  # who wait for what the engine answers of its disk
        self.answers = asyncio.Event()
        self.answers.set()
        self.signals: list[str] = []
        self._script = script
        self._on_output = on_output
        self._written: list[tuple[Stream, bytes]] = []
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def terminate(self) -> None:
        self.signals.append("TERM")
        if not self._script.ignores_term:
            self.finish(Exit(signal=15, complete=True))

    async def kill(self) -> None:
        self.signals.append("KILL")
        self.finish(Exit(signal=9, complete=True))

    def progress(self) -> bytes | None:
        self.looks += 1
        return self.told

    async def excess(self) -> str | None:
        self.waiting += 1
        try:
            await self.answers.wait()
        finally:
            self.waiting -= 1
        return self.too_much

    def emit(self, stream: Stream, data: bytes) -> None:
        """The job writes something."""
        if self._ended.done():
            raise AssertionError("a job that has ended writes nothing")
        self._written.append((stream, data))
        self._on_output(stream, data)

    def hand_over(self, on_output: OnOutput) -> None:
        """Somebody else listens from now on, and hears everything from the beginning."""
        self._on_output = on_output
        for stream, data in self._written:
            on_output(stream, data)

    def finish(self, end: Exit) -> None:
        """The job ends; the first end counts."""
        if not self._ended.done():
            self._ended.set_result(end)


class FakeEngine:
    """Implements `runner.ports.Engine`. Which script a container follows is told by its job's command.

    `live` has the containers that were made and not discarded; `launched` and `discarded` have every name in order;
    `kept` has the names that sweeps would leave alone. `patient` tells of each removal whether it might wait; while
    `hurried` is not set, those wait until somebody says `hurry`.
    """

    def __init__(self, scripts: Mapping[tuple[str, ...], Script] | None = None, default: Script = RUNS) -> None:
        self.scripts = dict(scripts or {})
        self.default = default
        self.started = STARTED
        self.live: dict[str, FakeContainer] = {}
        self.preparing: list[str] = []
        self.launched: list[str] = []
        self.discarded: list[str] = []
        self.patient: list[bool] = []
        self.hurried = asyncio.Event()
        self.hurried.set()
        self.kept: set[str] = set()
        self.expected: dict[str, Plan] = {}
        self.waited: str | None = None  # the id of the container that waits

    def keep(self, name: str, waited: str | None = None) -> None:
        self.kept |= {name} if waited is None else {name, waited}

    def drop(self, name: str) -> None:
        self.kept.discard(name)
        self.expected.pop(name, None)

    def expect(self, name: str, plan: Plan) -> str | None:
        self.expected[name] = plan
        return self.waited

    async def adopt(self, attempt: Attempt, on_output: OnOutput) -> FakeContainer:
        container = self.live.get(attempt.container_name)
        await asyncio.sleep(0)
        if container is None:
            raise NeverStarted("there is no container to adopt")
        container.hand_over(on_output)
        return container

    async def prepare(self, attempt: Attempt) -> None:
        script = self.scripts.get(attempt.plan.command, self.default)
        await asyncio.sleep(0)
        if script.unprepared is not None:
            raise script.unprepared
        if script.prepares_for_ever:
            self.preparing.append(attempt.container_name)
            await asyncio.Event().wait()

    async def launch(self, attempt: Attempt, on_output: OnOutput) -> FakeContainer:
        name = attempt.container_name
        script = self.scripts.get(attempt.plan.command, self.default)
        self.launched.append(name)
        self.expected.pop(name, None)
        container = self.live[name] = FakeContainer(name, script, on_output, self.started)
        await asyncio.sleep(0)
        if script.error is not None:
            raise script.error
        if script.hangs:
            await asyncio.Event().wait()
        for stream, data in script.output:
            container.emit(stream, data)
        if script.end is not None:
            container.finish(script.end)
        return container

    def hurry(self) -> None:
        self.hurried.set()

    async def discard(self, attempt: Attempt, *, patient: bool = False) -> None:
        name = attempt.container_name
        self.patient.append(patient)
        await asyncio.sleep(0)
        if patient:
            await self.hurried.wait()
        container = self.live.pop(name, None)
        if container is not None:
            container.finish(Exit(lost="its container was removed from outside"))
        self.discarded.append(name)

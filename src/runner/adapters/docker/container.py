"""A running job: its output, its end, and the ways to end it."""

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from runner.adapters.docker import ending
from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import PLACES
from runner.adapters.docker.files import JobFolder
from runner.errors import EngineError, EngineGone
from runner.init.binary import KILL_SIGNAL
from runner.init.wire import OutputScanner, Report
from runner.job import Exit, Limits, Stream
from runner.ports import OnOutput

_LOG = logging.getLogger(__name__)

_BEGIN_LIMIT = 60.0
_KILL_PATIENCE = 2.0
_HOLD = 3.0
_HOLD_STEP = 0.5
_LONGEST_PAUSE = 5.0
_KILL_TRIES = 3
_STDOUT, _STDERR = 1, 2

# The ways that a container ends when the engine, or the machine under it, goes down.
_LOST_CODES = frozenset({ending.SIGNAL_BASE + signal.SIGKILL, ending.SIGNAL_BASE + signal.SIGTERM, 255})


class DockerContainer:
    """One job in one container. Implements `runner.ports.Container`.

    The init's report in the output is the end of the job. Only where it does not come (the init was killed, or the
    connection broke) the engine is asked, again and again, until it knows.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        container: str,
        attachment: Attachment,
        folder: JobFolder,
        limits: Limits,
        nonce: bytes,
        on_output: OnOutput,
    ) -> None:
        self._client = client
        self._id = container
        self._folder = folder
        self._limits = limits
        self._scanner = OutputScanner(nonce, PLACES)
        self._on_output = on_output
        self._started: datetime | None = None
        self._begun = asyncio.Event()
        self._closed = asyncio.Event()
        self._signalled = False
        attachment.listen(self._receive, self._close)

    @property
    def id(self) -> str:
        """The engine's full id."""
        return self._id

    @property
    def started(self) -> datetime:
        """When the job's own process was started (UTC, by the init's clock)."""
        if self._started is None:
            raise RuntimeError("asked before the job began")
        return self._started

    async def begun(self) -> None:
        """Return when the job's process was started. Raises `EngineError` when it will not be."""
        try:
            async with asyncio.timeout(_BEGIN_LIMIT):
                await self._begun.wait()
        except TimeoutError:
            raise EngineError(f"the init did not start the job within {_BEGIN_LIMIT:.0f} s") from None
        if self._started is None:
            raise await self._stillborn()

    async def wait(self) -> Exit:
        """Return once the job has ended and its output was handed over. May be awaited again after cancellation.

        Raises nothing: an engine that is away is waited for.
        """
        await self._closed.wait()
        report = self._scanner.report
        return await (self._reported(report) if report is not None else self._unreported())

    async def terminate(self) -> None:
        """Send SIGTERM to all processes of the job. Raises `EngineError` when the engine does not do it."""
        if not self._closed.is_set() or self._scanner.report is None:
            await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL to all processes of the job. Raises `EngineError` when the engine does not do it.

        The init is asked first, so that it can report; the engine kills the init only if that takes too long.
        """
        if not self._closed.is_set():
            await self._signal(KILL_SIGNAL)
            try:
                async with asyncio.timeout(_KILL_PATIENCE):
                    await self._closed.wait()
            except TimeoutError:
                pass
        if self._scanner.report is None:
            await self._signal(signal.SIGKILL)

    def progress(self) -> bytes | None:
        """What the job has written to `JOB_PROGRESS_FILE`, up to one byte more than allowed; None while it is empty."""
        return self._folder.progress()

    def _receive(self, stream: int, data: bytes) -> None:
        if stream == _STDOUT:
            self._hand_over(Stream.OUT, self._scanner.feed_stdout(data))
        elif stream == _STDERR:
            self._hand_over(Stream.ERR, self._scanner.feed_stderr(data))
        if self._started is None and self._scanner.started is not None:
            self._started = self._scanner.started
            self._begun.set()
        if self._scanner.complete:
            self._closed.set()

    def _close(self) -> None:
        if not self._closed.is_set():
            self._hand_over(Stream.OUT, self._scanner.flush_stdout())
            self._hand_over(Stream.ERR, self._scanner.flush_stderr())
        self._begun.set()
        self._closed.set()

    def _hand_over(self, stream: Stream, data: bytes) -> None:
        if data:
            self._on_output(stream, data)

    async def _reported(self, report: Report) -> Exit:
        end = ending.reported(
            report, disk=self._limits.disk, output=self._folder.output(), complete=self._scanner.complete
        )
        if report.oom_kills is None and end.code != 0:
            end = replace(end, oom_kills=await self._engine_saw_oom())
        return await self._held(end)

    async def _unreported(self) -> Exit:
        """The end as the engine knows it, as soon as it does."""
        away, pause = False, 0.1
        while True:
            try:
                state = await self._ended_state()
                if state is None:
                    return Exit(lost="its container was removed from outside", output=self._folder.output())
                if ending.over(state):
                    return await self._judged(state, away=away)
            except EngineError as error:
                away = away or isinstance(error, EngineGone)
                _LOG.warning("a container's end is not known yet", extra={"container": self._id, "problem": str(error)})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _judged(self, state: Mapping[str, Any], *, away: bool) -> Exit:
        end = ending.inspected(state, output=self._folder.output())
        unexplained = not self._signalled and not end.oom_kills
        if away and unexplained and int(state["ExitCode"]) in _LOST_CODES:
            return _lost(end)
        return await self._held(end)

    async def _ended_state(self) -> Mapping[str, Any] | None:
        """The container's state after waiting for its end, at most a minute; None if there is no container."""
        await self._client.wait(self._id)
        found = await self._client.inspect(self._id)
        return None if found is None else found["State"]

    async def _engine_saw_oom(self) -> int:
        """What the engine knows about OOM kills; its word counts only after its `wait`."""
        try:
            state = await self._ended_state()
        except EngineError:
            return 0
        return 1 if state is not None and state.get("OOMKilled") else 0

    async def _held(self, end: Exit) -> Exit:
        """Watch the engine for a moment if it may have ended the job: before it goes down, it stops all containers."""
        if self._signalled or not ending.stopped_from_outside(end):
            return end
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _HOLD
        while loop.time() < deadline:
            try:
                await self._client.ping()
                if self._scanner.report is None and await self._engine_saw_oom():  # this flag can come late
                    return replace(end, oom_kills=1)
            except EngineGone:
                return _lost(end)
            except EngineError:
                pass
            await asyncio.sleep(_HOLD_STEP)
        return end

    async def _signal(self, number: int) -> None:
        self._signalled = True
        for tries_left in reversed(range(_KILL_TRIES)):
            try:
                return await self._client.signal(self._id, number)
            except EngineGone:
                if not tries_left:
                    raise
                await asyncio.sleep(_HOLD_STEP)
        return None

    async def _stillborn(self) -> EngineError:
        found = await self._client.inspect(self._id)
        if found is None:
            return EngineError("its container was removed before the job began")
        return EngineError(f"the init ended before it started the job: {found['State']}")


def _lost(end: Exit) -> Exit:
    return replace(end, code=None, signal=None, lost="the engine stopped, and the job with it")

"""A running job: its output, its end, and the ways to end it."""

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

from runner.adapters.docker import ending
from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.cgroup import usage
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import places
from runner.adapters.docker.ending import Disagreement
from runner.adapters.docker.excess import Excess
from runner.adapters.docker.files import JobFolder
from runner.adapters.docker.replay import STDERR, STDOUT, Replay, Tally
from runner.errors import EngineError, EngineGone, NeverStarted
from runner.flag import Flag
from runner.init.binary import KILL_SIGNAL
from runner.init.wire import OutputScanner, Report
from runner.job import Bytes, Exit, Limits, Stream, Usage
from runner.ports import OnOutput

_LOG = logging.getLogger(__name__)

_BEGIN_LIMIT = 60.0
_RESUME_TRIES = 10
_RESUME_PAUSE = 0.2
_KILL_PATIENCE = 2.0
_HOLD = 3.0
_HOLD_STEP = 0.5
_LONGEST_PAUSE = 5.0
_KILL_TRIES = 3
_SECOND_OPINION = 2.0

# The ways that a container ends when the engine, or the machine under it, goes down.
_LOST_CODES = frozenset({ending.SIGNAL_BASE + signal.SIGKILL, ending.SIGNAL_BASE + signal.SIGTERM, 255})


class DockerContainer:
    """One job in one container. Implements `runner.ports.Container`.

    The init's report in the output is the end of the job. The output comes over the attachment; where that broke, or
    an earlier life had it, it is read from the engine's log, and the engine is asked for the end as well, again and
    again, until either tells it.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        container: str,
        attachment: Attachment | None,
        folder: JobFolder,
        limits: Limits,
        excess: Excess,
        nonce: bytes,
        on_output: OnOutput,
        warm: bool = False,
    ) -> None:
        self.warm = warm
        self._client = client
        self._id = container
        self._folder = folder
        self._limits = limits
        self._excess = excess
        self._used = Usage()  # as the host told it last
        self._scanner = OutputScanner(nonce, places(limits))
        self._on_output = on_output
        self._heard = Tally()
        self._replay = Replay(client, container, self._heard, self._receive)
        self._started: datetime | None = None
        self._ended: datetime | None = None
        self._begun = Flag()
        self._told = Flag()  # the init has told the end, on both streams
        self._settled = Flag()  # … or the attachment brings no more
        self._detached = Flag()  # the attachment brings no more
        self._signalled = False
        self._killed = False  # by the engine, the init included
        self._unwatched = False  # the engine may have stopped the job while nobody saw it go
        self._replayed = False
        self._whole = True  # nothing is known to be missing from the beginning
        self._attachment = attachment
        if attachment is None:
            self._settled.set()
            self._detached.set()
        else:
            attachment.listen(self._receive, self._detach)

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

    @property
    def ended(self) -> datetime | None:
        """When the job ended (UTC, by the init's clock), as soon as that is known."""
        report = self._scanner.report
        return report.ended if report is not None else self._ended

    async def begun(self) -> None:
        """Return when the job's process was started. Raises `EngineError` when it will not be."""
        try:
            async with asyncio.timeout(_BEGIN_LIMIT):
                await self._begun.wait()
        except TimeoutError:
            raise EngineError(f"the init did not start the job within {_BEGIN_LIMIT:.0f} s") from None
        if self._started is None:
            raise await self._stillborn()

    async def resume(self, began: datetime) -> None:
        """Catch up with a job that an earlier life started; `began` is when its container was.

        May be called again when it has failed. Raises `NeverStarted` when there is no job to go on with.
        """
        self._replayed = True
        for tries_left in reversed(range(_RESUME_TRIES)):
            found = await self._client.inspect(self._id)
            state = {} if found is None else found["State"]
            await self._replay.catch_up()
            if self._started is None and self._ran(state, patient=tries_left > 0):
                self._started, self._whole = began, False  # the beginning of a long log is gone
            if self._started is not None:
                return self._note_end(state)
            if state.get("Status") != "running":
                break
            await asyncio.sleep(_RESUME_PAUSE)
        raise NeverStarted("the daemon ended before the job was started")

    async def wait(self) -> Exit:
        """Return once the job has ended and its output was handed over. May be awaited again after cancellation.

        Raises nothing: an engine that is away is waited for.
        """
        await self._settled.wait()
        state: Mapping[str, Any] | None = None
        if self._replayed or not self._told.is_set():
            self._replayed = True
            state = await self._see_out()
            await self._read_rest()
        end = self._with_results(await self._end(state))
        if end.code == 0 and self._folder.out_of_reach:
            end = _lost(end, "its results cannot be reached: the place in memory that it wrote them to is gone")
        if self._folder.swollen:
            await asyncio.to_thread(self._folder.trim)  # its removal may take the engine a while
        return end

    async def _end(self, state: Mapping[str, Any] | None) -> Exit:
        if (report := self._scanner.report) is not None:
            return await self._reported(report)
        if state is None:
            lost = "its container was removed from outside"
            return Exit(lost=lost, usage=self._usage(), output=self._folder.output())
        return await self._judged(state)

    def _with_results(self, end: Exit) -> Exit:
        """The end of a job whose output and progress count as its memory, told so where they filled it."""
        if self._folder.on_disk:
            return end
        report = self._scanner.report
        filled = report.places if report is not None else ()
        return ending.with_results(end, filled, self._folder.taken(), self._limits.disk)

    async def terminate(self) -> None:
        """Send SIGTERM to all processes of the job. Raises `EngineError` when the engine does not do it."""
        if not self._told.is_set():
            await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL to all processes of the job. Raises `EngineError` when the engine does not do it.

        The init is asked first, so that it can report; the engine kills the init only if that takes too long.
        """
        if not self._told.is_set():
            await self._signal(KILL_SIGNAL)
            try:
                async with asyncio.timeout(_KILL_PATIENCE):
                    await self._told.wait()
            except TimeoutError:
                pass
        if self._scanner.report is None:
            self._killed = True
            self._used = usage(self._id)  # the init will not report, and afterwards nobody knows
            await self._signal(signal.SIGKILL)

    def let_go(self) -> None:
        """Nothing is to be told any more: the container may end. Until then it stays, though its job has ended."""
        if self._attachment is not None:
            self._attachment.end_input()

    async def disagreements(self) -> list[Disagreement]:
        """In what the engine contradicts the init's report, if it knows the end soon; nothing where there was none."""
        self.let_go()
        report = self._scanner.report
        if report is None or self._killed:
            return []
        try:
            async with asyncio.timeout(_SECOND_OPINION):
                await self._detached.wait()  # comes about when the engine hears of the end, and costs nothing
                state = await self._state()
                if state is not None and not ending.over(state):
                    state = await self._ended_state()
            return ending.disagreements(report, state) if state is not None and ending.over(state) else []
        except (TimeoutError, EngineError, KeyError, TypeError, ValueError):
            return []  # a second opinion, and nobody may wait for it

    def progress(self) -> bytes | None:
        """What the job has written to `JOB_PROGRESS_FILE`, up to one byte more than allowed; None while it is empty."""
        return self._folder.progress()

    @property
    def may_exceed(self) -> bool:
        """Whether `excess` might find anything now: for most jobs, only when one of their files is large."""
        return self._excess.possible

    async def excess(self) -> str | None:
        """What the job has written too much of, in words, where only looking bounds it; None if nothing."""
        return await self._excess.found()

    def _receive(self, stream: int, data: bytes) -> None:
        self._heard.add(stream, data)
        if stream == STDOUT:
            self._hand_over(Stream.OUT, self._scanner.feed_stdout(data))
        elif stream == STDERR:
            self._hand_over(Stream.ERR, self._scanner.feed_stderr(data))
        if self._started is None and self._scanner.started is not None:
            self._started = self._scanner.started
            self._begun.set()
        if self._scanner.complete:
            self._told.set()
            self._settled.set()

    def _detach(self) -> None:
        self._begun.set()
        self._settled.set()
        self._detached.set()

    def _hand_over(self, stream: Stream, data: bytes) -> None:
        if data:
            self._on_output(stream, data)

    def _ran(self, state: Mapping[str, Any], *, patient: bool) -> bool:
        """Whether there was a job, though its start record is not there; `patient`: that may only be late."""
        wrote = self._heard.counts[STDOUT] + self._heard.counts[STDERR] > 0
        return self._scanner.report is not None or (wrote and not patient and state.get("Status") == "running")

    def _note_end(self, state: Mapping[str, Any]) -> None:
        if ending.over(state):
            self._unwatched = True
            self._ended = datetime.fromisoformat(state["FinishedAt"])

    async def _see_out(self) -> Mapping[str, Any] | None:
        """Follow the engine's log until it has the init's word, or the engine knows the end: its word, if so."""
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(self._told.wait())
            asking = tasks.create_task(self._ask())
            following = tasks.create_task(self._follow())
            try:
                await asyncio.wait({told, asking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (told, asking, following):
                    task.cancel()
        return None if asking.cancelled() else asking.result()

    async def _follow(self) -> NoReturn:
        pause = 0.1
        while True:
            try:
                await self._replay.catch_up(follow=True)
            except EngineError as error:
                _LOG.warning("a container's log cannot be read", extra={"container": self._id, "problem": str(error)})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _ask(self) -> Mapping[str, Any] | None:
        """The state that the container ended in, as soon as the engine knows it; None if there is no container."""
        pause = 0.1
        while True:
            try:
                state = await self._ended_state()
                if state is None or ending.over(state):
                    return state
                self._unwatched = False
            except EngineError as error:
                self._unwatched = self._unwatched or isinstance(error, EngineGone)
                _LOG.warning("a container's end is not known yet", extra={"container": self._id, "problem": str(error)})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _read_rest(self) -> None:
        """Make the pass that misses nothing, and shows whether anything was missed before."""
        try:
            await self._replay.catch_up()
        except EngineError as error:
            _LOG.warning("a container's log is incomplete", extra={"container": self._id, "problem": str(error)})
        self._hand_over(Stream.OUT, self._scanner.flush_stdout())
        self._hand_over(Stream.ERR, self._scanner.flush_stderr())

    @property
    def _complete(self) -> bool:
        proven = self._replay.exact and self._whole if self._replayed else True
        return self._scanner.complete and proven

    async def _reported(self, report: Report) -> Exit:
        end = ending.reported(report, disk=self._limits.disk, output=self._folder.output(), complete=self._complete)
        if report.oom_kills is None and end.code != 0:
            self.let_go()
            end = replace(end, oom_kills=await self._engine_saw_oom())
        if ending.killed_by_host(end, Bytes(self._limits.memory + self._limits.disk)):
            return _lost(end, "its worker ran out of memory")
        return await self._held(end, report)

    async def _judged(self, state: Mapping[str, Any]) -> Exit:
        end = ending.inspected(state, used=self._usage(), output=self._folder.output())
        unexplained = not self._signalled and not end.oom_kills
        if self._unwatched and unexplained and int(state["ExitCode"]) in _LOST_CODES:
            return _lost(end)
        return await self._held(end)

    def _usage(self) -> Usage:
        """What the host tells of a container whose init did not, now or before it was killed."""
        now = usage(self._id)
        return Usage(
            cpu_seconds=self._used.cpu_seconds if now.cpu_seconds is None else now.cpu_seconds,
            memory_peak_bytes=self._used.memory_peak_bytes if now.memory_peak_bytes is None else now.memory_peak_bytes,
        )

    async def _ended_state(self) -> Mapping[str, Any] | None:
        """The container's state after waiting for its end, at most a minute; None if there is no container."""
        await self._client.wait(self._id)
        return await self._state()

    async def _state(self) -> Mapping[str, Any] | None:
        found = await self._client.inspect(self._id)
        return None if found is None else found["State"]

    async def _engine_saw_oom(self) -> int:
        """What the engine knows about OOM kills; its word counts only after its `wait`."""
        try:
            state = await self._ended_state()
        except EngineError:
            return 0
        return 1 if state is not None and state.get("OOMKilled") else 0

    async def _held(self, end: Exit, report: Report | None = None) -> Exit:
        """Watch the engine for a moment if it may have ended the job: before it goes down, it stops all containers."""
        if self._signalled or not ending.stopped_from_outside(end, report):
            return end
        if self._unwatched:
            return _lost(end)
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


def _lost(end: Exit, why: str = "the engine stopped, and the job with it") -> Exit:
    return replace(end, code=None, signal=None, lost=why)

"""The real init as PID 1 of a new PID namespace, without an engine: what the tests of the init talk to."""

import array
import fcntl
import os
import selectors
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from runner.init.wire import Description, OutputScanner, Report

LIMIT = 30.0
"""Seconds after which anything that did not happen is a failure."""
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
IS_ROOT = os.geteuid() == 0

_AS_USER = () if IS_ROOT else ("--user", "--map-root-user")
_NAMESPACE = ("unshare", *_AS_USER, "--pid", "--fork", "--mount-proc", "--kill-child")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Words before the init's: it and the job lack every capability, as in a container."""
AS_NOBODY = (*WITHOUT_CAPABILITIES, *(("--reuid", "65534", "--regid", "65534", "--clear-groups") if IS_ROOT else ()))
"""And they are not root, where the tests have another user to be."""


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def describe(
    argv: Iterable[str],
    *,
    env: Mapping[str, str] = ENV,
    cwd: str = "/",
    timeout: timedelta = timedelta(seconds=60),
    rlimits: Mapping[int, int] | None = None,
    places: tuple[str, ...] = (),
) -> Description:
    # No core files in anybody's folder, whatever kills the job.
    limits = {4: 0, **(rlimits or {})}
    nonce = os.urandom(32)
    return Description(nonce=nonce, argv=tuple(argv), env=env, cwd=cwd, timeout=timeout, rlimits=limits, places=places)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What is left when the init has exited."""

    stdout: bytes
    stderr: bytes
    raw_stdout: bytes
    started: datetime | None
    report: Report | None
    complete: bool
    code: int

    @property
    def told(self) -> Report:
        """The report, which has to be there."""
        assert self.report is not None, self
        assert self.complete, self
        return self.report


class Pid1:
    """One init. A context manager: nothing of it is left behind, however the test ends."""

    def __init__(self, binary: Path, *, wrap: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [*_NAMESPACE, *wrap, str(binary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=pass_fds,
        )
        self.stdin, self.stdout, self.stderr = (
            _there(stream) for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._raw = {self.stdout: bytearray(), self.stderr: bytearray()}
        self._own = {self.stdout: bytearray(), self.stderr: bytearray()}
        self._scanner = OutputScanner(os.urandom(32), ())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(LIMIT)
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()

    def start(self, job: Description, stdin: bytes = b"") -> None:
        """Hand the job over, with its input behind it in the same write where the pipe can hold it."""
        self.expect(job)
        self.send(job.encode() + stdin)
        self.stdin.close()

    def expect(self, job: Description) -> None:
        """Look for that job's records in what comes."""
        self._scanner = OutputScanner(job.nonce, job.places)

    def send(self, data: bytes) -> None:
        """Write all of it, reading along so that neither side waits for the other."""
        os.set_blocking(self.stdin.fileno(), False)
        rest = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdin, selectors.EVENT_WRITE)
            for stream in self._open_streams():
                selector.register(stream, selectors.EVENT_READ)
            while rest:
                for key, _ in self._select(selector):
                    if key.fileobj is self.stdin:
                        rest = rest[os.write(self.stdin.fileno(), rest[:65536]) :]
                    elif not self._read(key.fileobj):
                        selector.unregister(key.fileobj)

    def send_alone(self, data: bytes) -> None:
        """Write it, and return when the init has read it: what is sent next comes with another read."""
        os.write(self.stdin.fileno(), data)
        eventually(lambda: _unread(self.stdin) == 0)

    def read_until(self, text: bytes, *, stderr: bool = False) -> None:
        """Read until the job has written that."""
        stream = self.stderr if stderr else self.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while text not in self._own[stream]:
                self._select(selector)
                assert self._read(stream), f"ended before {text!r}: {self._own}"

    def read_report(self) -> None:
        """Read until all is told."""
        with selectors.DefaultSelector() as selector:
            for stream in self._open_streams():
                selector.register(stream, selectors.EVENT_READ)
            while not self._scanner.complete:
                for key, _ in self._select(selector):
                    assert self._read(key.fileobj), "ended before its report"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """The init's, as it is known out here, once there is one."""
        found: list[str] = []

        def forked() -> bool:
            found.extend(self._children(self._process.pid))
            return found != []

        eventually(forked)
        return int(found[0])

    @property
    def job_processes(self) -> list[str]:
        """The init's children."""
        return self._children(self.pid)

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def finish(self) -> End:
        """Read both streams to their end and wait for the exit."""
        with selectors.DefaultSelector() as selector:
            for stream in self._open_streams():
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in self._select(selector):
                    if not self._read(key.fileobj):
                        selector.unregister(key.fileobj)
        self._own[self.stdout] += self._scanner.flush_stdout()
        self._own[self.stderr] += self._scanner.flush_stderr()
        return End(
            stdout=bytes(self._own[self.stdout]),
            stderr=bytes(self._own[self.stderr]),
            raw_stdout=bytes(self._raw[self.stdout]),
            started=self._scanner.started,
            report=self._scanner.report,
            complete=self._scanner.complete,
            code=self._process.wait(LIMIT),
        )

    def _open_streams(self) -> list[IO[bytes]]:
        return [stream for stream in (self.stdout, self.stderr) if not stream.closed]

    def _read(self, stream: object) -> bool:
        assert stream is self.stdout or stream is self.stderr
        data = os.read(stream.fileno(), 65536)
        self._raw[stream] += data
        feed = self._scanner.feed_stdout if stream is self.stdout else self._scanner.feed_stderr
        self._own[stream] += feed(data)
        return data != b""

    @staticmethod
    def _select(selector: selectors.BaseSelector) -> list[tuple[selectors.SelectorKey, int]]:
        ready = selector.select(LIMIT)
        assert ready, "nothing came"
        return ready

    @staticmethod
    def _children(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def eventually(happened: Callable[[], bool]) -> None:
    """Return once it has happened."""
    limit = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        os.sched_yield()


def run(binary: Path, job: Description, stdin: bytes = b"", *, wrap: Sequence[str] = ()) -> End:
    """One job from its start to its end."""
    with Pid1(binary, wrap=wrap) as init:
        init.start(job, stdin)
        return init.finish()


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _unread(pipe: IO[bytes]) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]

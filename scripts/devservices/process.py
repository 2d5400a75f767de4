"""A background process that outlives us, and that only we end: known by pid and start time, never by name."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STANDS_STILL_WITHIN = 30.0

# The shell records itself before it becomes the program, so that no moment exists in which nobody knows the pid.
_LAUNCH = (
    'record=$1 log=$2; shift 2; { cut -d" " -f1,22 "/proc/$$/stat"; cat /proc/sys/kernel/random/boot_id; } >"$record" '
    '&& exec "$@" </dev/null >>"$log" 2>&1'
)


class ServiceError(Exception):
    """A service could not be started or stopped; says why, and what to do where we know it."""


def as_root(*command: str) -> list[str]:
    """The command, with sudo before it when we are not root."""
    return list(command) if os.geteuid() == 0 else ["sudo", "-n", "--", *command]


def find_program(name: str) -> str:
    """The program's full path; looks into the system's folders too, which a user's PATH may lack."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    if found := shutil.which(name, path=path):
        return found
    raise ServiceError(f"{name} is not installed; `make setup` installs what is missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process. Its pid alone could be somebody else's by now; with its start time it cannot."""

    pid: int
    start_ticks: int

    @classmethod
    def find(cls, pid: int) -> "Process | None":
        """The process that has this pid now."""
        stat = _stat(pid)
        return cls(pid=pid, start_ticks=int(stat[19])) if stat else None

    @classmethod
    def read(cls, record: Path) -> "Process | None":
        """The process that was recorded, if it still runs."""
        try:
            pid, start_ticks, boot_id = record.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        process = cls(pid=int(pid), start_ticks=int(start_ticks))
        return process if boot_id == _BOOT_ID.read_text().strip() and process.alive() else None

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] not in "ZX" and int(stat[19]) == self.start_ticks

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if not self.alive():
            return
        try:
            os.kill(self.pid, number)
        except PermissionError:
            subprocess.run(as_root("kill", f"-{number.value}", str(self.pid)), check=False, capture_output=True)
        except ProcessLookupError:
            pass

    async def suspend(self) -> None:
        """Send SIGSTOP, and return when every thread stands still: until then any of them may still answer somebody.

        Raises `ServiceError` when the process is gone, or does not stand still within 30 s.
        """
        self.send(signal.SIGSTOP)
        try:
            async with asyncio.timeout(_STANDS_STILL_WITHIN):
                while any(state not in "TXZ" for state in self._thread_states()):  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise ServiceError(f"process {self.pid} does not stand still after {_STANDS_STILL_WITHIN:g} s") from None
        if not self.alive():
            raise ServiceError(f"process {self.pid} has ended; it cannot be suspended")

    def _thread_states(self) -> list[str]:
        threads = (_stat(int(thread.name), of=self.pid) for thread in Path(f"/proc/{self.pid}/task").glob("[0-9]*"))
        return [stat[0] for stat in threads if stat]

    async def end(self, *, grace: float) -> None:
        """Ask it to end, make it end after `grace` seconds, and return when it is gone."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        if not await self.gone(grace):
            self.send(signal.SIGKILL)
            await self.gone(grace)

    async def gone(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; says whether it came."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            if not self.alive():
                return True
            loop.add_reader(handle, ended.set)
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            loop.remove_reader(handle)
            os.close(handle)


def launch(
    program: Sequence[str], *, record: Path, log: Path, env: Mapping[str, str] | None = None, root: bool = False
) -> Process:
    """Start a program in a session of its own, its output appended to `log`, and write down who it is.

    Blocks for the few milliseconds in which a cancellation would lose the process.
    """
    command = ["setsid", "--fork", "sh", "-c", _LAUNCH, "sh", str(record), str(log), *program]
    # The pipe closes when the program has replaced the shell: until then there is nothing to read the record for.
    child = subprocess.run(
        as_root(*command) if root else command,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process = Process.read(record)
    if process is None:
        raise ServiceError(f"{program[0]} did not start: {child.stdout.strip()}{log_tail(log)}")
    return process


def log_tail(log: Path) -> str:
    """The end of a log, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-12:]
    except OSError:
        return ""
    return "\n".join([f"\nthe last lines of {log}:", *(f"  {line}" for line in lines)])


def _stat(pid: int, *, of: int | None = None) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the third on; the second may contain anything. `of`: the thread's process."""
    task = f"/proc/{pid}" if of is None else f"/proc/{of}/task/{pid}"
    try:
        return Path(task, "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None

"""Scratch disks: for each job that asks for one, a file system of its own on the host's disk.

It lies in a file without a name whose space is reserved as a whole, so that a job finds its limit in bytes and in
files, and nothing else on that disk can feel what the job does or keep it from writing. docs/disk.md has the reasons.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runner.adapters.docker.loop import LoopDevice, attach
from runner.job import Bytes

_LIMIT = 60.0
_SYSTEM = "/usr/sbin:/sbin:/usr/bin:/bin"
_PROBE = Bytes(2**20)
_PACKAGES = {"fallocate": "util-linux", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"}
_FEATURES = "^has_journal,^resize_inode"
"""Nobody reads it after a crash, and it never grows."""
_PER_FILE = 16384
_READY = "rmdir lost+found\nset_inode_field <2> mode 040777\n"
"""Nobody but the job comes here, whatever its uid is to the host."""


@dataclass(slots=True)
class ScratchDisks:
    """Makes the disks in a folder of the host, and knows how much of it the living ones hold."""

    folder: Path
    _held: dict[str, Bytes] = field(default_factory=dict)

    @property
    def held(self) -> Bytes:
        """What all disks that are not forgotten take of the host's disk."""
        return Bytes(sum(self._held.values()))

    async def make(self, name: str, size: Bytes, *, uid: int, gid: int) -> LoopDevice:
        """An empty disk of that size, to be mounted as ext4, and closed when it is. Raises `OSError`."""
        descriptor = os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            file = f"/proc/self/fd/{descriptor}"
            await _run(descriptor, "fallocate", "--length", str(size), file)
            self.note(name, size)
            owner = f"lazy_itable_init=1,nodiscard,root_owner={uid}:{gid}"
            form = ("-q", "-F", "-t", "ext4", "-b", "4096", "-i", str(_PER_FILE), "-m", "0")
            await _run(descriptor, "mke2fs", *form, "-O", _FEATURES, "-E", owner, file)
            await _run(descriptor, "debugfs", "-w", "-f", "-", file, told=_READY)
            return await attach(descriptor)
        finally:
            os.close(descriptor)

    def note(self, name: str, size: Bytes) -> None:
        """There is such a disk, maybe from an earlier life of the daemon."""
        if size:
            self._held[name] = size

    def forget(self, name: str) -> None:
        """The disk is gone, if there was one."""
        self._held.pop(name, None)

    async def fault(self) -> str | None:
        """Why no disk can be made here, and what to do; None when one was made and given back."""
        try:
            disk = await self.make("", _PROBE, uid=0, gid=0)
        except OSError as error:
            return f"{error}; see docs/disk.md" if isinstance(error, MissingProgram) else _remedy(error)
        finally:
            self.forget("")
        disk.close()
        return None


class MissingProgram(OSError):
    """A program that makes disks is not installed."""


def _remedy(error: OSError) -> str:
    device = str(error.filename or "").startswith("/dev/")
    hint = "let the daemon's user open the loop devices" if device else "worker.state_dir may not suit"
    return f"{error}; {hint} (docs/disk.md)"


async def _run(descriptor: int, program: str, *words: str, told: str = "") -> None:
    """Run a program on the open file. Raises `OSError` with what it said when it fails or takes too long."""
    path = shutil.which(program, path=_SYSTEM)
    if path is None:
        raise MissingProgram(f"{program} is missing: install {_PACKAGES[program]}")
    with _pipe(told) as stdin:
        process = await asyncio.create_subprocess_exec(
            path,
            *words,
            pass_fds=(descriptor,),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": _SYSTEM, "LC_ALL": "C"},
        )
    try:
        async with asyncio.timeout(_LIMIT):
            said, _ = await process.communicate()
    except TimeoutError:
        raise OSError(f"{program} took more than {_LIMIT:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"{program} ended with code {process.returncode}")


@contextmanager
def _pipe(text: str) -> Iterator[int]:
    """A descriptor to read a short text from; the loop's own pipes fail when a program ends without reading."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode())
        os.close(writer)
        yield reader
    finally:
        os.close(reader)

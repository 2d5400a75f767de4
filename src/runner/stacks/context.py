"""Packs a stack's folder for the engine to build from: the same bytes for the same content."""

import asyncio
import os
import signal
import tarfile
from pathlib import Path
from typing import BinaryIO

from runner.stacks.file import FILE
from runner.stacks.images import BuildError, Say

PREPARE = "prepare"
"""An executable beside the Dockerfile that brings what the build needs from outside the folder."""

_OURS = frozenset({FILE, PREPARE})


async def prepare(folder: Path, into: Path, say: Say) -> None:
    """Run the stack's `prepare`, if it has one, with the folder `into` to put files in. Raises `BuildError`."""
    script = folder / PREPARE
    if not script.exists():
        return
    try:
        process = await asyncio.create_subprocess_exec(
            script.resolve(),
            into,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{script} cannot be run: {error.strerror}; make it executable (chmod +x)") from None
    try:
        if process.stdout is not None:
            async for line in process.stdout:
                say(line.decode(errors="replace").rstrip())
        code = await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        raise BuildError(f"{script} failed with exit code {code}; its last lines say why")


def pack(folder: Path, prepared: Path, into: BinaryIO) -> None:
    """Write a tar of the folder, without our own files, and of what was prepared, which goes first where both have it.

    Owners and times are left out of it. Of the folder's modes only the executable bit counts, because that is all
    that version control keeps; the modes of what was prepared are deliberate, and stay.
    """
    entries = {name: (path, False) for name, path in _walk(folder) if name not in _OURS}
    entries |= {name: (path, True) for name, path in _walk(prepared)}
    with tarfile.open(fileobj=into, mode="w") as tar:
        for name, (path, exact) in sorted(entries.items()):
            member = tar.gettarinfo(path, name)
            _make_same(member, exact=exact)
            if member.isreg():
                with path.open("rb") as content:
                    tar.addfile(member, content)
            else:
                tar.addfile(member)


def _walk(folder: Path) -> list[tuple[str, Path]]:
    """All that is in the folder, links not followed, by the name that it has there."""
    found = []
    for parent, folders, files in os.walk(folder):
        found += [Path(parent) / name for name in (*folders, *files)]
    # No image can have a socket.
    return [(str(path.relative_to(folder)), path) for path in found if not path.is_socket()]


def _make_same(member: tarfile.TarInfo, *, exact: bool) -> None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    if not exact and not member.issym():
        member.mode = 0o755 if member.isdir() or member.mode & 0o111 else 0o644

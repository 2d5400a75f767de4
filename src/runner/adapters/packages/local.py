"""Packages in a folder of this machine (`file:///folder/…`)."""

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from runner.adapters.packages.download import Download
from runner.adapters.packages.tree import GoOn
from runner.errors import DeferredError, RejectedError
from runner.sources import Source

_CHUNK = 1 << 18
_BENEATH = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy(source: Source, folder: Source, download: Download, go_on: GoOn) -> None:
    """Take a file that lies beneath one of the allowed folders.

    Raises `RejectedError` when it cannot be had, `DeferredError` when the folder itself is not there.
    """
    with _open(source, Path(folder.plain_path), source.plain_path.removeprefix(folder.plain_path)) as file:
        download.expect(os.fstat(file.fileno()).st_size)
        while chunk := file.read(_CHUNK):
            go_on()
            download.write(chunk)


def _open(source: Source, folder: Path, name: str) -> BinaryIO:
    """Open a file name by name from the folder on, so that no link on the way is followed; there is no `..` in it."""
    with ExitStack() as stack:
        try:
            here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise DeferredError(f"this worker cannot open {folder} of code.allow: {error.strerror}") from error
        stack.callback(os.close, here)
        *folders, last = [part for part in name.split("/") if part] or ["."]
        try:
            for part in folders:
                here = os.open(part, _BENEATH | os.O_DIRECTORY, dir_fd=here)
                stack.callback(os.close, here)
            file = os.open(last, _BENEATH | os.O_NONBLOCK, dir_fd=here)
        except OSError as error:
            why = f"{error.strerror} (links are not followed)"
            raise RejectedError(f"code.url: {source} cannot be opened: {why}") from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise RejectedError(f"code.url: {source} is no file")
        return os.fdopen(file, "rb")

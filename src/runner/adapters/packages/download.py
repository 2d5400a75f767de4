"""The file that a package's archive is put into: never longer than allowed, and in the end what was promised."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from runner.errors import RejectedError
from runner.sources import Source
from runner.units import format_size


class Download:
    """Takes an archive piece by piece. A context manager; `finish` has the last word."""

    def __init__(self, path: Path, *, source: Source, sha256: str, most: int, check_room: Callable[[], None]) -> None:
        """`check_room` is called before each piece is written, and raises what is to end it."""
        self._source = source
        self._sha256 = sha256
        self._most = most
        self._check_room = check_room
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def expect(self, size: int | None) -> None:
        """So much will come, as far as anybody knows. Raises `RejectedError` when it is too much."""
        if size is not None and size > self._most:
            most = format_size(self._most)
            raise RejectedError(f"code.url: {self._source} has more than {most}, the most here (code.max_bytes)")

    def write(self, data: bytes) -> None:
        """Take the next piece.

        Raises `RejectedError` when there are too many, what `check_room` raises, `OSError` when the disk fails us.
        """
        self._size += len(data)
        self.expect(self._size)
        self._check_room()
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """All is here. Raises `RejectedError` when it is not what was promised."""
        self._file.flush()
        found = self._digest.hexdigest()
        if found != self._sha256:
            raise RejectedError(
                f"code.sha256: the {self._size} bytes at {self._source} have {found}; name that, or them"
            )

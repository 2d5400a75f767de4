"""The folder that an archive is unpacked into: what may be in it, and how much."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from runner.errors import RejectedError
from runner.units import format_size

ENTRIES_MAX = 100_000
"""The most files, folders and links that a package may have."""
PATH_MAX = 1024
"""The most bytes of an entry's path, or of a link's target."""
NAME_MAX = 255
"""The most bytes of one name in a path; file systems take no more."""
DEPTH_MAX = 100
"""The most names in one path; whoever removes a tree has as many folders open at once."""
_HOPS_MAX = 40
"""Links that may stand in the way of one link; the kernel follows no more."""
_BLOCK = 4096
_SHOWN = 200

GoOn = Callable[[], None]
"""Called every now and then; raises what is to end the work."""


class _Kind(Enum):
    FOLDER = auto()
    FILE = auto()
    LINK = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much a package is: its bytes on disk, and its files, folders and links."""

    size: int
    entries: int


class Tree:
    """Takes an archive's entries one by one, and refuses those that a package must not have.

    Whatever is wrong raises `RejectedError` that names the entry. No path ever goes through a link: links are made
    last, by `finish`, when it is known that each of them stays inside.
    """

    def __init__(self, folder: Path, *, most: int, go_on: GoOn) -> None:
        """`folder` is there, empty and ours alone; `most` bounds what the tree takes on disk, in blocks of 4 KiB."""
        self._folder = folder
        self._most = most
        self._go_on = go_on
        self._kinds: dict[str, _Kind] = {"": _Kind.FOLDER}
        self._links: dict[str, str] = {}
        self.size = 0
        """Bytes on disk so far."""

    def add_folder(self, name: str) -> None:
        """Make a folder; one that is there already stays."""
        path = self._path(name)
        if self._kinds.get(path) is not _Kind.FOLDER:
            self._claim(name, path, _Kind.FOLDER)
            self._make_folder(path)

    def add_file(self, name: str, chunks: Iterable[bytes], *, executable: bool) -> None:
        """Write a file."""
        path = self._path(name)
        self._claim(name, path, _Kind.FILE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._folder / path, flags, 0o600), "wb") as file:
            written = 0
            for chunk in chunks:
                self._go_on()
                written += len(chunk)
                self._check_size(name, written)
                file.write(chunk)
            self.size += _on_disk(written)
            os.fchmod(file.fileno(), 0o555 if executable else 0o444)

    def add_copy(self, name: str, target: str) -> None:
        """Write a second copy of a file that came before: what a hard link becomes."""
        original = self._path(target)
        if self._kinds.get(original) is not _Kind.FILE:
            raise refusal(name, f"is a hard link to {_shown(target)}, which is no file that came before it")
        with (self._folder / original).open("rb") as file:
            executable = bool(os.fstat(file.fileno()).st_mode & 0o111)
            self.add_file(name, iter(lambda: file.read(1 << 18), b""), executable=executable)

    def add_link(self, name: str, target: str) -> None:
        """Note a symbolic link."""
        path = self._path(name)
        _check_text(name, target, "is a link to")
        if not target or target.startswith("/"):
            raise refusal(name, f"is a link to {_shown(target)}; a link in a package has to be relative")
        self._claim(name, path, _Kind.LINK)
        self._links[path] = target

    def finish(self) -> Extent:
        """Make the links, once it is known where each of them leads; how much there is now."""
        for path in self._links:
            self._go_on()
            self._check_link(path)
        for path, target in self._links.items():
            (self._folder / path).symlink_to(target)
        return Extent(size=self.size, entries=len(self._kinds) - 1)

    def _path(self, name: str) -> str:
        """The path under the folder; "" is the folder itself."""
        _check_text(name, name, "has the name")
        if name.startswith("/"):
            raise refusal(name, "has an absolute path; paths in a package are relative")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise refusal(name, "has .. in its path, which may lead out of the package")
        if any(len(part.encode()) > NAME_MAX for part in parts):
            raise refusal(name, f"has a name of more than {NAME_MAX} bytes")
        if len(parts) > DEPTH_MAX:
            raise refusal(name, f"lies in more than {DEPTH_MAX - 1} folders")
        return "/".join(parts)

    def _claim(self, name: str, path: str, kind: _Kind) -> None:
        """Give the path to an entry of that kind, and make the folders on the way to it."""
        self._go_on()
        if path in self._kinds:
            raise refusal(name, "is there twice" if path else "is the package's own folder")
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            above = "/".join(parts[:depth])
            known = self._kinds.get(above)
            if known is None:
                self._count(name, above, _Kind.FOLDER)
                self._make_folder(above)
            elif known is not _Kind.FOLDER:
                raise refusal(name, f"lies in {_shown(above)}, which is no folder")
        self._count(name, path, kind)

    def _count(self, name: str, path: str, kind: _Kind) -> None:
        self._kinds[path] = kind
        if len(self._kinds) > ENTRIES_MAX:
            raise refusal(name, f"is one too many: a package may have {ENTRIES_MAX} files, folders and links")
        self._check_size(name, _BLOCK)
        self.size += _BLOCK

    def _check_size(self, name: str, more: int) -> None:
        if self.size + _on_disk(more) > self._most:
            most = format_size(self._most)
            raise refusal(name, f"makes the package larger than {most} on disk, the most here (code.max_bytes)")

    def _make_folder(self, path: str) -> None:
        folder = self._folder / path
        folder.mkdir(0o755)
        folder.chmod(0o755)  # whatever the umask is: the job is another user

    def _check_link(self, path: str) -> None:
        """Follow a link as the kernel would, without looking at any file."""
        here, todo, hops = path.split("/")[:-1], deque(self._links[path].split("/")), 0
        while todo:
            part = todo.popleft()
            if part == "..":
                if not here:
                    raise refusal(path, f"is a link to {_shown(self._links[path])}, which leads out of the package")
                here.pop()
            elif part not in ("", "."):
                here.append(part)
                if (further := self._links.get("/".join(here))) is not None:
                    hops += 1
                    if hops > _HOPS_MAX:
                        raise refusal(path, "is a link that goes round in a circle, or through too many others")
                    here.pop()
                    todo.extendleft(reversed(further.split("/")))


def refusal(name: str, why: str) -> RejectedError:
    """What is raised about an entry."""
    return RejectedError(f"code: the archive's entry {_shown(name)} {why}")


def damage(what: str) -> RejectedError:
    """What is raised about an archive that cannot be read."""
    return RejectedError(f"code: the archive {what}; pack it again")


def _check_text(name: str, text: str, what: str) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise refusal(name, f"{what} {_shown(text)}, which is not UTF-8") from None
    if "\0" in text:
        raise refusal(name, f"{what} {_shown(text)}, with a NUL in it")
    if length > PATH_MAX:
        raise refusal(name, f"{what} {_shown(text)}, of more than {PATH_MAX} bytes")


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")

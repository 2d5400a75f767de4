"""A job's files on the host, shown to the job under `/job`."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.errors import EngineError, EngineUnfit
from runner.job import OUTPUT_MAX, PROGRESS_MAX, Bytes, container_name, warm_name

PAYLOAD = "payload"
OUTPUT = "output"
PROGRESS = "progress"
SECRETS = "secrets"
CODE = "code"

_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

_BLOCK = 512
"""The unit of st_blocks, see stat(2)."""

_WARM = "warm-"

_IN_MEMORY = 0o1755
"""The mode of a folder whose job writes elsewhere. The bit marks it for later lives: no job can change it."""


def folder_of(container: str, worker: str) -> str:
    """The name of the folder that belongs to a container of that name: a claim, until then one of its own."""
    if container.startswith(prefix := warm_name(worker, "")):
        return _WARM + container.removeprefix(prefix)
    return container.removeprefix(container_name(worker, ""))


def container_of(folder: str, worker: str) -> str:
    """The name of the container that a folder of that name belongs to."""
    if folder.startswith(_WARM):
        return warm_name(worker, folder.removeprefix(_WARM))
    return container_name(worker, folder)


def write_hosts(path: Path) -> None:
    """See that the hosts file of jobs without a network is there, for all of them to read. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == _HOSTS:
            return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.write_bytes(_HOSTS)
    draft.chmod(0o444)
    draft.replace(path)


class JobFolder:
    """The folder of one container.

    Nobody on the host but this daemon can pass the parent; in the container nobody but the job is there to read. So
    the modes need not know the job's uid, and hold with user namespaces, too.
    """

    def __init__(self, path: Path, in_memory: Path | None = None) -> None:
        """`in_memory` is where the files are to be that the job may write; without it they are in the folder itself."""
        self.path = path
        self.in_memory = in_memory
        self._found: str | None = None

    @property
    def results(self) -> Path:
        """Where the files are that the job may write. It began, maybe, when this worker had no place in memory."""
        return self.in_memory if self.in_memory is not None and _is_there(self.in_memory) else self.path

    @property
    def on_disk(self) -> bool:
        """Whether those files are on the host's disk, where nothing bounds all of them together."""
        return self.results == self.path and not self._began_in_memory()

    @property
    def out_of_reach(self) -> bool:
        """Whether those files were made in memory, and that place is not there any more, or does not serve us."""
        return self.results == self.path and self._began_in_memory()

    def create(self) -> None:
        """Make the folder and the files that the job may write."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        self.path.mkdir(mode=0o755)
        self.path.chmod(0o755 if self.in_memory is None else _IN_MEMORY)
        # Stays empty: in the container a file system lies over it, to which the runtime gives this folder's mode.
        (self.path / SECRETS).mkdir()
        (self.path / SECRETS).chmod(0o700)
        if self.in_memory is not None:
            self.in_memory.mkdir(mode=0o700, parents=True)
            _give_to_owner_of_parent(self.in_memory)
        for name in (OUTPUT, PROGRESS):
            _write(self.results / name, b"", mode=0o666)
            (self.path / name).touch()  # where the file in memory is mounted

    def make_place_for_code(self) -> None:
        """Make the folder over which the job's code is mounted."""
        (self.path / CODE).mkdir(mode=0o755)

    def link_code(self, tree: Path) -> None:
        """Show a folder of code: its files and links are shared, its folders are made anew. Raises OSError."""
        _link(tree, self.path / CODE)

    def become(self, other: "JobFolder") -> None:
        """Take the place of the other, which is not there yet; a container sees no difference. Raises OSError."""
        if self.in_memory is not None and other.in_memory is not None:
            self.in_memory.rename(other.in_memory)
        self.path.rename(other.path)
        self.path, self.in_memory, self._found = other.path, other.in_memory, None

    def write_payload(self, payload: bytes) -> None:
        """Put the job's payload where it can read it."""
        _write(self.path / PAYLOAD, payload, mode=0o444)

    def output(self) -> bytes | None:
        """What the job wrote to `JOB_OUTPUT_FILE`, up to one byte more than allowed; None if nothing."""
        return self._read(OUTPUT, OUTPUT_MAX)

    def progress(self) -> bytes | None:
        """What the job wrote to `JOB_PROGRESS_FILE`, up to one byte more than allowed; None if nothing."""
        return self._read(PROGRESS, PROGRESS_MAX)

    def taken(self) -> dict[str, Bytes]:
        """What the files that the job may write take, of the host's disk or of the job's memory."""
        sizes = {}
        for name in (OUTPUT, PROGRESS):
            with suppress(OSError):
                sizes[name] = Bytes(os.lstat(self._place(name)).st_blocks * _BLOCK)
        return sizes

    @property
    def swollen(self) -> bool:
        """Whether those files take more than what is read of them could."""
        return any(taken > 2 * OUTPUT_MAX for taken in self.taken().values())

    def trim(self) -> None:
        """Give back what those files take beyond what is read of them: a job can reserve gigabytes in one call."""
        for name, most in ((OUTPUT, OUTPUT_MAX), (PROGRESS, PROGRESS_MAX)):
            with suppress(OSError):
                os.truncate(path := self.results / name, min(most + 1, os.lstat(path).st_size))

    def remove(self) -> None:
        """Leave nothing behind; done already when there is no such folder. Raises OSError."""
        for folder in (self.in_memory, self.path):
            if folder is not None:
                with suppress(FileNotFoundError):
                    shutil.rmtree(folder)

    def _began_in_memory(self) -> bool:
        with suppress(OSError):
            return bool(os.lstat(self.path).st_mode & stat.S_ISVTX)
        return False

    def _place(self, name: str) -> str:
        """Where one of those files is. Found out once: hundreds of jobs are looked at every second."""
        if self._found is None:
            self._found = str(self.results)
        return f"{self._found}/{name}"

    def _read(self, name: str, most: Bytes) -> bytes | None:
        path = self._place(name)
        # Most jobs never write it, and it is asked for once a second.
        with suppress(OSError):
            if not os.lstat(path).st_size:
                return None
        # The job chose what it did to this file: no link is followed, nothing but a plain file is read.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return (os.read(descriptor, most + 1) or None) if plain else None
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFolders:
    """The folders of all containers of a worker: under `jobs`, and under `in_memory` what jobs may write there."""

    jobs: Path
    in_memory: Path | None = None

    def of(self, name: str) -> JobFolder:
        """The folder of that name, whether or not it is there."""
        return JobFolder(self.jobs / name, None if self.in_memory is None else self.in_memory / name)

    def names(self) -> frozenset[str]:
        """The names of all that are there, in either place: a daemon may have died between the two."""
        places = (place for place in (self.jobs, self.in_memory) if place is not None and place.is_dir())
        return frozenset(path.name for place in places for path in place.iterdir())


def not_made(error: OSError) -> EngineError:
    """What it means for a launch that the files of its job cannot be made: with a full disk, no job can have any."""
    kind = EngineUnfit if error.errno in (errno.ENOSPC, errno.EDQUOT) else EngineError
    return kind(f"the job's files cannot be made: {error}")


def _write(path: Path, data: bytes, *, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def _is_there(folder: Path) -> bool:
    with suppress(OSError):  # where it may not be looked at, it serves no more than if it were not there
        return folder.is_dir()
    return False


def _give_to_owner_of_parent(folder: Path) -> None:
    """See that the daemon's user can remove what a worker of root leaves in memory."""
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _link(source: Path, target: Path) -> None:
    target.mkdir()
    target.chmod(0o755)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _link(Path(entry.path), target / entry.name)
            else:
                os.link(entry.path, target / entry.name, follow_symlinks=False)

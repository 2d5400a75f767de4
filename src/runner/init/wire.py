"""What is said to the init and what it answers. `init.c` is the other end; `docs/init.md` explains both.

All numbers are little-endian. Down, on standard input, goes one frame (`Description.encode`), then the job's input::

    "RUN1"  u32 length of the rest  then items: u8 tag, u32 length, bytes

    1 nonce, 16 bytes for the start record and 16 for the end      2 a word of argv, in order     3 a variable, K=V
    4 working directory                                            5 u64 time-out in ms           7 a place to measure
    6 resource limit: u32 resource, u64 soft, u64 hard             8 the folder of the secrets
    9 a secret: the name of its file, NUL, its content             10 empty: few kinds of sockets
    11 u64 Unix time in ms after which nothing is started          12 empty: no input for the job, the init stays

Up come the job's own streams, with the init's records in them (`OutputScanner`). What follows a nonce is written in
hexadecimal digits and ends with a newline: the engine's log, which a later life of the daemon reads instead, keeps
nothing but text as it was, and text that lacks its newline only later, or never::

    stdout:  start nonce  u64 realtime ns  newline   …the job's…   end nonce  u32 length  body  newline
    stderr:                                          …the job's…   end nonce  newline

    body:  i32 wait status  i32 exec errno  u64 end, realtime ns  u64 cpu ns  u64 peak of memory  u64 OOM kills
           u32 places, then for each: u64 bytes  u64 bytes free  u64 inodes  u64 inodes free
           u64 the last SIGTERM from outside, realtime ns, 0 for none
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

NONCE_BYTES = 32
"""Both nonces together, as `Description` and `OutputScanner` take them."""
BODY_MAX = (1 << 20) + (384 << 10)
"""The most that a frame's items may take."""
PLACES_MAX = 8
"""The most places that the init measures."""
RLIMITS_MAX = 16
"""The most resource limits that the init sets."""
SECRETS_MAX = 32
"""The most secrets that the init writes."""

_MAGIC = b"RUN1"
_NONCE, _ARGV, _ENV, _CWD, _TIMEOUT, _RLIMIT, _PLACE, _FOLDER, _SECRET, _SOCKETS, _NOT_AFTER, _LEASH = range(1, 13)
_HALF = NONCE_BYTES // 2
_UNKNOWN = 2**64 - 1

_FRAME = struct.Struct("<4sI")
_ITEM = struct.Struct("<BI")
_U64 = struct.Struct("<Q")
_LIMIT = struct.Struct("<IQQ")
_LENGTH = struct.Struct("<I")
_BODY = struct.Struct("<iiQQQQI")
_FILL = struct.Struct("<QQQQ")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One job, as the init runs it.

    `argv[0]` is looked for in the `PATH` of `env` unless it has a slash. `timeout` only tells the job its
    `JOB_DEADLINE`: stopping it is the daemon's work. `rlimits` maps the numbers of the module `resource` to soft and
    hard limit in one. The fill of the file systems at `places` is reported at the end. `nonce` is 32 bytes
    that nobody can guess; where the engine's log is to be read, they are text without a newline. `secrets` become
    files, by name, in `secrets_folder`, which then is closed to writing. `few_sockets` leaves the job no sockets but
    Unix, TCP and UDP over IP, and no io_uring. After `not_after`, by the host's clock, it is not started any more.
    One that is `leashed` reads nothing, and the init stays when all is told until its input ends, ten seconds at most.
    """

    nonce: bytes
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    timeout: timedelta
    rlimits: Mapping[int, int]
    places: tuple[str, ...]
    secrets_folder: str = ""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    few_sockets: bool = False
    not_after: datetime | None = None
    leashed: bool = False

    def encode(self) -> bytes:
        """The frame. Raises `ValueError`, which names the field, for what the init or the kernel cannot take."""
        self._check()
        body = b"".join(_ITEM.pack(tag, len(value)) + value for tag, value in self._items())
        if len(body) > BODY_MAX:
            raise ValueError(
                f"argv, env and secrets: {len(body)} bytes in all, more than the {BODY_MAX} that a job may be given"
            )
        return _FRAME.pack(_MAGIC, len(body)) + body

    def _check(self) -> None:
        _check_nonce(self.nonce)
        if not self.argv:
            raise ValueError("argv: empty")
        for name in self.env:
            if not name or "=" in name:
                raise ValueError(f"env: {name!r} is no name of a variable")
        if self.timeout < timedelta(0):
            raise ValueError("timeout: negative")
        if len(self.rlimits) > RLIMITS_MAX:
            raise ValueError(f"rlimits: more than {RLIMITS_MAX}")
        if len(self.places) > PLACES_MAX:
            raise ValueError(f"places: more than {PLACES_MAX}")
        self._check_secrets()

    def _check_secrets(self) -> None:
        if self.secrets and not self.secrets_folder:
            raise ValueError("secrets_folder: empty")
        if len(self.secrets) > SECRETS_MAX:
            raise ValueError(f"secrets: more than {SECRETS_MAX}")
        for name in self.secrets:
            if not name or "/" in name:
                raise ValueError(f"secrets: {name!r} is no name of a file")

    def _items(self) -> list[tuple[int, bytes]]:
        return [
            (_NONCE, self.nonce),
            *((_ARGV, _text(f"argv[{index}]", word)) for index, word in enumerate(self.argv)),
            *((_ENV, _text(f"env[{name}]", f"{name}={value}")) for name, value in self.env.items()),
            (_CWD, _text("cwd", self.cwd)),
            (_TIMEOUT, _U64.pack(self.timeout // timedelta(milliseconds=1))),
            *((_RLIMIT, _LIMIT.pack(resource, value, value)) for resource, value in self.rlimits.items()),
            *((_PLACE, _text(f"places[{index}]", path)) for index, path in enumerate(self.places)),
            *([(_FOLDER, _text("secrets_folder", self.secrets_folder))] if self.secrets_folder else []),
            *((_SECRET, _text("secrets", name) + b"\0" + value) for name, value in self.secrets.items()),
            *([(_SOCKETS, b"")] if self.few_sockets else []),
            *([(_LEASH, b"")] if self.leashed else []),
            *([(_NOT_AFTER, _U64.pack(_milliseconds(self.not_after)))] if self.not_after is not None else []),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How full a file system was when the job's main process ended, before the rest was killed."""

    path: str
    bytes_total: int
    bytes_free: int
    inodes_total: int
    inodes_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the job ended.

    `status` is what wait(2) gave (see `os.waitstatus_to_exitcode`), -1 when the program was never executed: then
    `exec_errno` says why. CPU time and OOM kills count from when the description had been read; the peak of memory is
    that of the container's whole life. None: the container's cgroup could not tell. A place that could not be measured
    is left out. `told_to_end` is when the init had its last SIGTERM from outside the container, from whomever.
    """

    status: int
    exec_errno: int
    ended: datetime
    cpu_seconds: float | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    places: tuple[Place, ...]
    told_to_end: datetime | None = None


class OutputScanner:
    """Takes the init's own records out of the job's two streams, wherever the chunks are cut.

    `places` are those of the description. Neither method loses or adds a byte of the job's; what could be the start of
    a nonce, 15 bytes at most, is held back until the next chunk or `flush_…`.
    """

    def __init__(self, nonce: bytes, places: tuple[str, ...]) -> None:
        _check_nonce(nonce)
        self.started: datetime | None = None
        self.report: Report | None = None
        self._places = places
        self._stderr_ended = False
        start, end = nonce[:_HALF], nonce[_HALF:]
        self._stdout = _Stream({start: self._take_start, end: self._take_report})
        self._stderr = _Stream({end: self._take_end})

    @property
    def complete(self) -> bool:
        """Whether both streams were seen to their end: all that the job wrote has arrived."""
        return self.report is not None and self._stderr_ended

    def feed_stdout(self, data: bytes) -> bytes:
        """What of the next chunk of stdout (and of what was held back) is the job's own."""
        return self._stdout.feed(data)

    def feed_stderr(self, data: bytes) -> bytes:
        """The same for stderr."""
        return self._stderr.feed(data)

    def flush_stdout(self) -> bytes:
        """At the end of the stream: what was held back and is no record after all."""
        return self._stdout.flush()

    def flush_stderr(self) -> bytes:
        """The same for stderr."""
        return self._stderr.flush()

    def _take_start(self, data: bytes) -> int | None:
        record = _record(data, _U64.size)
        if record is None:
            return None
        if record:
            self.started = _time(*_U64.unpack(record))
        return 2 * _U64.size + 1

    def _take_report(self, data: bytes) -> int | None:
        if len(data) < 2 * _LENGTH.size:
            return None
        length = _unhex(data[: 2 * _LENGTH.size])
        size = _LENGTH.size + (int(*_LENGTH.unpack(length)) if length else 0)
        record = _record(data, size)
        if record is None:
            return None
        self.report = _report(record[_LENGTH.size :], self._places)
        return 2 * size + 1

    def _take_end(self, data: bytes) -> int | None:
        record = _record(data, 0)
        if record is None:
            return None
        self._stderr_ended = True
        return 1


_TakeRecord = Callable[[bytes], int | None]
"""Takes the record that follows its nonce, and says how long it is; None while more of it is needed."""


class _Stream:
    """One stream, and the records that are still to be found in it, each once."""

    def __init__(self, records: dict[bytes, _TakeRecord]) -> None:
        self._records = records
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        rest = self._held + data if self._held else data
        own = []
        while (found := self._find(rest)) is not None:
            position, nonce = found
            own.append(rest[:position])
            size = self._records[nonce](rest[position + _HALF :])
            if size is None:
                self._held = rest[position:]
                return b"".join(own)
            del self._records[nonce]
            rest = rest[position + _HALF + size :]
        cut = self._start_of_tail(rest)
        self._held = rest[cut:]
        own.append(rest[:cut])
        return b"".join(own)

    def flush(self) -> bytes:
        """What was held back, less a record that broke off."""
        held, self._held = self._held, b""
        return b"" if held.startswith(tuple(self._records)) else held

    def _find(self, data: bytes) -> tuple[int, bytes] | None:
        hits = [(position, nonce) for nonce in self._records if (position := data.find(nonce)) >= 0]
        return min(hits, default=None)

    def _start_of_tail(self, data: bytes) -> int:
        """Where the longest end of `data` starts that a nonce could go on from; its length if there is none."""
        cut = len(data)
        for nonce in self._records:
            position = data.find(nonce[0], max(len(data) - _HALF + 1, 0))
            while 0 <= position < cut and not nonce.startswith(data[position:]):
                position = data.find(nonce[0], position + 1)
            if position >= 0:
                cut = min(cut, position)
        return cut


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES or nonce[:_HALF] == nonce[_HALF:]:
        raise ValueError(f"nonce: not {NONCE_BYTES} bytes in two halves that differ")


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _text(field: str, value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"{field}: has a NUL character")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field}: is not text ({error.reason})") from error


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _record(data: bytes, size: int) -> bytes | None:
    """The `size` bytes that begin a record; none if they are no digits, and None while more of it is to come."""
    return _unhex(data[: 2 * size]) if len(data) > 2 * size else None


def _unhex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value


def _report(body: bytes, paths: tuple[str, ...]) -> Report | None:
    measured = _BODY.size + len(paths) * _FILL.size
    if len(body) not in (
        measured,
        measured + _U64.size,
    ):  # the shorter one is that of an older init, adopted with its job
        return None
    told_to_end = int.from_bytes(body[measured:], "little")
    status, exec_errno, ended, cpu_ns, memory_peak, oom_kills, _count = _BODY.unpack_from(body)
    fills = zip(paths, _FILL.iter_unpack(body[_BODY.size : measured]), strict=True)
    places = (
        Place(path=path, bytes_total=total, bytes_free=free, inodes_total=inodes, inodes_free=inodes_free)
        for path, (total, free, inodes, inodes_free) in fills
        if total != _UNKNOWN
    )
    return Report(
        status=status,
        exec_errno=exec_errno,
        ended=_time(ended),
        cpu_seconds=None if cpu_ns == _UNKNOWN else cpu_ns / 1e9,
        memory_peak_bytes=_known(memory_peak),
        oom_kills=_known(oom_kills),
        places=tuple(places),
        told_to_end=_time(told_to_end) if told_to_end else None,
    )

"""A container's output read again from the engine's own copy, where the connection to it broke or never was ours."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from runner.adapters.docker.client import EngineClient

STDOUT, STDERR = 1, 2
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()


@dataclass(slots=True)
class Tally:
    """How many bytes have come of each stream, and a checksum of them: two that are equal have heard the same."""

    counts: dict[int, int] = field(default_factory=lambda: {STDOUT: 0, STDERR: 0})
    sums: dict[int, int] = field(default_factory=lambda: {STDOUT: 0, STDERR: 0})

    def add(self, stream: int, data: bytes) -> None:
        """That much more has come."""
        self.counts[stream] += len(data)
        self.sums[stream] = zlib.crc32(data, self.sums[stream])


class Replay:
    """Hands on what the engine's log has beyond what has come so far, pass after pass from its beginning.

    `heard` is all that has come by whatever way, and `hand_on` adds to it. A pass skips what was heard by its length,
    and compares it as well, for the log need not be what was heard: the engine replaces what is not UTF-8, drops old
    text when the log is long, and its followers may skip some without a word.
    """

    def __init__(
        self, client: EngineClient, container: str, heard: Tally, hand_on: Callable[[int, bytes], None]
    ) -> None:
        self._client = client
        self._container = container
        self._heard = heard
        self._hand_on = hand_on
        self._ends = {STDOUT: b"", STDERR: b""}
        self._mangled = False
        self.exact = True
        """Whether the last pass has shown that what was heard is, byte for byte, what was written."""

    async def catch_up(self, *, follow: bool = False) -> None:
        """Make a pass; `follow` goes on while the log grows. Raises `EngineError`, after which `exact` is false."""
        read, whole = Tally(), True

        def take(stream: int, data: bytes) -> None:
            nonlocal whole
            if stream not in self._ends:  # the engine's own word, about text that it could not read
                whole = False
                return
            known = max(0, self._heard.counts[stream] - read.counts[stream])
            read.add(stream, data)
            if new := data[known:]:
                self._look(stream, new)
                self._hand_on(stream, new)

        self.exact = False
        await self._client.read_log(self._container, take, follow=follow)
        self.exact = whole and not self._mangled and read == self._heard

    def _look(self, stream: int, data: bytes) -> None:
        """Look for what the engine puts in the place of each byte that is not UTF-8: then lengths are not the job's."""
        joined = self._ends[stream] + data
        self._mangled = self._mangled or _REPLACED in joined
        self._ends[stream] = joined[-2:]

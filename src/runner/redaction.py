"""Keeps known secrets out of what a job tells: its log, progress, output and end. Pure.

An occurrence is overwritten with as many asterisks, so that offsets and byte counts stay those of what was written.
Only the value itself is known: encoded, split or reversed, a job can tell it all the same.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from runner.job import Json, Stream

SHORTEST = 4
"""Shorter values are not looked for: they are in many a word by chance."""
SHORTEST_LINE = 8
"""The same for each line of a value with several: a brace alone is no secret."""
PATTERNS_MAX = 256
"""The most texts to look for. Each of them is searched for in every byte that the job writes."""

_PIECE = 512
"""Longer lines are looked for in parts: what may be the beginning of one is held back, and this bounds it."""
_MASK = b"*"


def patterns(values: Iterable[bytes]) -> tuple[bytes, ...]:
    """What to look for: each line of each value, without the space around it; the longest first."""
    found = {piece for value in values for line in _lines(value) for piece in _pieces(line)}
    return tuple(sorted(found, key=lambda pattern: (-len(pattern), pattern)))


def _lines(value: bytes) -> Iterator[bytes]:
    lines = [line.strip() for line in value.strip().split(b"\n")]
    least = SHORTEST if len(lines) == 1 else SHORTEST_LINE
    return (line for line in lines if len(line) >= least)


def _pieces(line: bytes) -> Iterator[bytes]:
    count = -(-len(line) // _PIECE)
    edges = [len(line) * number // count for number in range(count + 1)]
    return (line[start:end] for start, end in pairwise(edges))


@dataclass(slots=True)
class _Held:
    """The end of a stream that may be the beginning of a secret, and how much at its start belongs to one already."""

    data: bytes = b""
    masked: int = 0


class Redactor:
    """Overwrites the secrets of one job, wherever the chunks of its streams are cut."""

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        self._patterns = patterns(values)
        self._steps: dict[bytes, int] = {}
        self._longest = max(map(len, self._patterns), default=0)
        self._starts: dict[int, list[bytes]] = {}
        for pattern in self._patterns:
            self._starts.setdefault(pattern[0], []).append(pattern)
        self._start = re.compile(b"|".join(re.escape(bytes([byte])) for byte in self._starts))
        self._held: dict[Stream, _Held] = {}

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """What can be shown once this has come: what may be the beginning of a secret waits for what follows it."""
        if not self._patterns:
            return data
        held = self._held.setdefault(stream, _Held())
        data, masked = held.data + data, held.masked
        cut = self._cut(data)
        shown, reached = self._mask(data, cut, masked)
        self._held[stream] = _Held(data[cut:], max(reached - cut, 0))
        return shown[:cut]

    def flush(self, stream: Stream) -> bytes:
        """What was held back, at the end of the stream."""
        held = self._held.pop(stream, _Held())
        return self._mask(held.data, len(held.data), held.masked)[0]

    def text(self, text: str) -> str:
        """A text without secrets."""
        if not self._patterns:
            return text
        return self._whole(text.encode(errors="replace"))

    def beginning(self, data: bytes, most: int) -> str:
        """The first `most` bytes of something longer, without secrets, nor the beginning of one at the cut."""
        data = data[:most]
        return self._whole(data[: self._cut(data)])

    def json(self, value: Json) -> Json:
        """A JSON value without secrets in its names, texts and numbers. A number with one in it becomes a text."""
        if not self._patterns:
            return value
        # All of it at once: to look for hundreds of secrets in each of thousands of values would take a second.
        spelt = list(_spelt(value))
        text = b"\n".join(spelt)  # a newline is in none of them
        shown, _ = self._mask(text, len(text), 0)
        return value if shown == text else _respelt(value, _cut_like(spelt, shown))

    def _whole(self, data: bytes) -> str:
        return self._mask(data, len(data), 0)[0].decode(errors="replace")

    def _cut(self, data: bytes) -> int:
        """Where the longest end of `data` begins that a secret could begin with; its length if there is none."""
        if not self._patterns:
            return len(data)
        for start in self._start.finditer(data, max(len(data) - self._longest + 1, 0)):
            end = data[start.start() :]
            if any(len(end) < len(pattern) and pattern.startswith(end) for pattern in self._starts[end[0]]):
                return start.start()
        return len(data)

    def _mask(self, data: bytes, cut: int, masked: int) -> tuple[bytes, int]:
        """`data` with its secrets and its first `masked` bytes overwritten.

        And how far that reaches, apart from secrets that begin behind `cut`: those will be found again.
        """
        shown = bytearray(data) if masked else None
        reached = masked
        if shown is not None:
            shown[:masked] = _MASK * masked
        for pattern in self._patterns:
            at = data.find(pattern)
            while at >= 0:
                shown = shown if shown is not None else bytearray(data)
                end = at + len(pattern)
                shown[at:end] = _MASK * len(pattern)
                reached = max(reached, end) if at < cut else reached
                at = data.find(pattern, at + self._step(pattern))
        return (data if shown is None else bytes(shown)), reached

    def _step(self, pattern: bytes) -> int:
        """How far behind an occurrence the next one can begin: less than its length where it overlaps with itself."""
        step = self._steps.get(pattern)
        if step is None:  # found out only when it is needed: it takes its time
            step = next(step for step in range(1, len(pattern) + 1) if pattern.startswith(pattern[step:]))
            self._steps[pattern] = step
        return step


def _spelt(value: Json) -> Iterator[bytes]:
    """The names, texts and numbers of a JSON value, in order."""
    match value:
        case str():
            yield value.encode(errors="replace")
        case dict():
            for name, inner in value.items():
                yield name.encode(errors="replace")
                yield from _spelt(inner)
        case list():
            for inner in value:
                yield from _spelt(inner)
        case None | bool():
            return
        case _:
            yield json.dumps(value).encode()


def _cut_like(spelt: Iterable[bytes], shown: bytes) -> Iterator[str]:
    """The parts of a joined text again, each as long as it was."""
    at = 0
    for part in spelt:
        yield shown[at : at + len(part)].decode(errors="replace")
        at += len(part) + 1


def _respelt(value: Json, shown: Iterator[str]) -> Json:
    """The value with these names, texts and numbers."""
    match value:
        case str():
            return next(shown)
        case dict():
            return {next(shown): _respelt(inner, shown) for inner in value.values()}
        case list():
            return [_respelt(inner, shown) for inner in value]
        case None | bool():
            return value
        case _:
            text = next(shown)
            return value if text == json.dumps(value) else text

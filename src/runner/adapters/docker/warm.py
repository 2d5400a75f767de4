"""Containers that were started before their jobs came, each for one job and no more. Why and how: docs/warm.md."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from secrets import randbelow
from typing import Any, NoReturn

from runner.adapters.docker.config import Site, create_body
from runner.adapters.docker.observer import EngineObserver
from runner.adapters.docker.sandbox import Sandbox
from runner.errors import RunnerError
from runner.job import Bytes, Limits, Stack, warm_name
from runner.warmth import Setbacks, Sizes, Warmth

_LOG = logging.getLogger(__name__)

FOOTPRINT = Bytes(16 * 2**20)
"""What an idle container holds of the machine's memory, with the engine's process beside it (measured: 4 and 9 MB)."""
_LONGEST_WAIT = timedelta(hours=1)
"""How long a container waits before a new one takes its place."""
_LOOK_EVERY = 5.0
_LIVES = 5.0
"""Seconds after which the end of a container that waits is an accident, and not the way that its kind ends."""
_CHANGEABLE = ("Memory", "MemorySwap", "NanoCpus", "PidsLimit")
"""What the engine can change in a container that runs (its API's `update`)."""
_ANY = Path("/")

Make = Callable[[str, Stack, Limits], Awaitable[Sandbox]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a container is made from. `key` is the same for two that only an update sets apart, by their `size`."""

    key: str
    size: str
    stack: Stack = field(compare=False)
    limits: Limits = field(compare=False)
    resources: dict[str, Any] = field(compare=False)

    @classmethod
    def of(cls, stack: Stack, limits: Limits, site: Site) -> "Kind":
        """The kind that a job of that stack with those limits needs."""
        body = create_body(stack, limits, _ANY, site)
        resources = {name: body["HostConfig"].pop(name) for name in _CHANGEABLE}
        key, size = json.dumps(body, sort_keys=True), json.dumps(resources, sort_keys=True)
        return cls(key=key, size=size, stack=stack, limits=limits, resources=resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How many containers of a stack an operator wants to be ready, for jobs with these limits."""

    stack: Stack
    limits: Limits
    count: int


Ask = Callable[[], Awaitable[Sequence[Standing] | None]]
"""What is asked for now; None while nothing at all is to wait."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarmContainer:
    """A container that waits for its job."""

    name: str
    kind: Kind
    sandbox: Sandbox
    since: float


class WarmPool:
    """Keeps containers ready, one made at a time: more at once would hurt the jobs that run.

    `make` starts one under a name; `drop` has one removed. Nothing waits but while `run` does.
    """

    def __init__(
        self, *, make: Make, drop: Callable[[str], None], observer: EngineObserver, site: Site, memory: Bytes
    ) -> None:
        self._make = make
        self._drop = drop
        self._observer = observer
        self._site = site
        self._warmth = Warmth(memory // FOOTPRINT)
        self._waiting: dict[str, list[WarmContainer]] = {}
        self._sizes = Sizes[Kind]()
        self._setbacks = Setbacks()
        # Not from 1: what an earlier life left running may share what goes by the number.
        self._numbers = count(randbelow(2**32))
        self._changed = asyncio.Event()
        self._open = False
        self._shown: set[str] = set()

    def names(self) -> frozenset[str]:
        """The containers that wait."""
        return frozenset(warm.name for waiting in self._waiting.values() for warm in waiting)

    def counts(self) -> dict[str, int]:
        """How many containers of each stack wait."""
        found: dict[str, int] = {}
        for waiting in self._waiting.values():
            for warm in waiting:
                found[warm.kind.stack.name] = found.get(warm.kind.stack.name, 0) + 1
        return found

    def take(self, kind: Kind) -> WarmContainer | None:
        """A container for a job of that kind, which is the taker's from now on; None when none is ready."""
        if not self._open:
            return None
        self._sizes.came(kind.key, kind)
        self._warmth.started(kind.key, asyncio.get_running_loop().time())
        self._changed.set()
        waiting = self._waiting.get(kind.key)
        if not waiting:
            return None
        # The one that fits as it is, if there is any: an update takes longer than all the rest.
        best = next((warm for warm in waiting if warm.kind == kind), waiting[0])
        self._setbacks.served(kind.key)
        self._forget(best)
        return best

    async def run(self, ask: Ask) -> NoReturn:
        """Keep as many ready as `ask` says and as jobs keep coming for; once cancelled, have them all removed."""
        self._open = True
        try:
            while True:
                await self._until_calm()
                try:
                    standing = await ask()
                except RunnerError as error:
                    _LOG.warning("nobody knows what to keep ready", extra={"problem": str(error)})
                    await asyncio.sleep(_LOOK_EVERY)
                    continue
                await self._balance(standing)
                await self._until_changed(_LOOK_EVERY)
        finally:
            self._open = False
            self._discard_all()

    async def _until_calm(self) -> None:
        loop = asyncio.get_running_loop()
        while (pause := self._warmth.hold_back(loop.time())) > 0:  # noqa: ASYNC110 - it waits for nothing but time
            await asyncio.sleep(pause)

    async def _until_changed(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def _discard_all(self) -> None:
        for waiting in list(self._waiting.values()):
            for warm in list(waiting):
                self._discard(warm)

    async def _balance(self, standing: Sequence[Standing] | None) -> None:
        """Remove what is not wanted any more, then make what is missing, one after the other."""
        if standing is None:
            return self._discard_all()
        asked: dict[str, int] = {}
        kinds: dict[str, Kind] = {}
        for each in standing:
            kind = Kind.of(each.stack, each.limits, self._site)
            kinds[kind.key] = kind
            asked[kind.key] = max(asked.get(kind.key, 0), each.count)
        if (missing := self._trim(asked)) is not None:
            await self._make_one(self._due(missing, kinds.get(missing)))
            self._changed.set()  # there may be more to do, or less by now
        return None

    def _due(self, key: str, standing: Kind | None) -> Kind:
        """What to make next of that key, in a size that jobs came in if any did, else in that of the operator."""
        if standing is not None and self._setbacks.pending(key):
            return standing  # what failed may have done so for a job's size
        due = self._sizes.due(key, (warm.kind for warm in self._waiting.get(key, ()))) or standing
        if due is None:
            raise AssertionError("a container is wanted that neither an operator nor a job asked for")
        return due

    def _trim(self, asked: dict[str, int]) -> str | None:
        """Remove what is too many or too old; the key that is short of most, None when nothing is missing."""
        now = asyncio.get_running_loop().time()
        wanted = self._warmth.wanted(asked, now)
        for key, waiting in list(self._waiting.items()):
            old = [warm for warm in waiting if now - warm.since > _LONGEST_WAIT.total_seconds()]
            surplus = waiting[: max(0, len(waiting) - wanted.get(key, 0))]
            for warm in {*old, *surplus}:
                self._discard(warm)
        known = wanted.keys() | self._warmth.recent(now)
        self._sizes.keep(known)
        self._setbacks.keep(known)
        missing = {
            key: count - len(self._waiting.get(key, ()))
            for key, count in wanted.items()
            if self._setbacks.may(key, now)
        }
        most = max(missing, key=missing.__getitem__, default=None)
        return most if most is not None and missing[most] > 0 else None

    async def _make_one(self, kind: Kind) -> None:
        name = warm_name(self._site.worker, next(self._numbers))
        try:
            sandbox = await self._make(name, kind.stack, kind.limits)
        except RunnerError as error:
            _LOG.warning("a container could not be made ready", extra={"stack": kind.stack.name, "problem": str(error)})
            self._setbacks.failed(kind.key, asyncio.get_running_loop().time())
            self._drop(name)
            return
        except BaseException:
            self._drop(name)
            raise
        warm = WarmContainer(name=name, kind=kind, sandbox=sandbox, since=asyncio.get_running_loop().time())
        self._waiting.setdefault(kind.key, []).append(warm)
        self._show()
        sandbox.watch(lambda: self._died(warm))

    def _died(self, warm: WarmContainer) -> None:
        if warm.name in self.names():
            _LOG.warning("a container ended before a job came", extra={"container": warm.name})
            now = asyncio.get_running_loop().time()
            if now - warm.since < _LIVES:
                self._setbacks.failed(warm.kind.key, now)
            self._discard(warm)

    def _discard(self, warm: WarmContainer) -> None:
        self._forget(warm)
        self._drop(warm.name)
        self._changed.set()

    def _forget(self, warm: WarmContainer) -> None:
        waiting = self._waiting[warm.kind.key]
        waiting.remove(warm)
        if not waiting:
            del self._waiting[warm.kind.key]
        self._show()

    def _show(self) -> None:
        counts = self.counts()
        for stack in self._shown | counts.keys():
            self._observer.warm_containers(stack, counts.get(stack, 0))
        self._shown = set(counts)

"""Filling this machine from a registry, ahead of the jobs: docs/stacks.md."""

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from runner.app.admission import Admitted, SmokeError
from runner.app.finding import Finding, Remedy
from runner.app.stacks import Stock, open_stock
from runner.errors import ConfigError, RunnerError
from runner.settings import Settings
from runner.stacks.build import adopt
from runner.stacks.credentials import registry_auth
from runner.stacks.file import StackFile, is_stack_name
from runner.stacks.images import Image, PullError, PullLimits, Say
from runner.stacks.revisions import Pin, RevisionError
from runner.stacks.switch import Switch

log = logging.getLogger(__name__)

_EVERY = 10.0
"""Seconds between two looks at the stacks' files."""
_AGAIN = 30.0
_AGAIN_MOST = 600.0
"""Seconds until a stack is filled again that could not be: the first time, doubling, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulling:
    """How hard the registry is asked: the limits of an attempt, how many there are, seconds between two of them."""

    limits: PullLimits = field(default_factory=PullLimits)
    attempts: int = 3
    pause: tuple[float, float] = (2.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Brings the images that stacks' files name, and lets them in as revisions."""

    stock: Stock
    say: Say
    pulling: Pulling = field(default_factory=Pulling)

    def wanted(self, stack: str) -> StackFile | None:
        """The stack's file if it names an image; a broken file names none."""
        try:
            file = self.stock.catalog.file(stack)
        except ConfigError:
            return None
        return file if file.image is not None else None

    async def lacks(self, stack: str, file: StackFile) -> bool:
        """Whether the stack was not filled with what its file names, or what jobs get of it is gone.

        After a rollback it lacks nothing: that is its operator's word until the file names another image.
        """
        if self.stock.ledger.pin(stack) != _pin(file):
            return True
        switch = Switch(self.stock.ledger, self.stock.images)
        try:
            pointer = await switch.pointer(stack)
            if pointer is not None:
                await switch.image(stack, pointer.current)
        except RevisionError:
            return True
        return pointer is None

    async def fill(
        self, image: str, stacks: Mapping[str, StackFile]
    ) -> AsyncGenerator[tuple[str, Admitted | RunnerError], None]:
        """Pull an image once and make it current in the stacks that lack it: each with what came of it.

        Whoever else wants this image on this machine waits, and finds it there. Raises `ConfigError`, `EngineError`.
        """
        async with self.stock.ledger.alone(image.rpartition("@")[2]):
            lacking = {stack: file for stack, file in stacks.items() if await self.lacks(stack, file)}
            if not lacking:
                self.say(f"{image} is here already")
                return
            reference = f"{self._registry()}/{image}"
            known = await self.stock.images.inspect(reference)
            try:
                try:
                    pulled = known or await self._pull(reference)
                except RunnerError as error:
                    for stack, file in lacking.items():
                        yield stack, self._failed(stack, file, error)
                    return
                for stack, file in lacking.items():
                    yield stack, await self._admit(stack, file, pulled, reference)
            finally:
                if known is None:
                    # The revisions stand on it and keep it; by this name nobody would ever remove it.
                    await self.stock.images.remove(reference)

    async def offers(self, images: Iterable[str]) -> None:
        """See that the registry has these images, all at once. Raises `ConfigError`, `PullError`, `EngineError`."""
        auth = registry_auth(self.stock.settings.stacks.registry_auth, self._registry())
        asked = [self.stock.images.look_for(f"{self._registry()}/{image}", auth) for image in images]
        for fault in await asyncio.gather(*asked, return_exceptions=True):
            if fault is not None:
                raise fault

    async def _admit(self, stack: str, file: StackFile, image: Image, reference: str) -> Admitted | RunnerError:
        try:
            self.stock.catalog.check(stack)
            built = await adopt(stack, file, image, self.stock.images, pulled=reference)
            admitted = await self.stock.admission(self.say).admit(built, use=True)
        except RunnerError as error:
            return self._failed(stack, file, error)
        self.stock.ledger.pinned(stack, _pin(file))
        return admitted

    def _failed(self, stack: str, file: StackFile, error: RunnerError) -> RunnerError:
        """Note why, for the jobs that are passed on meanwhile."""
        self.stock.ledger.pinned(stack, _pin(file).model_copy(update={"fault": str(error)}))
        return error

    async def _pull(self, reference: str) -> Image:
        left = self.pulling.attempts
        while True:
            left -= 1
            auth = registry_auth(self.stock.settings.stacks.registry_auth, self._registry())
            self.say(f"pulling {reference}")
            try:
                return await self.stock.images.pull(reference, auth, self.say, self.pulling.limits)
            except PullError as error:
                if error.final or left <= 0:
                    raise
                self.say(f"{error}; trying again")
            await asyncio.sleep(random.uniform(*self.pulling.pause))  # noqa: S311 - not a secret

    def _registry(self) -> str:
        registry = self.stock.settings.stacks.registry
        if registry is None:
            raise ConfigError("stacks.registry: is not set; name the registry that the stacks' images come from")
        return registry


async def look_at_registry(settings: Settings) -> Finding:
    """Whether the registry would give the engine what stacks name; for `runner check`, and nothing is pulled."""
    async with open_stock(settings) as stock:
        registry = Registry(stock=stock, say=lambda _line: None)
        images = _by_image(registry, stock.catalog.installed())
        if not images and settings.stacks.registry is None:
            return Finding(name="registry", detail="stacks.registry is not set, and nothing is pulled")
        try:
            await registry.offers(images)
        except ConfigError as error:
            return Finding(name="registry", detail="; ".join(error.faults), remedy=Remedy.CONFIG)
        except PullError as error:
            detail = f"stacks.registry: {error}; is it reachable from the engine, and stacks.registry_auth right?"
            return Finding(name="registry", detail=detail, remedy=Remedy.CONFIG if error.final else Remedy.SERVICE)
    has = f"has the {len(images)} images that stacks name" if images else "is set; no stack names an image of it"
    return Finding(name="registry", detail=f"{settings.stacks.registry} {has}")


async def pull_stacks(settings: Settings, names: Sequence[str], say: Say) -> AsyncIterator[Admitted]:
    """Fill those stacks from the registry, all that name an image if none is named. What is here is not pulled.

    What cannot be had is raised at the end, as a `PullError`. Raises `ConfigError`, `EngineError`.
    """
    failed = []
    async with open_stock(settings) as stock:
        registry = Registry(stock=stock, say=say)
        for name in names:
            if not is_stack_name(name):
                raise ConfigError(f"{name}: is not the name of a stack")
            if stock.catalog.file(name).image is None:
                raise ConfigError(f'{name}: its stack.toml names no image; write image = "<repository>@sha256:…"')
        for image, stacks in _by_image(registry, names or stock.catalog.installed()).items():
            async for stack, result in registry.fill(image, stacks):
                if isinstance(result, Admitted):
                    yield result
                else:
                    failed.append(f"{stack}: {result}")
    if failed:
        raise PullError("\n".join(failed))


@dataclass(frozen=True, slots=True)
class _Later:
    """When a stack that could not be filled is tried again, as long as its file stays."""

    file: StackFile
    delay: timedelta
    at: float


@dataclass(slots=True, kw_only=True)
class Filling:
    """Keeps a daemon filled: at its start, and when a stack's file names another image."""

    registry: Registry
    _later: dict[str, _Later] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Never ends. A registry that hangs keeps only its own image waiting."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for image, stacks in _by_image(self.registry, self.registry.stock.catalog.installed()).items():
                    due = {stack: file for stack, file in stacks.items() if self._due(stack, file)}
                    if due and image not in self._busy:
                        self._busy.add(image)
                        tasks.create_task(self._fill(image, due))
                await asyncio.sleep(_EVERY)

    def _due(self, stack: str, file: StackFile) -> bool:
        later = self._later.get(stack)
        return later is None or later.file != file or later.at <= asyncio.get_running_loop().time()

    async def _fill(self, image: str, stacks: Mapping[str, StackFile]) -> None:
        try:
            async for stack, result in self.registry.fill(image, stacks):
                if isinstance(result, Admitted):
                    self._later.pop(stack, None)
                    log.info("stack filled", extra={"stack": stack, "revision": result.revision, "image": image})
                else:
                    self._put_off(stack, stacks[stack], result)
        except (RunnerError, OSError) as error:
            for stack, file in stacks.items():
                self._put_off(stack, file, error)
        finally:
            self._busy.discard(image)

    def _put_off(self, stack: str, file: StackFile, error: RunnerError | OSError) -> None:
        log.warning("stack not filled", extra={"stack": stack, "image": file.image, "fault": str(error)})
        before = self._later.get(stack)
        delay = min(2 * before.delay.total_seconds(), _AGAIN_MOST) if before and before.file == file else _AGAIN
        # The same image would fail the same test.
        wait = math.inf if isinstance(error, SmokeError) else delay * random.uniform(0.5, 1)  # noqa: S311
        at = asyncio.get_running_loop().time() + wait
        self._later[stack] = _Later(file, timedelta(seconds=delay), at)


def _by_image(registry: Registry, stacks: Sequence[str]) -> dict[str, dict[str, StackFile]]:
    """The stacks that name an image, by it: those that share one share its pull."""
    found: dict[str, dict[str, StackFile]] = {}
    for stack in stacks:
        file = registry.wanted(stack)
        if file is not None and file.image is not None:
            found.setdefault(file.image, {})[stack] = file
    return found


def _pin(file: StackFile) -> Pin:
    return Pin(image=file.image or "", user=file.user)

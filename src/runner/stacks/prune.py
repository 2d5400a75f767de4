"""Removing revisions that nobody needs, the least recently used first, until the rest fits."""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Protocol

from runner.errors import ConfigError
from runner.job import Bytes
from runner.stacks import names
from runner.stacks.images import Image
from runner.stacks.revisions import Ledger, Record, State

GUARD = timedelta(minutes=10)
"""What a job was given that lately is kept: the job may be on its way, and stand in no journal yet."""
_TEST_MOST = timedelta(hours=2)
"""A test that began that long ago was broken off."""

InUse = Callable[[], Awaitable[frozenset[str]]]
"""The ids of the images that jobs need which stand in a journal."""


class LayeredImages(Protocol):
    """What is asked of the engine to tell how much disk images take."""

    async def layers(self, image: str) -> Mapping[str, Bytes]:
        """The size of each layer of the image, by a key that images share which share the layer."""


class PrunedImages(LayeredImages, Protocol):
    """What pruning asks of the engine."""

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag or id; None if there is none."""

    async def tags(self) -> Mapping[str, str]:
        """The id of the image behind each name that begins with `runner/`."""

    async def used(self) -> frozenset[str]:
        """The ids of the images that any container has."""

    async def remove(self, name: str) -> bool:
        """Take a name from its image, and remove the image with its last one; false when a container has it."""

    async def remove_nameless(self, image: str) -> bool:
        """Remove an image by its id unless it has a name; false when a container has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A revision that this machine has. `record` is None for one that was tagged by hand."""

    stack: str
    revision: str
    image: str
    tagged: bool
    used: float
    record: Record | None

    @property
    def broken_off(self) -> bool:
        """Whether it is of no use: its test failed or was broken off, or it was being removed before."""
        if self.record is None or self.record.state is State.READY:
            return False
        return self.record.state is not State.TESTING or datetime.now(UTC) - self.record.built > _TEST_MOST

    @property
    def in_test(self) -> bool:
        """Whether somebody is making it."""
        return self.record is not None and self.record.state is State.TESTING and not self.broken_off


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was removed, and how many bytes all stacks had before and have now, shared layers counted once."""

    removed: tuple[Revision, ...]
    before: Bytes
    after: Bytes


async def revisions(ledger: Ledger, images: PrunedImages, stacks: Collection[str]) -> Sequence[Revision]:
    """All revisions of those stacks, and of all that the ledger knows. Other images of the engine are not ours."""
    known: dict[tuple[str, str], Record | None] = {}
    tagged: dict[tuple[str, str], str] = {}
    for stack in ledger.stacks():
        known |= {(stack, record.revision): record for record in ledger.records(stack)}
    for tag, image in (await images.tags()).items():
        stack, _, revision = tag.removeprefix("runner/").rpartition(":")
        if revision not in (names.CURRENT, names.PREVIOUS) and (stack in stacks or (stack, revision) in known):
            tagged[stack, revision] = image
            known.setdefault((stack, revision), None)
    return [
        Revision(
            stack=stack,
            revision=revision,
            image=record.image if record else tagged[stack, revision],
            tagged=(stack, revision) in tagged,
            used=_last_used(ledger, stack, revision, record),
            record=record,
        )
        for (stack, revision), record in sorted(known.items(), key=itemgetter(0))
    ]


async def disk(images: LayeredImages, these: Iterable[str]) -> Bytes:
    """What images take together, shared layers counted once."""
    layers: dict[str, Bytes] = {}
    for image in set(these):
        layers |= await images.layers(image)
    return Bytes(sum(layers.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """Removes what is over `most` bytes, of what was built or imported here. Raises `ConfigError` and `EngineError`.

    What has no record was tagged by somebody else, who may need it.
    """

    ledger: Ledger
    images: PrunedImages
    in_use: InUse
    most: Bytes
    guard: timedelta = GUARD

    async def run(self, *, dry: bool = False) -> Pruned:
        """Remove revisions until the rest fits; with `dry` only tell which. Those of no use go in any case."""
        ours = [revision for revision in await revisions(self.ledger, self.images, ()) if revision.record is not None]
        left = [await self._taken_back(revision, dry=dry) for revision in ours]
        before = after = await disk(self.images, [revision.image for revision in left])
        removed = []
        for revision in sorted(left, key=lambda each: (not each.broken_off, each.used, each.stack, each.revision)):
            if after <= self.most and not revision.broken_off:
                break
            if not (revision.broken_off or await self._frees_disk(revision)):
                continue
            if await self._free(revision) and (dry or await self._remove(revision)):
                removed.append(revision)
                left.remove(revision)
                after = await disk(self.images, [each.image for each in left])
        return Pruned(removed=tuple(removed), before=before, after=after)

    async def _taken_back(self, revision: Revision, *, dry: bool) -> Revision:
        """The revision, ready again if a `prune` that was killed had retired it and not removed its image yet.

        Only what is ready is ever retired. What has no image any more is of no use, and goes.
        """
        record = revision.record
        if record is None or record.state is not State.RETIRED:
            return revision
        async with nullcontext() if dry else self.ledger.removal():  # so that nobody is about to remove it
            if await self.images.inspect(record.image) is None:
                return revision
            ready = record.model_copy(update={"state": State.READY})
            if not dry:
                await self._replace(revision.stack, record, ready)
        return replace(revision, record=ready)

    async def _frees_disk(self, revision: Revision) -> bool:
        """Whether disk is free once the revision is removed: not where its image has a name of somebody's own, too."""
        image = await self.images.inspect(revision.image)
        tags = (revision.revision, names.CURRENT, names.PREVIOUS)
        return image is None or not {*image.tags} - {names.tagged(revision.stack, tag) for tag in tags}

    async def _free(self, revision: Revision) -> bool:
        """Whether nobody needs the revision."""
        if self._wanted(revision):
            return False
        tags = () if self.ledger.pointer(revision.stack) else (names.CURRENT, names.PREVIOUS)
        tagged = [names.tagged(revision.stack, tag) for tag in tags]
        pointed = [image.id for tag in tagged if (image := await self.images.inspect(tag))]
        return revision.image not in {*pointed, *await self.in_use(), *await self.images.used()}

    def _wanted(self, revision: Revision) -> bool:
        """Whether the revision is needed by what the ledger says of it, which takes no time to read."""
        if revision.in_test or time.time() - self._needed(revision) < self.guard.total_seconds():
            return True
        try:
            pointer = self.ledger.pointer(revision.stack)
        except ConfigError:
            return True  # who knows what is current? `stacks list` tells of it
        return pointer is not None and revision.revision in (pointer.current, pointer.previous)

    async def _remove(self, revision: Revision) -> bool:
        """Remove the revision, unless a job has come for it meanwhile.

        It is retired first: who is given it afterwards is refused, and who was given it before has left a mark. Who
        makes the same image again meanwhile waits for its end, since the engine would take it from them. Engine and
        journals are asked, and the image is removed, without the ledger's lock: whoever switches would wait for them.
        """
        stack, record = revision.stack, revision.record
        if record is None:
            return False
        async with self.ledger.removal():
            retired = await self._retire(revision, record)
            if retired is None:
                return False
            try:
                free = await self._free(revision)
            except BaseException:  # nothing was removed: the revision is as good as before
                await self._replace(stack, retired, record)
                raise
            gone = free and await self._delete(revision)
            return await self._replace(stack, retired, None if gone else record) and gone

    async def _retire(self, revision: Revision, record: Record) -> Record | None:
        """Keep jobs from a revision that they get; what is known of it from now on, None if it has to stay."""
        ready = record.state is State.READY
        retired = record.model_copy(update={"state": State.RETIRED}) if ready else record
        async with self.ledger.lock():
            if self.ledger.record(revision.stack, revision.revision) != record or self._wanted(revision):
                return None
            self.ledger.write(revision.stack, retired)
        return retired

    async def _replace(self, stack: str, before: Record, after: Record | None) -> bool:
        """Note what has become of a revision; false when an import has announced it again."""
        async with self.ledger.lock():
            if self.ledger.record(stack, before.revision) != before:
                return False
            if after is None:
                self.ledger.forget(stack, before.revision)
            else:
                self.ledger.write(stack, after)
        return True

    async def _delete(self, revision: Revision) -> bool:
        tag = names.tagged(revision.stack, revision.revision)
        gone = await self.images.remove(tag) if revision.tagged else True
        # It may never have had a name, as where an import was broken off, or have lost it to somebody's hand.
        return gone and await self.images.remove_nameless(revision.image)

    def _needed(self, revision: Revision) -> float:
        """When the revision was last made or given to a job; what is of no use was made for nobody."""
        built = None if revision.broken_off else revision.record
        return _last_used(self.ledger, revision.stack, revision.revision, built)


def _last_used(ledger: Ledger, stack: str, revision: str, record: Record | None) -> float:
    return max(record.built.timestamp() if record else 0.0, ledger.used(stack, revision))

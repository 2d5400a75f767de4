"""Which revision the next job gets: use one, and roll back. No job that has started notices."""

import logging
from typing import Protocol

from runner.errors import EngineError
from runner.job import is_revision
from runner.stacks import names
from runner.stacks.catalog import own_revision
from runner.stacks.images import Image
from runner.stacks.revisions import Ledger, Pointer, RevisionError, State
from runner.units import quoted

log = logging.getLogger(__name__)


class TaggedImages(Protocol):
    """What switching asks of the engine."""

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag or id; None if there is none."""

    async def tag(self, image: str, repository: str, tag: str) -> None:
        """Give the image a name, which another image loses."""


class Switch:
    """Moves the pointers of stacks. Methods raise `ConfigError`, `EngineError`, `RevisionError`."""

    def __init__(self, ledger: Ledger, images: TaggedImages) -> None:
        self._ledger = ledger
        self._images = images

    async def pointer(self, stack: str) -> Pointer | None:
        """The stack's pointer; where it has none yet, what its tag `:current` stands for."""
        pointer = self._ledger.pointer(stack)
        if pointer is not None:
            return pointer
        image = await self._images.inspect(names.tagged(stack, names.CURRENT))
        return Pointer(current=own_revision(image)) if image else None

    async def use(self, stack: str, revision: str) -> Pointer:
        """Make the revision current, and what was current previous."""
        async with self._ledger.lock():
            await self.image(stack, revision)
            before = await self._settled(stack)
            if before is not None and before.current == revision:
                return before
            return await self._move(stack, Pointer(current=revision, previous=before.current if before else None))

    async def roll_back(self, stack: str) -> Pointer:
        """Make what was current before current again; a second time undoes the first."""
        async with self._ledger.lock():
            before = await self._settled(stack)
            if before is None or before.previous is None:
                raise RevisionError(
                    f"{stack}: there is no previous revision; runner stacks list -a shows what there is"
                )
            await self.image(stack, before.previous)
            return await self._move(stack, Pointer(current=before.previous, previous=before.current))

    async def image(self, stack: str, revision: str) -> Image:
        """The image of a revision that may be used."""
        if not is_revision(revision):
            raise RevisionError(
                f"{stack}: {quoted(revision)} is no revision; runner stacks list -a shows what there is"
            )
        record = self._ledger.record(stack, revision)
        if record is not None and record.state is not State.READY:
            why = {
                State.FAILED: f"failed its smoke test: {record.smoke.reason if record.smoke else 'it did not end'}",
                State.TESTING: "has not passed its smoke test; build or import it again",
                State.RETIRED: "is being removed; build or import it again",
            }[record.state]
            raise RevisionError(f"{stack}: revision {revision} {why}")
        image = await self._images.inspect(record.image if record else names.tagged(stack, revision))
        if image is None:
            raise RevisionError(f"{stack}: there is no revision {revision}; runner stacks list -a shows what there is")
        return image

    async def _settled(self, stack: str) -> Pointer | None:
        """The pointer; what the tag `:current` stood for so far gets a name by which it is found again."""
        pointer = self._ledger.pointer(stack)
        if pointer is not None:
            return pointer
        image = await self._images.inspect(names.tagged(stack, names.CURRENT))
        if image is None:
            return None
        revision = own_revision(image)
        if self._ledger.record(stack, revision) is None:
            await self._images.tag(image.id, names.repository(stack), revision)
        return Pointer(current=revision)

    async def _move(self, stack: str, pointer: Pointer) -> Pointer:
        self._ledger.point(stack, pointer)
        # From here on jobs get it; the tags are for people.
        try:
            for tag, revision in ((names.PREVIOUS, pointer.previous), (names.CURRENT, pointer.current)):
                if revision is not None:
                    image = await self.image(stack, revision)
                    await self._images.tag(image.id, names.repository(stack), tag)
        except (EngineError, RevisionError) as error:
            log.warning("the tags of a stack do not follow its pointer", extra={"stack": stack, "fault": str(error)})
        return pointer

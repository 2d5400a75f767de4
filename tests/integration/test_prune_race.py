"""Jobs that start while their revision is being removed: each either runs, or was told that it is not here."""

import asyncio
import io
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.attempts import make_attempt
from tests.integration.engine_house import House, open_house
from tests.integration.local_house import Place, open_place
from tests.services import Endpoint

from runner.adapters.docker.images import Images, open_images
from runner.errors import DeferredError
from runner.job import Bytes, StackRef
from runner.stacks.catalog import Catalog
from runner.stacks.images import Image
from runner.stacks.prune import Pruned, Pruning
from runner.stacks.revisions import Ledger, Pointer, Record, State

pytestmark = pytest.mark.engine

REVISION = "old"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CALLS = 8
"""How many calls to the engine a removal takes, one more or less."""


class Interrupted:
    """The engine's images for `prune`; with its `number`-th call from now it lets somebody else begin."""

    def __init__(self, images: Images, number: int) -> None:
        self.begin = asyncio.Event()
        self._images = images
        self._left = number

    def _count(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self.begin.set()

    async def inspect(self, name: str) -> Image | None:
        self._count()
        return await self._images.inspect(name)

    async def tags(self) -> Mapping[str, str]:
        self._count()
        return await self._images.tags()

    async def layers(self, image: str) -> Mapping[str, Bytes]:
        self._count()
        return await self._images.layers(image)

    async def used(self) -> frozenset[str]:
        self._count()
        return await self._images.used()

    async def remove(self, name: str) -> bool:
        self._count()
        return await self._images.remove(name)

    async def remove_nameless(self, image: str) -> bool:
        self._count()
        return await self._images.remove_nameless(image)


async def make(images: Images, number: int) -> str:
    """An image of its own on busybox, which differs in nothing but a label."""
    context = io.BytesIO()
    dockerfile = b"FROM runner-tests/busybox:latest\n"
    with tarfile.open(fileobj=context, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(dockerfile)
        tar.addfile(member, io.BytesIO(dockerfile))
    context.seek(0)
    return await images.build(context, {"round": f"{datetime.now(UTC).timestamp()} {number}"}, lambda _: None)


async def start(catalog: Catalog, house: House, stack: str, begin: asyncio.Event) -> bool:
    """A job that pins the revision, as the daemon starts it; false when it was told that it is not here."""
    await begin.wait()
    try:
        found = await catalog.resolve(StackRef(name=stack, revision=REVISION))
    except DeferredError:
        return False
    attempt = make_attempt("true", worker=house.worker, image=found.image)
    try:
        container = await house.launch(attempt)
        async with asyncio.timeout(60):
            assert (await container.wait()).code == 0
    finally:
        await house.engine.discard(attempt)
    return True


async def prune(pruning: Pruning, begin: asyncio.Event) -> Pruned:
    """Prune; whoever waits for a call that was not made begins after it."""
    pruned = await pruning.run()
    begin.set()
    return pruned


async def no_claims() -> frozenset[str]:
    """The journal of a daemon that has not got so far as to note the job."""
    return frozenset()


@pytest.fixture
async def place(engine: Endpoint, busybox_image: str, namespace: str, tmp_path: Path) -> Place:  # noqa: ARG001
    return Place(url=engine.url, worker=namespace, folder=tmp_path)


@pytest.mark.parametrize("rounds", [10, pytest.param(500, marks=pytest.mark.slow)])
async def test_no_job_starts_on_what_is_gone(place: Place, rounds: int) -> None:
    stack, ledger = place.worker, Ledger(place.state_dir / "stacks")
    given = refused = 0
    async with (
        open_place(place.url, place.worker, place.folder),
        open_images(place.url) as images,
        open_house(place.url, place.worker, place.state_dir, "") as house,
    ):
        place.write_stack(stack)
        ledger.point(stack, Pointer(current="new"))
        catalog = Catalog(place.stacks, images, ledger)
        for number in range(rounds):
            image = await make(images, number)
            await images.tag(image, f"runner/{stack}", REVISION)
            record = Record(revision=REVISION, image=image, state=State.READY, built=LONG_AGO)
            ledger.write(stack, record)
            ledger.unmark(stack, REVISION)
            between = Interrupted(images, number % CALLS)
            if number % CALLS == 0:
                between.begin.set()
            pruning = Pruning(ledger=ledger, images=between, in_use=no_claims, most=Bytes(0))
            async with asyncio.timeout(60):
                ran, pruned = await asyncio.gather(
                    start(catalog, house, stack, between.begin), prune(pruning, between.begin)
                )
            assert ran == (not pruned.removed)
            assert (await images.inspect(image) is not None) == ran
            given, refused = given + ran, refused + (not ran)
            if ran:
                await images.remove(f"runner/{stack}:{REVISION}")
    assert given > 0
    assert refused > 0

import logging
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.errors import DeferredError, EngineGone, RejectedError
from runner.job import SecretRef, StackRef
from runner.ports import Stacks
from runner.stacks.catalog import KEPT, Catalog
from runner.stacks.images import Image
from runner.stacks.revisions import Ledger, Pin, Pointer, Record, State

BUILT = Image(
    id="sha256:" + "a" * 64,
    labels={"runner.revision": "rev1", "runner.user": "nobody", "runner.uid": "99", "runner.gid": "98"},
)


@dataclass
class Shelf:
    """Images by their tag."""

    images: dict[str, Image] = field(default_factory=dict)
    asked: int = 0
    gone: bool = False

    async def inspect(self, name: str) -> Image | None:
        self.asked += 1
        if self.gone:
            raise EngineGone("no connection")
        return self.images.get(name)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    folder: Path
    shelf: Shelf
    clock: Clock
    ledger: Ledger
    catalog: Catalog

    def write(self, name: str, text: str = "") -> None:
        path = self.folder / name / "stack.toml"
        path.parent.mkdir(exist_ok=True)
        # A new file each time, so that its state differs however fast the test is.
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    def built(self, name: str, image: Image = BUILT) -> None:
        self.shelf.images[f"runner/{name}:current"] = image


@pytest.fixture
def world(tmp_path: Path) -> World:
    shelf, clock = Shelf(), Clock()
    ledger = Ledger(tmp_path / "state/stacks")
    folder = tmp_path / "stacks"
    folder.mkdir()
    return World(folder, shelf, clock, ledger, Catalog(folder, shelf, ledger, clock=clock))


def ref(name: str = "py", revision: str | None = None) -> StackRef:
    return StackRef(name=name, revision=revision)


async def test_a_stack_is_its_file_and_its_image(world: World) -> None:
    world.write("py", 'command = ["python"]\nuser = "1000:100"\nenv = {A = "1"}\nlog_flood = "kill"')
    world.built("py")
    stacks: Stacks = world.catalog
    stack = await stacks.resolve(ref())
    assert (stack.name, stack.revision, stack.image) == ("py", "rev1", BUILT.id)
    assert (stack.command, stack.uid, stack.gid, stack.env) == (("python",), 1000, 100, {"A": "1"})
    assert stack.log_flood_kills


async def test_a_named_user_has_the_numbers_of_the_image(world: World) -> None:
    world.write("py", 'user = "nobody"')
    world.built("py")
    stack = await world.catalog.resolve(ref())
    assert (stack.uid, stack.gid) == (99, 98)


async def test_a_user_that_the_image_was_not_built_for_needs_a_build(world: World) -> None:
    world.write("py", 'user = "daemon"')
    world.built("py")
    with pytest.raises(DeferredError, match='"daemon" is not known of its image; run: runner stacks build py'):
        await world.catalog.resolve(ref())


@pytest.mark.parametrize("user", ['"nobody"', "1000"])
async def test_capabilities_are_for_root(world: World, user: str) -> None:
    world.write("py", f'user = {user}\ncap_add = ["NET_RAW"]')
    world.built("py")
    with pytest.raises(DeferredError, match='cap_add: the kernel gives them to root alone; set user = "0"'):
        await world.catalog.resolve(ref())
    world.write("root", 'user = "0"\ncap_add = ["NET_RAW"]')
    world.built("root")
    assert (await world.catalog.resolve(ref("root"))).cap_add == ("NET_RAW",)


async def test_an_image_that_was_tagged_by_hand_has_its_id_for_a_revision(world: World) -> None:
    world.write("py")
    world.built("py", Image(id="sha256:" + "b" * 64))
    assert (await world.catalog.resolve(ref())).revision == "b" * 12


@pytest.mark.parametrize("name", ["py", "../py", "Up", ""])
async def test_a_stack_without_a_file_does_not_exist(world: World, name: str) -> None:
    world.built(name)
    with pytest.raises(DeferredError, match="this worker has no stack"):
        await world.catalog.resolve(ref(name))
    assert world.shelf.asked == 0


def image(letter: str) -> Image:
    return Image(id="sha256:" + letter * 64)


def keep(world: World, revision: str, letter: str, state: State = State.READY) -> None:
    """A revision with a record."""
    world.shelf.images[image(letter).id] = image(letter)
    record = Record(revision=revision, image=image(letter).id, state=state, built=datetime.now(UTC))
    world.ledger.write("py", record)


async def test_the_pointer_counts_and_not_the_tag(world: World) -> None:
    world.write("py")
    world.built("py")
    keep(world, "one", "1")
    keep(world, "two", "2")
    for revision, letter in (("one", "1"), ("two", "2"), ("one", "1")):
        world.ledger.point("py", Pointer(current=revision))
        stack = await world.catalog.resolve(ref())
        assert (stack.revision, stack.image) == (revision, image(letter).id)


async def test_a_pin_is_what_it_says_whatever_is_current(world: World) -> None:
    world.write("py", 'command = ["now"]')
    keep(world, "one", "1")
    keep(world, "two", "2")
    world.ledger.point("py", Pointer(current="two", previous="one"))
    stack = await world.catalog.resolve(ref("py", "one"))
    assert (stack.revision, stack.image, stack.command) == ("one", image("1").id, ("now",))


async def test_a_pin_may_name_a_tag_that_somebody_made(world: World) -> None:
    world.write("py")
    world.shelf.images["runner/py:mine"] = BUILT
    stack = await world.catalog.resolve(ref("py", "mine"))
    assert (stack.revision, stack.image) == ("mine", BUILT.id)
    del world.shelf.images["runner/py:mine"]
    with pytest.raises(DeferredError, match='has no revision "mine" of the stack "py"'):
        await world.catalog.resolve(ref("py", "mine"))


async def test_a_revision_that_failed_is_refused_and_others_may_be_elsewhere(world: World) -> None:
    world.write("py")
    keep(world, "bad", "1", State.FAILED)
    keep(world, "new", "2", State.TESTING)
    keep(world, "old", "3", State.RETIRED)
    with pytest.raises(RejectedError, match="py@bad failed its smoke test"):
        await world.catalog.resolve(ref("py", "bad"))
    for revision in ("new", "old", "absent"):
        with pytest.raises(DeferredError, match=f'has no revision "{revision}"'):
            await world.catalog.resolve(ref("py", revision))
    assert world.ledger.used("py", "absent") == 0


async def test_a_revision_that_is_given_out_is_marked(world: World) -> None:
    world.write("py")
    keep(world, "one", "1")
    assert world.ledger.used("py", "one") == 0
    before = time.time() - 1
    world.ledger.point("py", Pointer(current="one"))
    (listed,) = await world.catalog.list()
    assert (listed.stack is not None, world.ledger.used("py", "one")) == (True, 0)
    await world.catalog.resolve(ref("py", "one"))
    assert world.ledger.used("py", "one") >= before


async def test_a_current_revision_that_is_gone_says_so(world: World) -> None:
    world.write("py")
    keep(world, "one", "1")
    world.ledger.point("py", Pointer(current="one"))
    world.shelf.images.clear()
    with pytest.raises(DeferredError, match="revision one is gone; run: runner stacks build py"):
        await world.catalog.resolve(ref())


async def test_a_damaged_pointer_makes_the_stack_unavailable(world: World) -> None:
    world.write("py")
    world.ledger.point("py", Pointer(current="one"))
    (world.folder.parent / "state/stacks/py/pointer.json").write_text("{")
    with pytest.raises(DeferredError, match=r"pointer\.json: is damaged"):
        await world.catalog.resolve(ref())


async def test_a_stack_whose_image_is_not_built_says_so(world: World) -> None:
    world.write("py")
    with pytest.raises(DeferredError, match="not built; run: runner stacks build py"):
        await world.catalog.resolve(ref())
    world.built("py")
    assert (await world.catalog.resolve(ref())).image == BUILT.id


async def test_a_runtime_that_the_operator_did_not_allow_is_refused(world: World) -> None:
    world.write("py", 'runtime = "crun"')
    world.built("py")
    with pytest.raises(DeferredError, match="not among"):
        await world.catalog.resolve(ref())


@pytest.mark.parametrize("runtimes", [("crun", "runc"), ("runc", "crun")], ids=["crun-first", "runc-first"])
async def test_the_first_runtime_is_that_of_stacks_which_name_none(world: World, runtimes: tuple[str, ...]) -> None:
    catalog = Catalog(world.folder, world.shelf, world.ledger, runtimes=runtimes)
    for name, text in {"none": "", "one": 'runtime = "runc"'}.items():
        world.write(name, text)
        world.built(name)
    assert (await catalog.resolve(ref("none"))).runtime == runtimes[0]
    assert (await catalog.resolve(ref("one"))).runtime == "runc"


async def test_a_first_runtime_that_the_engine_lacks_keeps_the_stacks_which_name_none(world: World) -> None:
    catalog = Catalog(world.folder, world.shelf, world.ledger, runtimes=("crun", "runc"))
    catalog.engine_has(frozenset({"runc"}))
    world.write("py")
    world.built("py")
    with pytest.raises(DeferredError, match='runtime: the engine does not know "crun"; add it to its runtimes'):
        await catalog.resolve(ref())


async def test_a_changed_file_counts_at_once(world: World) -> None:
    world.write("py", 'command = ["one"]')
    world.built("py")
    assert (await world.catalog.resolve(ref())).command == ("one",)
    world.write("py", 'command = ["two"]')
    assert (await world.catalog.resolve(ref())).command == ("two",)


async def test_a_file_that_stays_is_not_read_again(world: World) -> None:
    world.write("py", 'command = ["one"]')
    world.built("py")
    await world.catalog.resolve(ref())
    path = world.folder / "py/stack.toml"
    before = path.stat()
    path.write_text('command = ["two"]')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await world.catalog.resolve(ref())).command == ("one",)


async def test_a_broken_file_makes_its_stack_unavailable_and_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.write("py", "comand = 1")
    world.write("other")
    for name in ("py", "other"):
        world.built(name)
    with caplog.at_level(logging.ERROR, "runner.stacks.catalog"):
        for _ in range(3):
            with pytest.raises(DeferredError, match=r"cannot be used on this worker.*comand: is unknown"):
                await world.catalog.resolve(ref())
    assert [record.getMessage() for record in caplog.records] == ["stack file is broken"]
    assert (await world.catalog.resolve(ref("other"))).name == "other"
    world.write("py")
    assert (await world.catalog.resolve(ref())).name == "py"


async def test_an_image_is_looked_up_again_after_a_while_or_when_it_was_found_missing(world: World) -> None:
    world.write("py")
    world.built("py")
    for _ in range(3):
        await world.catalog.resolve(ref())
    assert world.shelf.asked == 1

    newer = Image(id="sha256:" + "c" * 64)
    world.built("py", newer)
    world.clock.now += KEPT.total_seconds()
    assert (await world.catalog.resolve(ref())).image == newer.id

    world.built("py", BUILT)
    assert (await world.catalog.resolve(ref())).image == newer.id
    world.catalog.invalidate("py")
    assert (await world.catalog.resolve(ref())).image == BUILT.id


async def test_an_engine_that_is_away_is_not_the_stacks_fault(world: World) -> None:
    world.write("py")
    world.shelf.gone = True
    with pytest.raises(EngineGone):
        await world.catalog.resolve(ref())


async def test_the_list_has_each_stack_with_its_image_or_its_fault(world: World) -> None:
    world.write("broken", "x = 1")
    world.write("fine", 'description = "all good"')
    world.write("unbuilt", 'description = "later"')
    world.built("fine")
    world.built("broken")
    (world.folder / "README.md").write_text("no stack")
    (world.folder / "Not-A-Name").mkdir()
    assert world.catalog.installed() == ["broken", "fine", "unbuilt"]
    broken, fine, unbuilt = await world.catalog.list()
    assert broken.stack is None
    assert "x: is unknown" in (broken.fault or "")
    assert fine.stack is not None
    assert (fine.description, fine.fault, fine.stack.image) == ("all good", None, BUILT.id)
    assert (unbuilt.description, unbuilt.stack) == ("later", None)
    assert "not built" in (unbuilt.fault or "")


async def test_no_folder_is_no_stacks(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "none", Shelf(), Ledger(tmp_path / "state")).installed() == []


async def test_a_stacks_secrets_are_named(world: World) -> None:
    world.write("py", 'secrets = ["token", {name = "registry", shared = true}]')
    world.built("py")
    stack = await world.catalog.resolve(ref())
    assert stack.secrets == (SecretRef(name="token"), SecretRef(name="registry", shared=True))


async def test_jobs_are_told_why_an_image_of_a_registry_is_not_here(world: World) -> None:
    image = f"py@sha256:{'0' * 64}"
    world.write("py", f'image = "{image}"')
    with pytest.raises(DeferredError, match=r"not here yet; .* runner stacks pull py"):
        await world.catalog.resolve(ref())
    world.ledger.pinned("py", Pin(image=image, user="65534:65534", fault="manifest unknown"))
    with pytest.raises(DeferredError, match="could not be had from the registry: manifest unknown"):
        await world.catalog.resolve(ref())
    world.ledger.pinned("py", Pin(image=f"py@sha256:{'1' * 64}", user="65534:65534", fault="manifest unknown"))
    with pytest.raises(DeferredError, match="not here yet"):
        await world.catalog.resolve(ref())

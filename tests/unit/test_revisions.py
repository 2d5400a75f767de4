import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from runner.adapters.docker.images import Images
from runner.app.admission import Admission
from runner.errors import ConfigError, EngineGone
from runner.job import Bytes
from runner.settings import load_settings
from runner.stacks.build import Built
from runner.stacks.catalog import Catalog
from runner.stacks.images import BuildError, Image
from runner.stacks.prune import Pruned, Pruning
from runner.stacks.revisions import Ledger, Pointer, Record, RevisionError, State
from runner.stacks.switch import Switch

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
MB = 2**20


@dataclass
class Shelf:
    """The engine's images: what each name stands for, and each image's layers."""

    named: dict[str, str] = field(default_factory=dict)
    layers_of: dict[str, dict[str, int]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    deaf: bool = False

    async def inspect(self, name: str) -> Image | None:
        found = self.named.get(name, name)
        tags = tuple(tag for tag, image in self.named.items() if image == found)
        return Image(id=found, tags=tags) if found in self.layers_of else None

    async def tag(self, image: str, repository: str, tag: str) -> None:
        if self.deaf:
            raise EngineGone("no connection")
        self.named[f"{repository}:{tag}"] = image

    async def tags(self) -> Mapping[str, str]:
        return dict(self.named)

    async def layers(self, image: str) -> Mapping[str, Bytes]:
        return {layer: Bytes(size) for layer, size in self.layers_of.get(image, {}).items()}

    async def used(self) -> frozenset[str]:
        return frozenset(self.held)

    async def remove(self, name: str) -> bool:
        image = self.named.get(name, name)
        if image in self.held:
            return False
        self.named.pop(name, None)
        if image not in self.named.values():
            del self.layers_of[image]
        return True

    async def remove_nameless(self, image: str) -> bool:
        found = await self.inspect(image)
        return found is None or bool(found.tags) or await self.remove(image)


@dataclass
class World:
    ledger: Ledger
    shelf: Shelf
    claimed: set[str] = field(default_factory=set)
    looks: list[Callable[[], None]] = field(default_factory=list)
    """What happens when `prune` asks for the journals: the first time, the second time, and so on."""

    @property
    def switch(self) -> Switch:
        return Switch(self.ledger, self.shelf)

    def add(self, stack: str, revision: str, state: State = State.READY, *, used: int = 0, own: int = 10) -> str:
        """A revision with a layer of its own on a base of 100 MB; `used` is in seconds after a day long ago."""
        image = f"sha256:{stack}-{revision}"
        self.shelf.named[f"runner/{stack}:{revision}"] = image
        self.shelf.layers_of[image] = {"base": 100 * MB, image: own * MB}
        built = LONG_AGO + timedelta(seconds=used)
        self.ledger.write(stack, Record(revision=revision, image=image, state=state, built=built))
        return image

    @property
    def admission(self) -> Admission:
        images, catalog = cast("Images", self.shelf), Catalog(Path("/none"), self.shelf, self.ledger)
        return Admission(settings=load_settings({}), images=images, catalog=catalog, ledger=self.ledger, say=print)

    async def prune(self, most: int = 0, *, dry: bool = False) -> Pruned:
        async def in_use() -> frozenset[str]:
            if self.looks:
                self.looks.pop(0)()
            return frozenset(self.claimed)

        pruning = Pruning(ledger=self.ledger, images=self.shelf, in_use=in_use, most=Bytes(most * MB))
        return await pruning.run(dry=dry)

    async def pruned(self, most: int = 0) -> list[str]:
        return [each.revision for each in (await self.prune(most)).removed]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Ledger(tmp_path / "stacks"), Shelf())


async def test_use_moves_the_pointer_and_the_tags_follow(world: World) -> None:
    one, two = world.add("py", "one"), world.add("py", "two")
    assert await world.switch.use("py", "one") == Pointer(current="one")
    assert await world.switch.use("py", "two") == Pointer(current="two", previous="one")
    assert await world.switch.use("py", "two") == Pointer(current="two", previous="one")
    assert world.ledger.pointer("py") == Pointer(current="two", previous="one")
    assert (world.shelf.named["runner/py:current"], world.shelf.named["runner/py:previous"]) == (two, one)


async def test_a_rollback_is_undone_by_a_second_one(world: World) -> None:
    one, two = world.add("py", "one"), world.add("py", "two")
    await world.switch.use("py", "one")
    await world.switch.use("py", "two")
    assert await world.switch.roll_back("py") == Pointer(current="one", previous="two")
    assert (world.shelf.named["runner/py:current"], world.shelf.named["runner/py:previous"]) == (one, two)
    assert await world.switch.roll_back("py") == Pointer(current="two", previous="one")


async def test_nothing_to_roll_back_to_is_told(world: World) -> None:
    world.add("py", "one")
    with pytest.raises(RevisionError, match="no previous revision"):
        await world.switch.roll_back("py")
    await world.switch.use("py", "one")
    with pytest.raises(RevisionError, match="no previous revision"):
        await world.switch.roll_back("py")


@pytest.mark.parametrize(
    ("state", "why"), [(State.FAILED, "failed its"), (State.TESTING, "not passed"), (State.RETIRED, "removed")]
)
async def test_only_a_proven_revision_is_used(world: World, state: State, why: str) -> None:
    world.add("py", "one")
    await world.switch.use("py", "one")
    world.add("py", "two", state)
    with pytest.raises(RevisionError, match=why):
        await world.switch.use("py", "two")
    with pytest.raises(RevisionError, match="no revision three"):
        await world.switch.use("py", "three")
    assert world.ledger.pointer("py") == Pointer(current="one")


async def test_what_the_tag_stood_for_before_there_was_a_pointer_can_be_rolled_back_to(world: World) -> None:
    old = f"sha256:{'a' * 64}"
    world.shelf.layers_of[old] = {}
    world.shelf.named["runner/py:current"] = old
    world.add("py", "new")
    assert await world.switch.use("py", "new") == Pointer(current="new", previous="a" * 12)
    assert await world.switch.roll_back("py") == Pointer(current="a" * 12, previous="new")
    assert world.shelf.named["runner/py:current"] == old


async def test_the_pointer_counts_even_if_the_tags_cannot_follow(world: World) -> None:
    world.add("py", "one")
    world.shelf.deaf = True
    assert await world.switch.use("py", "one") == Pointer(current="one")
    assert world.ledger.pointer("py") == Pointer(current="one")


async def test_switches_wait_for_each_other_and_hold_up_nothing_else(world: World) -> None:
    entered = asyncio.Event()

    async def other() -> None:
        async with world.ledger.lock():
            entered.set()

    async with world.ledger.lock():
        task = asyncio.create_task(other())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await entered.wait()
    async with asyncio.timeout(30):
        await task
    assert entered.is_set()


@pytest.mark.parametrize("word", ["current", "previous", "../pointer.json", "", "-x", "a" * 65])
async def test_what_cannot_be_a_revision_is_refused(world: World, word: str) -> None:
    image = world.add("py", "one")
    world.shelf.named |= {"runner/py:current": image, "runner/py:previous": image}
    with pytest.raises(RevisionError, match="is no revision"):
        await world.switch.use("py", word)
    assert world.ledger.pointer("py") is None


def test_a_reader_never_sees_half_a_pointer(world: World) -> None:
    names = ["a" * 60, "b" * 60]
    world.ledger.point("py", Pointer(current=names[0]))
    done = threading.Event()

    def move() -> None:
        for number in range(100):
            world.ledger.point("py", Pointer(current=names[number % 2], previous=names[1 - number % 2]))
        done.set()

    thread = threading.Thread(target=move)
    thread.start()
    while not done.is_set():
        pointer = world.ledger.pointer("py")
        assert pointer is not None
        assert pointer.previous != pointer.current
    thread.join()


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("in the way")
    with pytest.raises(ConfigError, match=r"worker\.state_dir: .* cannot be written"):
        Ledger(tmp_path / "stacks").point("py", Pointer(current="one"))


async def test_what_root_makes_belongs_to_the_daemons_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def chown(path: Path, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        given[path.relative_to(tmp_path).parts[:2]] = (uid, gid)

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        chown(Path(f"/proc/self/fd/{descriptor}").readlink(), uid, gid, follow_symlinks=False)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "fchown", fchown)
    ledger = Ledger(tmp_path / "stacks")
    async with ledger.lock():
        ledger.point("py", Pointer(current="one"))
    ledger.use("other", "one")
    owner = tmp_path.stat()
    assert given == dict.fromkeys(
        (("stacks",), ("stacks", ".lock"), ("stacks", "py"), ("stacks", "other")), (owner.st_uid, owner.st_gid)
    )


async def test_root_follows_no_link_that_the_daemon_could_have_put_there(tmp_path: Path) -> None:
    ledger, target = Ledger(tmp_path / "stacks"), tmp_path / "target"
    (tmp_path / "stacks/py/used").mkdir(parents=True)
    (tmp_path / "stacks/.lock").symlink_to(target)
    (tmp_path / "stacks/py/used/one").symlink_to(target)
    with pytest.raises(ConfigError, match="cannot be written"):
        async with ledger.lock():
            pass
    ledger.use("py", "one")
    assert not target.exists()


async def test_the_least_recently_used_goes_first_until_the_rest_fits(world: World) -> None:
    for number, name in enumerate(("d", "b", "c", "a")):
        world.add("py", name, used=number)
    now = time.time()
    mark = world.ledger._folder / "py/used/b"
    world.ledger.use("py", "b")
    os.utime(mark, (now - 3600, now - 3600))
    pruned = await world.prune(120)
    assert [each.revision for each in pruned.removed] == ["d", "c"]
    assert (pruned.before, pruned.after) == (140 * MB, 120 * MB)
    assert world.ledger.record("py", "d") is None
    assert sorted(world.shelf.named) == ["runner/py:a", "runner/py:b"]


async def test_what_somebody_else_tagged_is_left_alone(world: World) -> None:
    image = world.add("py", "mine")
    world.shelf.named |= {"runner/py:theirs": image, "runner/other:rev": image}
    world.shelf.layers_of["sha256:other"] = {"other": 10 * MB}
    world.shelf.named["runner/py:unknown"] = "sha256:other"
    assert await world.pruned() == []  # without its record it would take as much disk, and be counted as freed
    assert len(world.shelf.named) == 4
    del world.shelf.named["runner/py:theirs"], world.shelf.named["runner/other:rev"]
    assert await world.pruned() == ["mine"]
    assert sorted(world.shelf.named) == ["runner/py:unknown"]


async def test_what_failed_is_forgotten_even_if_somebody_else_tagged_it(world: World) -> None:
    image = world.add("py", "failed", State.FAILED)
    world.shelf.named["runner/py:theirs"] = image
    assert await world.pruned(1000) == ["failed"]
    assert sorted(world.shelf.named) == ["runner/py:theirs"]


async def test_a_dry_run_tells_the_same_and_removes_nothing(world: World) -> None:
    for name in ("a", "b"):
        world.add("py", name)
    dry = await world.prune(110, dry=True)
    assert len(world.shelf.named) == 2
    assert (await world.prune(110)).removed == dry.removed


async def test_what_is_needed_stays_however_full_it_is(world: World) -> None:
    names = ("current", "previous_", "claimed", "held", "lately", "idle")
    images = {name: world.add("py", name.rstrip("_")) for name in names}
    world.ledger.point("py", Pointer(current="current", previous="previous"))
    world.claimed.add(images["claimed"])
    world.shelf.held.add(images["held"])
    world.ledger.use("py", "lately")
    assert await world.pruned() == ["idle"]


async def test_without_a_pointer_the_tags_count(world: World) -> None:
    image = world.add("py", "one")
    world.shelf.named["runner/py:current"] = image
    assert await world.pruned() == []
    world.ledger.point("py", Pointer(current="other"))
    assert await world.pruned() == ["one"]


async def test_what_was_just_made_stays_even_if_it_bears_no_mark(world: World) -> None:
    image = world.add("py", "one")
    world.ledger.write("py", Record(revision="one", image=image, state=State.READY, built=datetime.now(UTC)))
    assert await world.pruned() == []


async def test_nobody_waits_for_the_engine_to_delete(world: World) -> None:
    world.add("py", "old")
    world.add("py", "one")
    world.ledger.point("py", Pointer(current="other"))
    world.ledger.use("py", "one")
    remove = world.shelf.remove

    async def slow(name: str) -> bool:
        async with asyncio.timeout(30):
            await world.switch.use("py", "one")
        return await remove(name)

    world.shelf.remove = slow  # type: ignore[method-assign]
    assert await world.pruned() == ["old"]
    assert world.ledger.pointer("py") == Pointer(current="one", previous="other")


async def test_one_damaged_record_takes_nothing_with_it(world: World) -> None:
    for name in ("one", "two"):
        world.add("py", name)
        world.add("other", name)
    folder = world.ledger._folder
    (folder / "py/revisions/one").write_text("{")
    (folder / "other/pointer.json").write_text("{")
    assert [record.revision for record in world.ledger.records("py")] == ["two"]
    assert [str(folder / "py/revisions/one") in fault for fault in world.ledger.faults("py")] == [True]
    assert [str(folder / "other/pointer.json") in fault for fault in world.ledger.faults("other")] == [True]
    assert await world.pruned() == ["two"]
    assert world.ledger.record("other", "one") is not None


async def test_what_is_made_again_while_it_is_deleted_is_not_forgotten(world: World) -> None:
    world.add("py", "one")
    remove = world.shelf.remove

    async def slow(name: str) -> bool:
        gone = await remove(name)
        world.add("py", "one", State.TESTING)
        return gone

    world.shelf.remove = slow  # type: ignore[method-assign]
    assert await world.pruned() == []
    record = world.ledger.record("py", "one")
    assert record is not None
    assert record.state is State.TESTING


@pytest.mark.parametrize("stays", [False, True], ids=["gone", "there"])
async def test_who_makes_a_revision_again_waits_for_its_removal(world: World, *, stays: bool) -> None:
    image = world.add("py", "one")
    remove, begun, go_on = world.shelf.remove, asyncio.Event(), asyncio.Event()

    async def slow(name: str) -> bool:
        begun.set()
        await go_on.wait()
        return not stays and await remove(name)

    world.shelf.remove = slow  # type: ignore[method-assign]
    built = Built(stack="py", revision="one", image=Image(id=image), inputs=None)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        pruning = tasks.create_task(world.pruned())
        await begun.wait()
        making = asyncio.ensure_future(world.admission._begin(built))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.shield(making)
        go_on.set()
        if stays:
            assert (await making).state is State.READY
        else:
            with pytest.raises(BuildError, match="was removed before it was tested"):
                await making
    assert pruning.result() == ([] if stays else ["one"])


async def test_what_is_of_no_use_goes_even_if_there_is_room(world: World) -> None:
    world.add("py", "fine")
    world.add("py", "failed", State.FAILED)
    world.add("py", "broken_off", State.TESTING)
    del world.shelf.layers_of[world.add("py", "half_gone", State.RETIRED)]
    del world.shelf.named["runner/py:half_gone"]
    now = Record(revision="now", image="sha256:py-now", state=State.TESTING, built=datetime.now(UTC))
    world.add("py", "now")
    world.ledger.write("py", now)
    assert sorted(await world.pruned(1000)) == ["broken_off", "failed", "half_gone"]


async def test_an_image_that_has_no_name_goes_too(world: World) -> None:
    image = world.add("py", "unnamed", State.TESTING)
    del world.shelf.named["runner/py:unnamed"]
    assert await world.pruned() == ["unnamed"]
    assert image not in world.shelf.layers_of


async def test_a_job_that_comes_between_look_and_removal_keeps_its_revision(world: World) -> None:
    """The daemon marks what it gives out and then looks whether it was retired; `prune` does it the other way round."""
    world.add("py", "one")
    retired = world.ledger.write

    def write(stack: str, record: Record) -> None:
        if record.state is State.RETIRED:
            world.ledger.use(stack, record.revision)
        retired(stack, record)

    world.ledger.write = write  # type: ignore[method-assign]
    assert await world.pruned() == []
    record = world.ledger.record("py", "one")
    assert record is not None
    assert record.state is State.READY
    assert "runner/py:one" in world.shelf.named


async def test_what_the_engine_will_not_remove_stays_ready(world: World) -> None:
    image = world.add("py", "one")

    async def refuse(name: str) -> bool:  # noqa: ARG001
        await asyncio.sleep(0)
        return False

    world.shelf.remove = refuse  # type: ignore[method-assign]
    assert await world.pruned() == []
    assert world.ledger.record("py", "one") == Record(revision="one", image=image, state=State.READY, built=LONG_AGO)


@pytest.mark.parametrize(
    "error",
    [EngineGone("no answer"), ConfigError("no journal"), asyncio.CancelledError()],
    ids=lambda e: type(e).__name__,
)
async def test_a_look_that_fails_leaves_the_revision_as_it_was(world: World, error: BaseException) -> None:
    world.add("py", "one")
    record = world.ledger.record("py", "one")

    def fail() -> None:
        told = world.ledger.record("py", "one")
        assert told is not None
        assert told.state is State.RETIRED
        raise error

    world.looks = [lambda: None, fail]
    with pytest.raises(type(error)):
        await world.prune()
    assert world.ledger.record("py", "one") == record
    assert await world.switch.use("py", "one") == Pointer(current="one")


async def test_what_a_killed_prune_had_retired_is_ready_again(world: World) -> None:
    for name in ("idle", "held"):
        world.add("py", name, State.RETIRED)
    world.shelf.held.add("sha256:py-held")
    dry = await world.prune(1000, dry=True)
    assert dry.removed == ()
    assert {record.state for record in world.ledger.records("py")} == {State.RETIRED}
    assert await world.pruned(1000) == []
    assert {record.state for record in world.ledger.records("py")} == {State.READY}
    assert await world.pruned() == ["idle"]


async def test_nobody_waits_for_the_engine_to_tell_what_is_in_use(world: World) -> None:
    world.add("py", "old")
    world.add("py", "one")
    world.ledger.point("py", Pointer(current="other"))
    world.ledger.use("py", "one")
    used, asked = world.shelf.used, []

    async def slow() -> frozenset[str]:
        async with asyncio.timeout(30):
            asked.append(await world.switch.use("py", "one"))
        return await used()

    world.shelf.used = slow  # type: ignore[method-assign]
    assert await world.pruned() == ["old"]
    assert len(asked) == 2


async def test_what_became_current_since_the_first_look_stays(world: World) -> None:
    world.add("py", "one")
    world.looks = [lambda: world.ledger.point("py", Pointer(current="one"))]
    states: list[State] = []
    write = world.ledger.write

    def noted(stack: str, record: Record) -> None:
        states.append(record.state)
        write(stack, record)

    world.ledger.write = noted  # type: ignore[method-assign]
    assert await world.pruned() == []
    assert states == []

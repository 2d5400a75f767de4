"""The stacks of this machine, for its operator."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from runner.adapters.docker.images import Images, open_images
from runner.adapters.journal import journal_exists, open_journal
from runner.app.admission import Admission, Admitted
from runner.app.local import local_folders
from runner.errors import ConfigError, JournalError
from runner.job import Bytes
from runner.settings import Settings
from runner.stacks.build import build
from runner.stacks.catalog import Catalog, Listed
from runner.stacks.file import is_stack_name
from runner.stacks.images import Say
from runner.stacks.prune import Pruned, Pruning, Revision, disk, revisions
from runner.stacks.revisions import Ledger, Pointer
from runner.stacks.switch import Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What an operator's command about stacks works with. Made by `open_stock`."""

    settings: Settings
    images: Images
    ledger: Ledger
    catalog: Catalog

    def admission(self, say: Say) -> Admission:
        """Whoever lets new revisions in; `say` gets its progress."""
        return Admission(settings=self.settings, images=self.images, catalog=self.catalog, ledger=self.ledger, say=say)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A stack as the list shows it, with its pointer and its revisions. `size` is that of what jobs get."""

    listed: Listed
    pointer: Pointer | None
    built: datetime | None
    size: Bytes | None
    revisions: tuple[tuple[Revision, Bytes], ...]


def ledger_of(settings: Settings) -> Ledger:
    """Where this machine keeps what it knows of its revisions."""
    return Ledger(settings.worker.state_dir / "stacks")


def open_catalog(settings: Settings, images: Images) -> Catalog:
    """The stacks of this machine."""
    return Catalog(settings.stacks.dir, images, ledger_of(settings), runtimes=settings.engine.runtimes)


@asynccontextmanager
async def open_stock(settings: Settings) -> AsyncIterator[Stock]:
    """The stacks of this machine with the engine behind them."""
    async with open_images(settings.engine.url) as images:
        catalog = open_catalog(settings, images)
        yield Stock(settings=settings, images=images, ledger=ledger_of(settings), catalog=catalog)


async def build_stack(settings: Settings, name: str, say: Say, *, use: bool, fresh: bool) -> Admitted:
    """Build a stack, test what came out and, to `use` it, make it current.

    Raises `ConfigError`, `BuildError`, `SmokeError`, `EngineError`.
    """
    folder = _folder(settings, name)
    async with open_stock(settings) as stock:
        stock.catalog.check(name)
        built = await build(folder, stock.images, say, fresh=fresh)
        return await stock.admission(say).admit(built, use=use)


async def use_revision(settings: Settings, stack: str, revision: str | None) -> Pointer:
    """Make a revision current, or with None the one before. Raises `RevisionError`, `ConfigError`, `EngineError`."""
    if not is_stack_name(stack):
        raise ConfigError(f"{stack}: is not the name of a stack")
    async with open_stock(settings) as stock:
        switch = Switch(stock.ledger, stock.images)
        return await (switch.roll_back(stack) if revision is None else switch.use(stack, revision))


async def prune_stacks(settings: Settings, most: Bytes | None, *, dry: bool) -> Pruned:
    """Remove what is over `most` bytes (`stacks.max_bytes`). Raises `ConfigError`, `EngineError`, `JournalError`."""
    async with open_stock(settings) as stock:
        return await Pruning(
            ledger=stock.ledger,
            images=stock.images,
            in_use=lambda: claimed_images(settings.worker.state_dir),
            most=settings.stacks.max_bytes if most is None else most,
        ).run(dry=dry)


async def claimed_images(state_dir: Path) -> frozenset[str]:
    """The images of the jobs that this worker has, also of those that its next life will go on with, and of `exec`."""
    return (await _claimed(state_dir)).union(*[await _claimed(each) for each in local_folders(state_dir)])


async def _claimed(folder: Path) -> frozenset[str]:
    if not journal_exists(folder):
        return frozenset()
    try:
        async with open_journal(folder, lambda: datetime.now(UTC)) as journal:
            claims = await journal.open_claims()
    except (ConfigError, JournalError):
        if not folder.exists():  # that job has ended, and its journal is removed
            return frozenset()
        raise
    return frozenset(claim.record.choices.stack.image for claim in claims if claim.record.choices is not None)


async def list_stacks(settings: Settings, runtimes: frozenset[str]) -> Sequence[Listed]:
    """All stacks, each with what it is now or its fault on an engine with these runtimes. Raises `EngineError`."""
    async with open_stock(settings) as stock:
        stock.catalog.engine_has(runtimes)
        return await stock.catalog.list()


async def show_stacks(settings: Settings) -> tuple[Sequence[Shown], Bytes]:
    """All stacks with their revisions, and what these take together. Raises `ConfigError`, `EngineError`."""
    async with open_stock(settings) as stock:
        found = await revisions(stock.ledger, stock.images, stock.catalog.installed())
        sizes = {revision.image: await disk(stock.images, [revision.image]) for revision in found}
        shown = [await _shown(stock, listed, found, sizes) for listed in await stock.catalog.list()]
        return shown, await disk(stock.images, sizes)


async def _shown(stock: Stock, listed: Listed, found: Sequence[Revision], sizes: dict[str, Bytes]) -> Shown:
    faults = stock.ledger.faults(listed.name)
    told = dict.fromkeys([*filter(None, [listed.fault]), *faults])
    listed = replace(listed, fault="; ".join(told) or None)
    stack, mine = listed.stack, [revision for revision in found if revision.stack == listed.name]
    record = stock.ledger.record(listed.name, stack.revision) if stack else None
    return Shown(
        listed=listed,
        pointer=_pointer(stock.ledger, listed.name),
        built=record.built if record else None,
        size=await disk(stock.images, [stack.image]) if stack else None,
        revisions=tuple((revision, sizes[revision.image]) for revision in mine),
    )


def _pointer(ledger: Ledger, stack: str) -> Pointer | None:
    """The stack's pointer if it can be read; what is wrong with it is among the stack's faults."""
    try:
        return ledger.pointer(stack)
    except ConfigError:
        return None


def _folder(settings: Settings, name: str) -> Path:
    if not is_stack_name(name):
        raise ConfigError(f"{name}: is not the name of a stack")
    folder = settings.stacks.dir / name
    if not folder.is_dir():
        raise ConfigError(f"{name}: there is no folder {folder}; stacks.dir says where stacks are")
    return folder

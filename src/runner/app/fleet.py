"""Carrying stacks from one machine to others."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

from runner.app.admission import Admitted, SmokeError
from runner.app.stacks import Stock, open_stock
from runner.errors import ConfigError
from runner.settings import Settings
from runner.stacks import names
from runner.stacks.archive import ArchiveError, Packed, pack, unpack
from runner.stacks.build import Built, revision_of
from runner.stacks.file import FILE, is_stack_name
from runner.stacks.images import Image, Say
from runner.stacks.revisions import Record, RevisionError, State
from runner.stacks.saved import check_saved
from runner.stacks.switch import Switch


async def export_stacks(settings: Settings, wanted: Sequence[str], path: Path, say: Say) -> Sequence[Packed]:
    """Write the stacks, each in its current revision or in that named by `stack@revision`, to one file.

    All stacks that can be used if none is named. Raises `RevisionError`, `ConfigError`, `EngineError`, `ArchiveError`.
    """
    async with open_stock(settings) as stock:
        usable = [listed.name for listed in await stock.catalog.list() if listed.stack is not None]
        packed = [await _packed(stock, name) for name in wanted or usable]
        if not packed:
            raise ConfigError(f"stacks.dir: there is no stack in {settings.stacks.dir} that can be used")
        if len({each.stack for each in packed}) < len(packed):
            raise RevisionError("a stack is named twice; an archive has one revision of each")
        files = {each.stack: _stack_file(settings, each.stack) for each in packed}
        with _spool(path.absolute().parent) as images:
            say(f"saving {len(packed)} images")
            async with aclosing(stock.images.saved([each.image for each in packed])) as chunks:
                await _put(chunks, images, path.absolute().parent)
            say(f"writing {path}")
            await asyncio.to_thread(pack, path, packed, files, images)
        return packed


async def import_stacks(settings: Settings, path: Path, say: Say, *, use: bool) -> AsyncIterator[Admitted]:
    """Take in an archive: check it, load its images, test each revision and, to `use` it, make it current.

    One that fails its test, or cannot run here, is kept out, and the others are taken in; that is raised at the end.
    Raises `ArchiveError`, `SmokeError`, `ConfigError`, `EngineError`; what was not tested by then leaves nothing.
    """
    failed: list[SmokeError | ConfigError] = []
    with _spool(None) as tar:
        say(f"reading {path}")
        room = shutil.disk_usage(tempfile.gettempdir()).free
        manifest, files = await asyncio.to_thread(unpack, path, tar, room)
        await asyncio.to_thread(check_saved, tar, {each.image for each in manifest.stacks})
        tar.seek(0)
        async with open_stock(settings) as stock, _loaded(stock, manifest.stacks, tar, say) as images:
            admission = stock.admission(say)
            for each in manifest.stacks:
                built = Built(
                    stack=each.stack,
                    revision=each.revision,
                    image=images[each.stack, each.revision],
                    inputs=each.inputs,
                )
                try:
                    with _installed(settings.stacks.dir / each.stack / FILE, files[each.stack], say):
                        stock.catalog.check(each.stack)
                        admitted = await admission.admit(built, use=use)
                except (SmokeError, ConfigError) as error:
                    failed.append(error)
                else:
                    yield admitted
    if failed:
        told = "\n".join(map(str, failed))
        raise ConfigError(told) if all(isinstance(error, ConfigError) for error in failed) else SmokeError(told)


async def _put(chunks: AsyncIterator[bytes], spool: BinaryIO, folder: Path) -> None:
    """Put the images into a file in that folder, which takes them until the archive is written."""
    try:
        async for chunk in chunks:
            await asyncio.to_thread(spool.write, chunk)
        await asyncio.to_thread(spool.flush)
    except OSError as error:
        raise ArchiveError(
            f"the images do not fit into {folder}: {error.strerror}; before they are packed they take as much as on the"
            " engine's disk: make room, or write the archive elsewhere"
        ) from error


async def _packed(stock: Stock, name: str) -> Packed:
    """What goes into the archive for a stack, or for a `stack@revision`."""
    stack, _, revision = name.partition("@")
    if not is_stack_name(stack):
        raise ConfigError(f"{stack}: is not the name of a stack")
    switch = Switch(stock.ledger, stock.images)
    pointer = await switch.pointer(stack)
    revision = revision or (pointer.current if pointer else "")
    if not revision:
        raise RevisionError(f"{stack}: it is not built; run: runner stacks build {stack}")
    image = await switch.image(stack, revision)
    stock.ledger.use(stack, revision)  # so that it is not pruned meanwhile
    if not _is_what_it_says(image, stack, revision):
        raise RevisionError(
            f"{stack}: {revision} was not made by stacks build, so that nobody could check it; build it"
        )
    record = stock.ledger.record(stack, revision)
    text = _stack_file(stock.settings, stack)
    return Packed(
        stack=stack,
        revision=revision,
        image=image.id,
        stack_file=sha256(text).hexdigest(),
        built=record.built if record else datetime.now(UTC),
        inputs=record.inputs if record else None,
    )


def _is_what_it_says(image: Image, stack: str, revision: str) -> bool:
    labels = image.labels
    told = labels.get(names.STACK), labels.get(names.REVISION)
    return told == (stack, revision) and revision_of(image, labels.get(names.USER, "")) == revision


def _stack_file(settings: Settings, stack: str) -> bytes:
    path = settings.stacks.dir / stack / FILE
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


@asynccontextmanager
async def _loaded(
    stock: Stock, stacks: Sequence[Packed], tar: BinaryIO, say: Say
) -> AsyncIterator[Mapping[tuple[str, str], Image]]:
    """The images of an archive, each checked, by stack and revision. Those not admitted by the end are removed.

    Until then each has a record, by which `prune` finds it should this process be killed.
    """
    try:
        for each in stacks:
            known = stock.ledger.record(each.stack, each.revision)
            if known is None or known.state is not State.READY:
                stock.ledger.write(each.stack, _in_test(each))
        say(f"loading {len(stacks)} images")
        await stock.images.load(tar)
        images: dict[tuple[str, str], Image] = {}
        for each in stacks:
            image = await stock.images.inspect(each.image)
            if image is None or not _is_what_it_says(image, each.stack, each.revision):
                raise ArchiveError(
                    f"{each.stack}: the archive's image is not revision {each.revision}; export it again"
                )
            images[each.stack, each.revision] = image
        yield images
    finally:
        for each in stacks:
            await _drop_unless_admitted(stock, each)


def _in_test(packed: Packed) -> Record:
    now = datetime.now(UTC)
    return Record(revision=packed.revision, image=packed.image, state=State.TESTING, built=now, inputs=packed.inputs)


async def _drop_unless_admitted(stock: Stock, packed: Packed) -> None:
    """Leave nothing of a revision whose test has not ended, nor a second image of one that was here before."""
    record = stock.ledger.record(packed.stack, packed.revision)
    if record is not None and record.state is State.TESTING:
        stock.ledger.forget(packed.stack, packed.revision)
        await stock.images.remove(names.tagged(packed.stack, packed.revision))
    elif record is not None and record.image == packed.image:
        return
    await stock.images.remove_nameless(packed.image)


@contextmanager
def _installed(path: Path, content: bytes, say: Say) -> Iterator[None]:
    """The stack's file where there is none; it is taken away again if the stack is not admitted."""
    if path.exists():
        if path.read_bytes() != content:
            say(f"{path} stays as it is; that of the archive differs")
        yield
        return
    draft = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)  # the daemon reads it, whatever the umask of whoever imports
        draft.write_bytes(content)
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"stacks.dir: {path} cannot be written: {error.strerror}") from error
    try:
        yield
    except BaseException:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
        raise


@contextmanager
def _spool(folder: Path | None) -> Iterator[BufferedRandom]:
    """A file for images, which are too many for memory; it goes by itself."""
    try:
        file = tempfile.TemporaryFile(prefix="runner-stacks-", dir=folder)  # noqa: SIM115 - closed below
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise ArchiveError(f"the images cannot be put into {where}: {error.strerror or error}") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # it writes what it could not write before; nobody reads that
            file.close()

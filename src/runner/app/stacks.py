"""The stacks of this machine, for its operator."""

from collections.abc import Sequence

from runner.errors import ConfigError
from runner.settings import Settings
from runner.stacks.build import Built, build
from runner.stacks.catalog import Catalog, Listed
from runner.stacks.file import is_stack_name
from runner.stacks.images import Say, open_images


async def build_stack(settings: Settings, name: str, say: Say) -> Built:
    """Build a stack and make it current. Raises `ConfigError`, `BuildError`, `EngineError`."""
    if not is_stack_name(name):
        raise ConfigError(f"{name}: is not the name of a stack")
    folder = settings.stacks.dir / name
    if not folder.is_dir():
        raise ConfigError(f"{name}: there is no folder {folder}; stacks.dir says where stacks are")
    async with open_images(settings.engine.url) as images:
        return await build(folder, images, say)


async def list_stacks(settings: Settings) -> Sequence[Listed]:
    """All stacks, each with what it is now or its fault. Raises `EngineError`."""
    async with open_images(settings.engine.url) as images:
        return await Catalog(settings.stacks.dir, images, runtimes=settings.engine.runtimes).list()

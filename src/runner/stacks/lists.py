"""Which stacks' jobs reach out, and where to, for whoever makes their networks."""

from collections.abc import Mapping
from pathlib import Path

from runner.destination import Destination
from runner.errors import ConfigError
from runner.job import Network
from runner.stacks.file import FILE, StackFile, is_stack_name, read_stack_file


def allow_lists(folder: Path) -> Mapping[str, tuple[Destination, ...]]:
    """The `allow` of all stacks in the folder. Raises `ConfigError` with every fault of every file."""
    return {name: file.allow for name, file in _files(folder).items()}


def reaching(folder: Path) -> list[str]:
    """The stacks whose jobs reach out unless they say otherwise, or have a list. Raises as `allow_lists` does."""
    return [name for name, file in _files(folder).items() if file.allow or file.network is Network.EGRESS]


def _files(folder: Path) -> Mapping[str, StackFile]:
    files: dict[str, StackFile] = {}
    faults: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (is_stack_name(path.name) and (path / FILE).is_file()):
            continue
        try:
            files[path.name] = read_stack_file(path / FILE)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return files

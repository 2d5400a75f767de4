"""Where the jobs of each stack may go, for whoever makes their networks."""

from collections.abc import Mapping
from pathlib import Path

from runner.destination import Destination
from runner.errors import ConfigError
from runner.stacks.file import FILE, is_stack_name, read_stack_file


def allow_lists(folder: Path) -> Mapping[str, tuple[Destination, ...]]:
    """The `allow` of all stacks in the folder. Raises `ConfigError` with every fault of every file."""
    lists: dict[str, tuple[Destination, ...]] = {}
    faults: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (is_stack_name(path.name) and (path / FILE).is_file()):
            continue
        try:
            lists[path.name] = read_stack_file(path / FILE).allow
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return lists

"""File systems that are there for as long as a test needs them."""

import configparser
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.devservices.process import as_root

_UNIT = Path(__file__).parents[1] / "deploy" / "systemd" / "var-lib-runner-results.mount"


@contextmanager
def mounted_tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs at the folder, which is ours and nobody else's."""
    own = f"{options},mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    subprocess.run(as_root("mount", "-t", "tmpfs", "-o", own, "tmpfs", str(folder)), check=True)
    try:
        yield
    finally:
        subprocess.run(as_root("umount", "--lazy", str(folder)), check=True)


@contextmanager
def results_in_memory(state_dir: Path) -> Iterator[None]:
    """What operators mount for the results of jobs, with the options of the unit but for its user."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read_string(_UNIT.read_text(encoding="utf-8"))
    folder = state_dir / "results"
    folder.mkdir(mode=0o700)
    told = unit["Mount"]["Options"].replace("%%", "%").split(",")
    with mounted_tmpfs(folder, ",".join(option for option in told if not option.startswith(("uid=", "gid=")))):
        yield

"""Where the built init is, and the signal that it understands."""

import platform
from pathlib import Path

from runner.errors import ConfigError

KILL_SIGNAL = 40
"""Sent to the init: kill every process of the job at once, then report. SIGKILL would take the report along."""


def init_binary() -> Path:
    """The init for this machine. Raises `ConfigError` when it was never built."""
    binary = Path(__file__).parent / "bin" / f"init-{platform.machine()}"
    if not binary.is_file():
        raise ConfigError(f"{binary} is missing: install a C compiler and run `python -m runner.init.build`")
    return binary

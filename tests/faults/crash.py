"""`runner serve` that kills itself at one step: `python crash.py before|after module:Class.method serve`.

The step is the first call of the method. `python crash.py written "UPDATE claims SET …" serve` does so when a statement
that begins so is on the disk. SIGKILL leaves it no chance to tidy up, as a power cut would.
"""

import importlib
import os
import signal
import sys
from typing import Any

from runner.adapters.database import Database
from runner.cli import main


def arm(when: str, step: str) -> None:
    """Make the method kill this process, before or after it has done its work."""
    module, _, path = step.partition(":")
    owner_name, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    really = getattr(owner, name)

    async def crashing(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            await really(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, crashing)


def arm_write(beginning: str) -> None:
    """Make the commit of such a statement the last thing that this process does."""
    really = Database._together

    def crashing(database: Database, group: Any) -> Any:
        outcomes = really(database, group)
        if any(work.statement.startswith(beginning) for work in group):
            os.kill(os.getpid(), signal.SIGKILL)
        return outcomes

    setattr(Database, "_together", crashing)  # noqa: B010 - of another type for mypy


if __name__ == "__main__":
    if sys.argv[1] == "written":
        arm_write(sys.argv[2])
    else:
        arm(sys.argv[1], sys.argv[2])
    sys.argv[1:] = sys.argv[3:]
    main()

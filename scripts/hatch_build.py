"""Builds our PID 1 for this machine whenever a wheel is made or the project is installed for editing.

The wheel is of this machine's kind, since the init in it is; it needs no particular Python or libc.
"""

import platform
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class InitBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = runpy.run_path(str(Path(self.root, "src/runner/init/build.py")))
        try:
            binary = build["build_for_this_machine"]()
        except build["BuildError"] as error:
            raise SystemExit(f"runner: {error}") from error
        if version == "editable":
            return  # it is where it is looked for
        build_data["artifacts"].append(f"/{binary.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"

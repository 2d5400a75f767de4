"""Compiles the init: `python -m runner.init.build`. Needs a C compiler and nothing else, no libc and no headers.

Standard library only, and no import of this package: the build of the wheel loads this file by its path.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("init.c")
MACHINES = ("x86_64", "aarch64")

FLAGS = (
    "-std=c11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-static",
    "-nostdlib",
    # A fixed address needs no relocation at start; distributions make position-independent code the default.
    "-fno-pie",
    # These call into, or describe the code to, a runtime that isn't there.
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    # The same source gives the same bytes, few of them.
    "-s",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,noseparate-code",
)


class BuildError(Exception):
    """The init cannot be compiled here; the message says what to do."""


def compiler(machine: str) -> list[str]:
    """The words of a C compiler for `machine`: `$CC` or the system's for this one, else a cross compiler; or none."""
    if machine == platform.machine():
        commands = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    else:
        commands = [f"{machine}-linux-gnu-gcc"]
    found = (words for command in commands if (words := shlex.split(command)) and shutil.which(words[0]))
    return next(found, [])


def build(target: Path, *, machine: str | None = None, extra: Sequence[str] = ()) -> None:
    """Compile the init for `machine` (default: this one) to `target`, replacing it in one step.

    Raises `BuildError` without a compiler or a machine that the source knows, and when the compiler refuses.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise BuildError(f"the init runs on {' and '.join(MACHINES)}, not on {machine}")
    command = compiler(machine)
    if not command:
        raise BuildError(f"no C compiler for {machine}: install one (Debian, Ubuntu: apt-get install gcc), or set CC")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        words = [*command, *FLAGS, *extra, "-o", str(fresh), str(SOURCE)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(words)}\n{done.stderr}")
        fresh.chmod(0o755)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def build_for_this_machine() -> Path:
    """Compile the init to where `runner.init.binary` looks for it."""
    target = SOURCE.parent / "bin" / f"init-{platform.machine()}"
    build(target)
    return target


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build_for_this_machine()}\n")
    except BuildError as error:
        sys.exit(str(error))

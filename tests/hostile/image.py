"""The image of the attacks: compiled here and now, for whatever machine this is."""

import hashlib
import io
import platform
import subprocess
import tarfile
from pathlib import Path

from tests import services

from runner.init.build import compiler

SOURCES = Path(__file__).with_name("attacks")
FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-static", "-pthread")
DOCKERFILE = f"FROM {services.BUSYBOX_TAG}\nCOPY bin/ /bin/\nCOPY etc/ /etc/\n"


def compile_attacks(folder: Path) -> bytes:
    """The program of all attacks, linked statically so that it runs in any image."""
    target = folder / "attack"
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    subprocess.run([*compiler(platform.machine()), *FLAGS, "-o", str(target), *sources], check=True)
    return target.read_bytes()


async def build_image(url: str, program: bytes) -> str:
    """The id of the image; needs that of `build_busybox`."""
    tag = f"runner-tests/hostile:{hashlib.sha256(program).hexdigest()[:12]}"
    return await services.build_image(url, _context(program), tag)


def _context(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "Dockerfile", DOCKERFILE.encode(), 0o644)
        _add(tar, "bin/attack", program, 0o755)
        _add(tar, "bin/attack-setuid", program, 0o4755)
        _add(tar, "bin/nonsense", b"nonsense\n", 0o755)
        _add(tar, "etc/shadow", b"root:*:1:0:99999:7:::\n", 0o600)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))

"""The base images that stacks stand on: one for each Debian release, made from packages of this machine's mirror."""

import asyncio
import hashlib
import io
import re
import tarfile
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import IO

import aiodocker

from scripts.devservices.process import as_root, log_tail
from scripts.mirror import Mirror

REPOSITORY = "runner-base"
INPUTS = "runner.base"
"""The label that says what a base was made from."""

_FROM = re.compile(rf"^FROM {REPOSITORY}/([a-z]+)$", re.MULTILINE)
_SCRIPT = Path(__file__).with_name("base")
_DOCKERFILE = b'FROM scratch\nADD root.tar /\nCMD ["bash"]\n'


class BaseError(Exception):
    """A base could not be made; says why."""


def named_base(dockerfile: str) -> str | None:
    """The release whose base the Dockerfile stands on, if it is one of ours."""
    found = _FROM.search(dockerfile)
    return found[1] if found else None


async def is_made(docker: aiodocker.Docker, release: str, mirror: Mirror) -> bool:
    """Whether the engine has the base, made by this script from this mirror."""
    try:
        image = await docker.images.inspect(f"{REPOSITORY}/{release}")
    except aiodocker.DockerError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return bool((image["Config"]["Labels"] or {}).get(INPUTS) == _inputs(release, mirror))


async def make(docker: aiodocker.Docker, release: str, mirror: Mirror, folder: Path) -> None:
    """Make the base and give it to the engine; what the steps say is in `folder`. Raises `BaseError`."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"base-{release}.log"
    with tempfile.TemporaryDirectory(prefix="base-", dir=folder) as work, tempfile.TemporaryFile(dir=folder) as context:
        with log.open("wb") as output:
            words = as_root("env", f"APT_CONF={mirror.proxy}", str(_SCRIPT), release, mirror.url, work)
            code = await _run(words, mirror.sources(release).encode(), output)
        if code != 0:
            raise BaseError(f"making the base {release} ended with {code}{log_tail(log)}")
        await asyncio.to_thread(_pack, Path(work) / "root.tar", context)
        labels = {INPUTS: _inputs(release, mirror)}
        tag = f"{REPOSITORY}/{release}"
        await docker.images.build(fileobj=context, encoding="identity", tag=tag, labels=labels, forcerm=True)


async def _run(words: list[str], given: bytes, output: IO[bytes]) -> int:
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
    )
    try:
        await process.communicate(given)
    finally:
        if process.returncode is None:
            # The script's own trap removes its folder.
            process.terminate()
            await process.wait()
    return process.returncode or 0


def _inputs(release: str, mirror: Mirror) -> str:
    parts = (_SCRIPT.read_bytes(), release.encode(), mirror.sources(release).encode(), mirror.proxy.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _pack(root: Path, into: IO[bytes]) -> None:
    with tarfile.open(fileobj=into, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(_DOCKERFILE)
        tar.addfile(member, io.BytesIO(_DOCKERFILE))
        tar.add(root, "root.tar")
    into.seek(0)

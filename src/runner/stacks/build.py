"""Builds a stack's image, and makes it the one that the next job gets."""

import asyncio
import hashlib
import io
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.errors import ConfigError
from runner.stacks import names
from runner.stacks.context import pack, prepare
from runner.stacks.file import FILE, StackFile, is_stack_name, read_stack_file
from runner.stacks.images import BuildError, Images, Say

_FROM = re.compile(rb"^\s*FROM\s+(?:--\S+\s+)*([^\s$]+)", re.IGNORECASE | re.MULTILINE)
_REVISION_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A revision that was built and is current now. `changed` is false when it was so already."""

    stack: str
    revision: str
    image: str
    changed: bool


async def build(folder: Path, images: Images, say: Say) -> Built:
    """Build the stack in `folder`, which bears its name.

    The revision is a hash of all that goes in: the folder, what `prepare` brought, the base images and the user. The
    image that was current becomes `:previous`. Raises `ConfigError` for a wrong file, `BuildError` when a step fails,
    `EngineGone` or `EngineError`.
    """
    name = folder.absolute().name
    file = _read(folder, name)
    with tempfile.TemporaryDirectory(prefix="runner-build-") as prepared, tempfile.TemporaryFile() as context:
        await prepare(folder, Path(prepared), say)
        await asyncio.to_thread(pack, folder, Path(prepared), context)
        revision = await _revision(folder, file, context, images)
        context.seek(0)
        plain = await images.build(context, {}, say)
    uid, gid = file.numeric_user or await _numbers(images, plain, file.user, revision)
    labels = {names.STACK: name, names.REVISION: revision}
    labels |= {names.USER: file.user, names.UID: str(uid), names.GID: str(gid)}
    image = await _label(images, plain, labels)
    return Built(stack=name, revision=revision, image=image, changed=await _use(images, name, revision, image))


def _read(folder: Path, name: str) -> StackFile:
    if not is_stack_name(name):
        raise ConfigError(f"{folder}: {name} is not a stack's name; write lower-case letters, digits and single . _ -")
    if not (folder / "Dockerfile").is_file():
        raise ConfigError(f"{folder}: there is no Dockerfile")
    return read_stack_file(folder / FILE)


async def _revision(folder: Path, file: StackFile, context: io.BufferedRandom, images: Images) -> str:
    context.seek(0)
    digest = await asyncio.to_thread(hashlib.file_digest, context, "sha256")
    for base in _FROM.findall((folder / "Dockerfile").read_bytes()):
        image = None if base == b"scratch" else await images.inspect(base.decode(errors="replace"))
        digest.update(b"\0" + (image.id.encode() if image else base))
    digest.update(b"\0" + file.user.encode())
    return digest.hexdigest()[:_REVISION_LENGTH]


async def _numbers(images: Images, image: str, user: str, revision: str) -> tuple[int, int]:
    """The uid and gid of a user of the image."""
    passwd = await images.read(image, "/etc/passwd", container=f"runner-build-{revision}")
    for line in (passwd or b"").decode(errors="replace").splitlines():
        words = line.split(":")
        if words[0] == user and len(words) > 3 and words[2].isdecimal() and words[3].isdecimal():  # noqa: PLR2004
            return int(words[2]), int(words[3])
    raise BuildError(f'the image has no user "{user}" in /etc/passwd; add it in the Dockerfile or write a number')


async def _label(images: Images, image: str, labels: Mapping[str, str]) -> str:
    """The same image with labels; the user's numbers are not known before it exists."""
    context = io.BytesIO()
    dockerfile = f"FROM {image}\n".encode()
    with tarfile.open(fileobj=context, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(dockerfile)
        tar.addfile(member, io.BytesIO(dockerfile))
    context.seek(0)
    return await images.build(context, labels, lambda _line: None)


async def _use(images: Images, name: str, revision: str, image: str) -> bool:
    """Make the image current; false when it is that already."""
    current = await images.inspect(names.tagged(name, names.CURRENT))
    await images.tag(image, names.repository(name), revision)
    if current is not None and current.id == image:
        return False
    if current is not None:
        await images.tag(current.id, names.repository(name), names.PREVIOUS)
    await images.tag(image, names.repository(name), names.CURRENT)
    return True

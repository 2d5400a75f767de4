"""Makes the image of a stack: a revision that nobody uses yet."""

import asyncio
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from runner.errors import ConfigError
from runner.stacks import names
from runner.stacks.context import pack, prepare
from runner.stacks.dockerfile import named_images
from runner.stacks.file import FILE, StackFile, is_stack_name, read_stack_file
from runner.stacks.images import BuildError, Image, Say
from runner.stacks.revisions import Inputs

_OURS = ("runner-base/", "runner/")
"""How images are called that are made here; in a registry, anybody could have that name."""
_REVISION_LENGTH = 12
_DOCKERFILE = "Dockerfile"


class BuiltImages(Protocol):
    """What building asks of the engine. Methods raise `EngineGone` or `EngineError`."""

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag or id; None if there is none."""

    async def build(self, context: BinaryIO, labels: Mapping[str, str], say: Say, *, fresh: bool = False) -> str:
        """Build from a tar with a Dockerfile in it; the new image's id. Raises `BuildError` when a step fails."""

    async def read(self, image: str, path: str, container: str) -> bytes | None:
        """A file out of the image; None if there is none. `container` names the container that is made to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A revision that was made. `inputs` is None where nobody knows what from; `pulled` is its name in a registry."""

    stack: str
    revision: str
    image: Image
    inputs: Inputs | None
    pulled: str | None = None


async def build(folder: Path, images: BuiltImages, say: Say, *, fresh: bool = False) -> Built:
    """Build the stack in `folder`, which bears its name; `fresh` runs every step again.

    The revision is a hash of what came out: files, environment, and the user. Raises `ConfigError` for a wrong file,
    `BuildError` when a step fails, `EngineGone` or `EngineError`.
    """
    name = folder.absolute().name
    file = _read(folder, name)
    with tempfile.TemporaryDirectory(prefix="runner-build-") as prepared, tempfile.TemporaryFile() as context:
        await prepare(folder, Path(prepared), say)
        await asyncio.to_thread(pack, folder, Path(prepared), context)
        dockerfile = _dockerfile(folder, context)
        inputs, named = await _inputs(folder, file, context, dockerfile), _named(folder, dockerfile)
        bases = await _bases(folder, named, images)
        context.seek(0)
        plain = await _known(images, await images.build(context, {}, say, fresh=fresh))
        # What the engine had to fetch is known by now.
        bases = {**await _bases(folder, named - bases.keys(), images), **bases}
    return await adopt(name, file, plain, images, inputs=inputs.model_copy(update={"bases": bases}))


async def adopt(
    name: str,
    file: StackFile,
    plain: Image,
    images: BuiltImages,
    *,
    inputs: Inputs | None = None,
    pulled: str | None = None,
) -> Built:
    """A revision of the stack out of an image that the engine has. Raises `BuildError`, `EngineGone`, `EngineError`."""
    revision = revision_of(plain, file.user)
    uid, gid = file.numeric_user or await _numbers(images, plain.id, file.user, revision)
    labels = {names.STACK: name, names.REVISION: revision}
    labels |= {names.USER: file.user, names.UID: str(uid), names.GID: str(gid)}
    image = await _known(images, await _label(images, plain.id, labels))
    return Built(stack=name, revision=revision, image=image, inputs=inputs, pulled=pulled)


def revision_of(image: Image, user: str) -> str:
    """The revision that an image is by its content, whatever its labels say."""
    return hashlib.sha256(f"{image.content} {user}".encode()).hexdigest()[:_REVISION_LENGTH]


def _read(folder: Path, name: str) -> StackFile:
    if not is_stack_name(name):
        raise ConfigError(f"{folder}: {name} is not a stack's name; write lower-case letters, digits and single . _ -")
    if not (folder / _DOCKERFILE).is_file():
        raise ConfigError(f"{folder}: there is no Dockerfile")
    return read_stack_file(folder / FILE)


def _dockerfile(folder: Path, context: BinaryIO) -> bytes:
    """The Dockerfile that the engine gets: one that was prepared goes before that of the folder."""
    context.seek(0)
    with tarfile.open(fileobj=context) as tar:
        try:
            file = tar.extractfile(_DOCKERFILE)
        except KeyError:  # it is a link, and there is nothing in the context behind it
            file = None
        if file is None:
            raise BuildError(f"{folder}: its Dockerfile leads to no file that the build gets; put it there itself")
        return file.read()


async def _inputs(folder: Path, file: StackFile, context: io.BufferedRandom, dockerfile: bytes) -> Inputs:
    context.seek(0)
    digest = await asyncio.to_thread(hashlib.file_digest, context, "sha256")
    return Inputs(
        context=digest.hexdigest(),
        dockerfile=hashlib.sha256(dockerfile).hexdigest(),
        stack_file=hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
        user=file.user,
    )


def _named(folder: Path, dockerfile: bytes) -> frozenset[str]:
    try:
        return named_images(dockerfile.decode(errors="replace"))
    except ValueError as error:
        raise BuildError(f"{folder / _DOCKERFILE}: {error}") from None


async def _bases(folder: Path, named: Collection[str], images: BuiltImages) -> dict[str, str]:
    """The ids of those images that are here."""
    bases = {}
    for base in named:
        if image := await images.inspect(base):
            bases[base] = image.id
        elif base.startswith(_OURS):
            # The engine would ask the public registry for it.
            raise BuildError(f"{folder}/Dockerfile: {base} is not here; run make stacks, or build that stack first")
    return bases


async def _known(images: BuiltImages, image: str) -> Image:
    found = await images.inspect(image)
    if found is None:
        raise BuildError("the image that was built is gone; does something else remove images?")
    return found


async def _numbers(images: BuiltImages, image: str, user: str, revision: str) -> tuple[int, int]:
    """The uid and gid of a user of the image."""
    passwd = await images.read(image, "/etc/passwd", container=f"runner-build-{revision}")
    for line in (passwd or b"").decode(errors="replace").splitlines():
        words = line.split(":")
        if words[0] == user and len(words) > 3 and words[2].isdecimal() and words[3].isdecimal():  # noqa: PLR2004
            return int(words[2]), int(words[3])
    raise BuildError(f'the image has no user "{user}" in /etc/passwd; add it in the Dockerfile or write a number')


async def _label(images: BuiltImages, image: str, labels: Mapping[str, str]) -> str:
    """The same image with labels; the user's numbers are not known before it exists."""
    context = io.BytesIO()
    dockerfile = f"FROM {image}\n".encode()
    with tarfile.open(fileobj=context, mode="w") as tar:
        member = tarfile.TarInfo(_DOCKERFILE)
        member.size = len(dockerfile)
        tar.addfile(member, io.BytesIO(dockerfile))
    context.seek(0)
    return await images.build(context, labels, lambda _line: None)

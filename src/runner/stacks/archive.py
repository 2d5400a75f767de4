"""Revisions of stacks in one file, for other machines: what they are, their stack files, and their images.

A gzipped tar of `manifest.json`, a `<stack>/stack.toml` for each stack, and `images.tar` as the engine saves and loads
it, in which images share layers. The manifest has a SHA-256 of each of the others.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from runner.errors import RunnerError
from runner.job import is_revision
from runner.stacks.file import FILE, is_stack_name
from runner.stacks.revisions import Inputs
from runner.stacks.ustar import Ustar

_MANIFEST = "manifest.json"
_IMAGES = "images.tar"
_MANIFEST_MAX = 4 * 2**20
_FILE_MAX = 2**20
_LEVEL = 6


class ArchiveError(RunnerError):
    """The archive is damaged, or none of ours; export it again."""


def _stack(value: str) -> str:
    if not is_stack_name(value):
        raise ValueError("is not the name of a stack")
    return value


def _revision(value: str) -> str:
    if not is_revision(value):
        raise ValueError("is not a revision")
    return value


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Packed(_Entry):
    """A revision in an archive. `stack_file` is the SHA-256 of its stack's `stack.toml`."""

    stack: Annotated[str, AfterValidator(_stack)]
    revision: Annotated[str, AfterValidator(_revision)]
    image: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack_file: Digest
    built: datetime
    inputs: Inputs | None


def _once(stacks: tuple[Packed, ...]) -> tuple[Packed, ...]:
    names = [packed.stack for packed in stacks]
    if len(set(names)) < len(names):
        raise ValueError("a stack is in it twice")
    return stacks


class Manifest(_Entry):
    """What is in an archive. `images` is the SHA-256 of `images.tar`."""

    format: Literal["runner-stacks"] = "runner-stacks"
    version: Literal[1] = 1
    images: Digest
    stacks: Annotated[tuple[Packed, ...], Field(min_length=1), AfterValidator(_once)]


def pack(path: Path, stacks: Sequence[Packed], stack_files: Mapping[str, bytes], images: io.BufferedRandom) -> None:
    """Write an archive, whole or not at all; it blocks. Raises `ArchiveError` when it cannot be written."""
    images.seek(0)
    manifest = Manifest(images=hashlib.file_digest(images, "sha256").hexdigest(), stacks=tuple(stacks))
    size = images.tell()
    images.seek(0)
    draft = path.with_name(f".{path.name}.part")
    try:
        with (
            draft.open("wb") as file,
            gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as compressed,
            # Unlike pax, it needs no second header for what is larger than 8 GiB.
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            text = manifest.model_dump_json(indent=1).encode()
            _add(tar, _MANIFEST, io.BytesIO(text), len(text))
            for name, content in sorted(stack_files.items()):
                _add(tar, f"{name}/{FILE}", io.BytesIO(content), len(content))
            _add(tar, _IMAGES, images, size)
        draft.replace(path)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def unpack(path: Path, images: BinaryIO, room: int) -> tuple[Manifest, Mapping[str, bytes]]:
    """Read an archive to its end and check it; it blocks. The manifest and the stack files; `images` gets the rest.

    `room` is how many bytes there is place for. Raises `ArchiveError` with what is wrong.
    """
    try:
        with gzip.open(path, "rb") as compressed:
            manifest, files = _read(Ustar(compressed), images, room)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArchiveError(f"{path} is damaged: {error}; export it again") from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ArchiveError(f"{path}: {_MANIFEST}: {where}: {first['msg']}") from None
    images.seek(0)
    return manifest, files


def _add(tar: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    tar.addfile(member, content)


def _read(tar: Ustar, images: BinaryIO, room: int) -> tuple[Manifest, dict[str, bytes]]:
    """Nothing is in it but what its manifest says, in its order."""
    _next(tar, _MANIFEST, _MANIFEST_MAX)
    manifest = Manifest.model_validate_json(b"".join(tar.content()))
    digests = {packed.stack: packed.stack_file for packed in manifest.stacks}
    files = {}
    for name in sorted(digests):
        _next(tar, f"{name}/{FILE}", _FILE_MAX)
        files[name] = b"".join(tar.content())
        if hashlib.sha256(files[name]).hexdigest() != digests[name]:
            raise ArchiveError(f"{name}/{FILE} is not what its digest says; export it again")
    _next(tar, _IMAGES, room)
    digest = hashlib.sha256()
    for chunk in tar.content():
        digest.update(chunk)
        _write(images, chunk)
    if digest.hexdigest() != manifest.images:
        raise ArchiveError(f"{_IMAGES} is not what its digest says; export it again")
    if (more := tar.next()) is not None:  # so that the checksum of the whole is read too, which comes last
        raise ArchiveError(f"{more.name} has no business in it; export it again")
    return manifest, files


def _write(images: BinaryIO, chunk: bytes) -> None:
    try:
        images.write(chunk)
        images.flush()
    except OSError as error:
        raise ArchiveError(f"the images do not fit into $TMPDIR: {error.strerror}; make room there") from error


def _next(tar: Ustar, name: str, most: int) -> None:
    """Go to the entry of that name, which has to be the next one."""
    member = tar.next()
    if member is None or member.name != name or not member.isreg():
        found = "its end" if member is None else member.name
        raise ArchiveError(f"{name} was to come, and {found} did; this is no archive of stacks, or of another version")
    if member.size > most:
        raise ArchiveError(f"{name} has {member.size} bytes, more than {most}")

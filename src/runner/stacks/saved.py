"""A look into what an engine saved before another one loads it: nothing but the images that were announced.

The engine gives loaded images the names that the file says, and takes these from others. What it reads there is in
docker's image specification, `image/spec/v1.2.md`, and since version 25 also in that of OCI layouts.
"""

import hashlib
import json
import posixpath
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from runner.stacks.archive import ArchiveError
from runner.stacks.ustar import Ustar

_ENTRIES_MAX = 100_000
_TOLD_MAX = 4 * 2**20
"""The most bytes of a configuration, or of one of the files that say what there is."""
_MANIFEST = "manifest.json"
_INDEX = "index.json"
_NAMING = (_INDEX, "repositories")
"""Other files in which names may stand."""
_LAYER = re.compile(r"[0-9a-f]{64}/layer\.tar")


class _Image(BaseModel):
    # The engine reads keys in any case, so an unknown one may be a known one.
    model_config = ConfigDict(extra="forbid")

    config: str = Field(alias="Config")
    names: tuple[str, ...] | None = Field(alias="RepoTags")
    layers: tuple[str, ...] | None = Field(alias="Layers")
    parent: str = Field(default="", alias="Parent")
    sources: Mapping[str, Any] = Field(default_factory=dict, alias="LayerSources")


class _Manifest(RootModel[tuple[_Image, ...]]):
    pass


class _Descriptor(BaseModel):
    digest: str


class _Index(BaseModel):
    """What an OCI layout lists; engines that read it do not look at `manifest.json`."""

    manifests: tuple[_Descriptor, ...] = ()

    @property
    def digests(self) -> Iterator[str]:
        """Those of the images' manifests."""
        return (manifest.digest for manifest in self.manifests)


class _OciManifest(BaseModel):
    config: _Descriptor


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is in the file: the SHA-256 of what may be a configuration, and the files that say what there is."""

    digests: dict[str, str] = field(default_factory=dict)
    told: dict[str, bytes] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    """The digest of the configuration that a file names which may be the manifest of an OCI image, by its own."""


def check_saved(source: BinaryIO, images: Collection[str]) -> None:
    """Read what an engine saved, from where `source` stands; it blocks. `images` are the ids that may be in it.

    Raises `ArchiveError` for any other image, and for any name.
    """
    try:
        contents = _read(Ustar(source))
        for image in _Manifest.model_validate_json(contents.told.get(_MANIFEST, b"")).root:
            digest = contents.digests.get(image.config)
            if f"sha256:{digest}" not in images:
                raise _refusal(f"holds the image {image.config}, which its manifest does not name")
            if image.names:
                raise _refusal(f"would name an image {image.names[0]}")
        for name in _NAMING:
            _nameless(name, json.loads(contents.told.get(name, b"{}")))
        for digest in _Index.model_validate_json(contents.told.get(_INDEX, b"{}")).digests:
            if contents.configs.get(digest) not in images:
                raise _refusal(f"holds the image {digest} in its {_INDEX}, which its manifest does not name")
    except ValidationError as error:
        file = _INDEX if error.title == _Index.__name__ else _MANIFEST
        raise _refusal(f"has an unusable {file}: {error.errors()[0]['msg']}") from None
    except (tarfile.TarError, RecursionError, ValueError) as error:
        raise _refusal(f"is damaged: {error}") from error


def _read(tar: Ustar) -> _Contents:
    contents, seen = _Contents(), set[str]()
    while (header := tar.next()) is not None:
        name = header.name
        if name in seen or len(seen) >= _ENTRIES_MAX:
            raise _refusal(f"has {name} twice" if name in seen else "has too many entries")
        if posixpath.normpath(name) != name or name.startswith(("/", "..")):
            raise _refusal(f"has an entry called {name}")
        seen.add(name)
        if header.issym() and not (_LAYER.fullmatch(name) and _LAYER.fullmatch(header.linkname.removeprefix("../"))):
            raise _refusal(f"has a link {name}")
        if header.isreg() and header.size <= _TOLD_MAX:
            content = b"".join(tar.content())
            contents.digests[name] = digest = hashlib.sha256(content).hexdigest()
            if config := _named_config(content):
                contents.configs[f"sha256:{digest}"] = config
            if name in (_MANIFEST, *_NAMING):
                contents.told[name] = content
        elif name in (_MANIFEST, *_NAMING):
            raise _refusal(f"has a {name} of {header.size} bytes")
    return contents


def _named_config(content: bytes) -> str | None:
    """The digest of the configuration that an OCI manifest names; None if it is none."""
    try:
        return _OciManifest.model_validate_json(content).config.digest
    except ValidationError:
        return None


def _nameless(file: str, told: object) -> None:
    if file == "repositories" and told:
        raise _refusal("would name an image, in its repositories")
    for key, value in _pairs(told):
        if key in ("io.containerd.image.name", "org.opencontainers.image.ref.name"):
            raise _refusal(f"would name an image {value}")


def _pairs(told: object) -> Iterator[tuple[str, object]]:
    if isinstance(told, dict):
        yield from told.items()
    for value in told.values() if isinstance(told, dict) else told if isinstance(told, list) else ():
        yield from _pairs(value)


def _refusal(why: str) -> ArchiveError:
    return ArchiveError(f"images.tar {why}; export it again on a machine that you trust")

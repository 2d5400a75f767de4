"""What an engine is given to load: nothing but the images that were announced, and no names."""

import hashlib
import io
import json
import tarfile
from typing import Any

import pytest

from runner.stacks.archive import ArchiveError
from runner.stacks.saved import check_saved

CONFIG = b'{"os": "linux"}'
DIGEST = hashlib.sha256(CONFIG).hexdigest()
LAYER = f"{'a' * 64}/layer.tar"
OTHER = f"{'b' * 64}/layer.tar"

Entry = tuple[str, bytes | str]
"""A file with its content, or a link with its target."""


def listed(**changes: Any) -> Entry:
    image = {"Config": f"{DIGEST}.json", "RepoTags": None, "Layers": [LAYER], **changes}
    return "manifest.json", json.dumps([image]).encode()


def oci(*, name: str | None = None, config: str = DIGEST) -> tuple[Entry, ...]:
    """What engines save from version 25 on: an OCI layout, and beside it the older manifest for older readers."""
    layer = hashlib.sha256(b"layer").hexdigest()
    told = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{config}", "size": 15},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{layer}", "size": len(b"layer")}
        ],
    }
    manifest = json.dumps(told).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    entry = {"mediaType": told["mediaType"], "digest": f"sha256:{digest}", "size": len(manifest)}
    named = {"annotations": {"io.containerd.image.name": name}} if name else {}
    image = {"Config": f"blobs/sha256/{DIGEST}", "RepoTags": None, "Layers": [f"blobs/sha256/{layer}"]}
    sources = {f"sha256:{layer}": {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(b"layer")}}
    return (
        (f"blobs/sha256/{DIGEST}", CONFIG),
        (f"blobs/sha256/{layer}", b"layer"),
        (f"blobs/sha256/{digest}", manifest),
        ("index.json", json.dumps({"schemaVersion": 2, "manifests": [{**entry, **named}]}).encode()),
        ("manifest.json", json.dumps([{**image, "LayerSources": sources}]).encode()),
        ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
    )


GOOD: tuple[Entry, ...] = ((f"{DIGEST}.json", CONFIG), (LAYER, b"layer"), (OTHER, f"../{LAYER}"))


def check(*entries: Entry) -> None:
    saved = io.BytesIO()
    with tarfile.open(fileobj=saved, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    saved.seek(0)
    check_saved(saved, {f"sha256:{DIGEST}"})


def test_what_was_announced_passes() -> None:
    check(*GOOD, listed())
    check(*GOOD, ("index.json", b'{"manifests": []}'), ("repositories", b"{}"), listed(RepoTags=[]))
    check(*oci())


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((*GOOD, listed(RepoTags=["runner/py:current"])), "would name an image runner/py:current"),
        ((*GOOD, listed(repotags=["runner/py:current"])), "Extra inputs are not permitted"),
        ((*GOOD, listed(Config="other.json")), "holds the image other.json, which its manifest does not name"),
        (((f"{DIGEST}.json", CONFIG + b" "), listed()), "which its manifest does not name"),
        ((*GOOD, listed(), listed()), "has manifest.json twice"),
        ((*GOOD, listed(), ("./manifest.json", b"[]")), "has an entry called ./manifest.json"),
        ((*GOOD, listed(), ("x", "/etc/passwd")), "has a link x"),
        ((*GOOD, ("manifest.json", LAYER)), "has a link manifest.json"),
        ((*GOOD, listed(), ("repositories", b'{"runner/py": {"current": "x"}}')), "would name an image"),
        (
            (
                *GOOD,
                listed(),
                (
                    "index.json",
                    b'{"manifests": [{"annotations": {"io.containerd.image.nam\\u0065": "runner/py:current"}}]}',
                ),
            ),
            "would name an image runner/py:current",
        ),
        ((*GOOD, listed(), ("index.json", b"[" * 100_000)), "is damaged"),
        ((*GOOD, listed(), ("index.json", b'{"manifests": [{}]}')), "has an unusable index.json"),
        ((*GOOD, listed(), ("index.json", b'{"manifests": [{"digest": "sha256:x"}]}')), "holds the image sha256:x in"),
        (oci(name="docker.io/runner/py:current"), "would name an image docker.io/runner/py:current"),
        (oci(config="c" * 64), "in its index.json, which its manifest does not name"),
        (GOOD, "has an unusable manifest.json"),
    ],
)
def test_whatever_else_is_in_it_is_refused(entries: tuple[Entry, ...], why: str) -> None:
    with pytest.raises(ArchiveError, match=r"^images\.tar ") as told:
        check(*entries)
    assert why in str(told.value)


def test_a_name_that_readers_put_together_differently_is_refused() -> None:
    member = tarfile.TarInfo("manifest.json")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[345:349] = b"junk"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(ArchiveError, match="has a name in two parts"):
        check_saved(io.BytesIO(bytes(header) + bytes(1024)), {f"sha256:{DIGEST}"})

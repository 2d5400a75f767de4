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
    check(*GOOD, ("index.json", b'{"manifests": [{"digest": "x"}]}'), ("repositories", b"{}"), listed(RepoTags=[]))


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
        (GOOD, "has a manifest.json that makes no sense"),
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

"""Stacks carried from one engine to another."""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import AsyncIterator
from itertools import starmap
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from tests.archives import tar_entry, tar_gz
from tests.integration.local_house import Place, open_place
from tests.services import BUSYBOX_TAG, Endpoint, Engine

from runner.app.admission import Admitted, SmokeError
from runner.app.exec import exec_job
from runner.app.fleet import export_stacks, import_stacks
from runner.app.local import Interrupts, local_job
from runner.app.stacks import build_stack, ledger_of, use_revision
from runner.settings import Settings, load_settings
from runner.stacks.archive import ArchiveError, pack, unpack
from runner.stacks.revisions import Pointer, State

pytestmark = pytest.mark.engine

SIZE = 2_000_000
"""About what busybox takes, which all stacks of these tests share."""


@pytest.fixture
async def home(engine: Endpoint, busybox_image: str, namespace: str, tmp_path: Path) -> AsyncIterator[Place]:  # noqa: ARG001
    async with open_place(engine.url, namespace, tmp_path / "home") as place:
        yield place


@pytest.fixture(scope="module")
async def other_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """An engine that has nothing yet."""
    async with Engine(tmp_path_factory.mktemp("other")) as other:
        yield other.url


@pytest.fixture
async def away(other_engine: str, namespace: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(other_engine, namespace, tmp_path / "away") as place:
        yield place


def settings_of(place: Place) -> Settings:
    return load_settings(place.environment)


async def build(place: Place, name: str, version: str, text: str = 'smoke = ["cat", "/version"]\n') -> str:
    place.write_stack(name, text, Dockerfile=f"FROM {BUSYBOX_TAG}\nCOPY version /version\n", version=version)
    admitted = await build_stack(settings_of(place), name, print, use=True, fresh=False)
    return admitted.revision


async def export(place: Place, path: Path, *names: str) -> None:
    await export_stacks(settings_of(place), names, path, print)


async def take_in(place: Place, path: Path, *, use: bool = True) -> list[Admitted]:
    return [admitted async for admitted in import_stacks(settings_of(place), path, print, use=use)]


async def version(place: Place, stack: str) -> str | None:
    job = local_job({"stack": stack, "command": ["sh", "-c", "cat /version >$JOB_OUTPUT_FILE"]}, "default.normal.acme")
    result = await exec_job(settings_of(place), job, lambda _: None, Interrupts())
    return str(result.verdict.output) if result.verdict.output is not None else None


async def image_ids(place: Place) -> set[str]:
    async with aiodocker.Docker(url=place.url) as docker:
        return {image["Id"] for image in await docker.images.list(all=True)}


async def test_stacks_arrive_whole_share_their_base_and_are_current(home: Place, away: Place, tmp_path: Path) -> None:
    one, two = f"{home.worker}-one", f"{home.worker}-two"
    revisions = {one: await build(home, one, "1"), two: await build(home, two, "2")}
    path = tmp_path / "stacks.tar.gz"
    await export(home, path)
    with gzip.open(path) as content:
        assert len(content.read()) < 1.5 * SIZE

    admitted = await take_in(away, path)
    assert {each.stack: each.revision for each in admitted} == revisions
    assert all(each.changed for each in admitted)
    assert [await version(away, stack) for stack in (one, two)] == ["1", "2"]
    home_images, away_images = await home.images(), await away.images()
    assert away_images.items() == home_images.items()
    assert (away.stacks / one / "stack.toml").read_text() == 'smoke = ["cat", "/version"]\n'
    record = ledger_of(settings_of(away)).record(one, revisions[one])
    assert record is not None
    assert record.smoke is not None
    assert record.inputs is not None
    assert (record.state, record.smoke.outcome) == (State.READY, "succeeded")

    before = await image_ids(away)
    assert [each.changed for each in await take_in(away, path)] == [False, False]
    assert await image_ids(away) == before


@pytest.mark.slow
async def test_a_new_revision_is_taken_in_beside_the_old_one(home: Place, away: Place, tmp_path: Path) -> None:
    stack, path = home.worker, tmp_path / "stack.tar.gz"
    old = await build(home, stack, "3")
    await export(home, path, stack)
    await take_in(away, path)
    new = await build(home, stack, "4")
    await export(home, path, stack)
    await take_in(away, path, use=False)
    assert await version(away, stack) == "3"
    assert await use_revision(settings_of(away), stack, new) == Pointer(current=new, previous=old)
    assert await version(away, stack) == "4"
    await export(home, path, f"{stack}@{old}")
    assert [each.revision for each in await take_in(away, path)] == [old]


async def test_what_fails_its_test_here_is_kept_out_and_installs_nothing(
    home: Place, away: Place, tmp_path: Path
) -> None:
    # The faulty ones come first, and keep the good one from nothing.
    odd, bad, good = f"{home.worker}-0", f"{home.worker}-bad", f"{home.worker}-good"
    path = tmp_path / "stacks.tar.gz"
    await build(home, odd, "11")
    away.write_stack(odd, 'runtime = "crun"\n')
    await build(home, good, "5")
    revision = await build(home, bad, "6")
    home.write_stack(bad, 'smoke = ["false"]\n')
    await export(home, path)
    with pytest.raises(SmokeError, match=f"{bad}: revision {revision} failed its smoke test") as told:
        await take_in(away, path)
    assert "crun" in str(told.value)
    assert await version(away, good) == "5"
    assert (away.stacks / good / "stack.toml").stat().st_mode & 0o777 == 0o644
    assert not (away.stacks / bad).exists()
    record = ledger_of(settings_of(away)).record(bad, revision)
    assert record is not None
    assert record.state is State.FAILED


def oci_layout(images: bytes) -> bytes:
    """What an older engine saved, as one from version 25 on would have: https://github.com/opencontainers/image-spec."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    index, listed = [], []
    with tarfile.open(fileobj=io.BytesIO(images)) as tar:

        def read(name: str) -> bytes:
            return (tar.extractfile(name) or io.BytesIO()).read()

        for image in json.loads(read("manifest.json")):
            config = blob(read(image["Config"]), "config.v1+json")
            layers = [blob(read(name), "layer.v1.tar") for name in image["Layers"]]
            manifest = {"schemaVersion": 2, "config": config, "layers": layers}
            index.append(blob(json.dumps(manifest).encode(), "manifest.v1+json"))
            places = [f"blobs/{layer['digest'].replace(':', '/')}" for layer in layers]
            sources = {layer["digest"]: layer for layer in layers}
            place = f"blobs/{config['digest'].replace(':', '/')}"
            listed.append({"Config": place, "RepoTags": None, "Layers": places, "LayerSources": sources})
    told = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "manifests": index},
        "manifest.json": listed,
    }
    files = blobs | {name: json.dumps(content).encode() for name, content in told.items()}
    return gzip.decompress(tar_gz(*starmap(tar_entry, sorted(files.items()))))


async def test_what_a_newer_engine_saved_is_taken_in(home: Place, away: Place, tmp_path: Path) -> None:
    stacks = [f"{home.worker}-{version}" for version in ("20", "21")]
    revisions = [await build(home, stack, stack[-2:]) for stack in stacks]
    path = tmp_path / "stacks.tar.gz"
    await export(home, path)
    with tempfile.TemporaryFile() as old, tempfile.TemporaryFile() as new:
        manifest, files = unpack(path, old, 100 * SIZE)
        new.write(oci_layout(old.read()))
        pack(path, manifest.stacks, files, new)
    assert [each.revision for each in await take_in(away, path)] == revisions
    assert [await version(away, stack) for stack in stacks] == ["20", "21"]


@pytest.mark.slow
async def test_a_stack_file_that_is_here_stays(home: Place, away: Place, tmp_path: Path) -> None:
    stack, path = home.worker, tmp_path / "stack.tar.gz"
    await build(home, stack, "7")
    await export(home, path)
    away.write_stack(stack, 'description = "mine"\n')
    said: list[str] = []
    async for _ in import_stacks(settings_of(away), path, said.append, use=True):
        pass
    assert (away.stacks / stack / "stack.toml").read_text() == 'description = "mine"\n'
    assert any("stays as it is" in line for line in said)


async def test_an_import_that_is_broken_off_leaves_nothing(home: Place, away: Place, tmp_path: Path) -> None:
    stack, path = home.worker, tmp_path / "stack.tar.gz"
    await build(home, stack, "8", "")
    home.write_stack(stack, 'smoke = ["sh", "-c", "echo up; sleep 600"]\n')
    await export(home, path)
    before = await image_ids(away)
    up = asyncio.Event()

    async def take() -> None:
        async for _ in import_stacks(
            settings_of(away), path, lambda line: up.set() if line == "up" else None, use=True
        ):
            raise AssertionError("it was admitted")

    task = asyncio.create_task(take())
    async with asyncio.timeout(60):
        await up.wait()
    assert await image_ids(away) != before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await image_ids(away) == before
    assert ledger_of(settings_of(away)).records(stack) == []
    assert not (away.stacks / stack).exists()
    assert await away.containers() == []


async def test_an_archive_that_was_tampered_with_is_refused(home: Place, away: Place, tmp_path: Path) -> None:
    stack, path = home.worker, tmp_path / "stack.tar.gz"
    await build(home, stack, "9")
    await export(home, path)
    with tarfile.open(path) as tar:
        members = [(member.name, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]
    manifest = json.loads(members[0][1])
    revision, manifest["stacks"][0]["revision"] = manifest["stacks"][0]["revision"], "000000000000"
    forged = tmp_path / "forged.tar.gz"
    forged.write_bytes(
        tar_gz(tar_entry("manifest.json", json.dumps(manifest).encode()), *starmap(tar_entry, members[1:]))
    )
    before = await image_ids(away)
    with pytest.raises(ArchiveError, match="the archive's image is not revision 000000000000"):
        await take_in(away, forged)
    assert await image_ids(away) == before
    assert ledger_of(settings_of(away)).records(stack) == []

    images = members[2][1].replace(b'"RepoTags":null', b'"RepoTags":["a"]', 1)
    images = images.replace(b"]}]\n", b"]}]", 1)
    manifest["stacks"][0]["revision"], manifest["images"] = revision, hashlib.sha256(images).hexdigest()
    entries = json.dumps(manifest).encode(), members[1][1], images
    forged.write_bytes(tar_gz(*(tar_entry(name, content) for (name, _), content in zip(members, entries, strict=True))))
    with pytest.raises(ArchiveError, match=r"images\.tar would name an image a"):
        await take_in(away, forged)
    assert await image_ids(away) == before


async def test_the_commands_tell_what_they_did(home: Place, away: Place, tmp_path: Path) -> None:
    stack, path = home.worker, tmp_path / "stack.tar.gz"
    revision = await build(home, stack, "10")
    assert (await home.call("stacks", "export", "-o", str(path)))[:2] == (0, f"{stack} {revision}\n")
    code, out, _ = await away.call("stacks", "import", str(path), "--no-use")
    assert (code, out) == (0, f"{stack} {revision} is here; run: runner stacks use {stack} {revision}\n")
    for word, why in (("absent", "there is no revision absent"), ("../pointer.json", "is no revision")):
        code, _, err = await home.call("stacks", "export", f"{stack}@{word}", "-o", str(path))
        assert (code, why in err) == (1, True)

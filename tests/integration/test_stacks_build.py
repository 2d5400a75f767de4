import asyncio
import io
import os
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
from tests.services import Endpoint

from runner.adapters.docker.images import Images, open_images
from runner.errors import ConfigError, EngineGone
from runner.job import StackRef
from runner.stacks.build import build, revision_of
from runner.stacks.catalog import Catalog
from runner.stacks.context import pack, prepare
from runner.stacks.images import BuildError
from runner.stacks.revisions import Ledger

pytestmark = pytest.mark.engine

BUSYBOX = Path(__file__).parents[2] / "config/stacks/busybox"


@pytest.fixture
async def images(engine: Endpoint) -> AsyncIterator[Images]:
    async with open_images(engine.url) as images:
        yield images


@pytest.fixture
async def folder(tmp_path: Path, namespace: str, engine: Endpoint) -> AsyncIterator[Path]:
    """A copy of the example stack under a name of its own; its images are removed afterwards."""
    path = tmp_path / "stacks" / f"busybox-{namespace}"
    shutil.copytree(BUSYBOX, path)
    yield path
    async with aiodocker.Docker(url=engine.url) as docker:
        for image in await docker.images.list(filters={"reference": [f"runner/{path.name}"]}):
            for tag in image["RepoTags"]:
                await docker.images.delete(tag, force=True)


async def tags(engine: Endpoint, name: str) -> dict[str, str]:
    """The image of each tag that the stack has."""
    async with aiodocker.Docker(url=engine.url) as docker:
        found = await docker.images.list(filters={"reference": [f"runner/{name}"]})
    return {tag.rpartition(":")[2]: image["Id"] for image in found for tag in image["RepoTags"]}


async def output(engine: Endpoint, image: str, *command: str) -> str:
    """What a command in the image prints."""
    async with aiodocker.Docker(url=engine.url) as docker:
        body = {"Image": image, "Cmd": list(command), "User": "65534:65534", "HostConfig": {"NetworkMode": "none"}}
        container = await docker.containers.create(body)  # type: ignore[arg-type]  # the library's JSON type is invariant
        try:
            await container.start()
            async with asyncio.timeout(30):
                await container.wait()
            return "".join(await container.log(stdout=True, stderr=True))
        finally:
            await container.delete(force=True)


async def test_the_example_stack_is_built_without_a_network_and_resolves(
    folder: Path, images: Images, engine: Endpoint, state_dir: Path
) -> None:
    said: list[str] = []
    built = await build(folder, images, said.append)
    assert any(line.startswith("Step 1/") for line in said)
    assert await tags(engine, folder.name) == {}

    await images.tag(built.image.id, f"runner/{folder.name}", "current")
    stack = await Catalog(folder.parent, images, Ledger(state_dir)).resolve(StackRef(name=folder.name))
    assert (stack.image, stack.revision) == (built.image.id, built.revision)
    assert (stack.uid, stack.gid) == (65534, 65534)

    text = await output(engine, built.image.id, "sh", "-c", "id -un; stat -c '%a %n' /tmp /work; ls /bin | wc -l")
    assert text.splitlines()[:3] == ["nobody", "1777 /tmp", "1777 /work"]
    assert int(text.splitlines()[3]) > 100


async def test_the_same_content_is_the_same_revision_and_other_content_another(folder: Path, images: Images) -> None:
    first = await build(folder, images, print)
    os.utime(folder / "Dockerfile", (1, 1))
    again = await build(folder, images, print)
    assert again == first
    fresh = await build(folder, images, print, fresh=True)
    assert (fresh.revision, fresh.inputs) == (first.revision, first.inputs)
    assert fresh.image.id != first.image.id

    with (folder / "Dockerfile").open("a") as dockerfile:
        dockerfile.write("ENV COLOUR=blue\n")
    second = await build(folder, images, print)
    assert second.revision != first.revision
    assert first.inputs is not None
    assert second.inputs is not None
    assert (second.inputs.dockerfile, second.inputs.context) != (first.inputs.dockerfile, first.inputs.context)


async def test_a_new_base_is_a_new_revision(
    folder: Path, images: Images, busybox_image: str, engine: Endpoint, namespace: str
) -> None:
    base = f"runner-tests/base-{namespace}"
    other = await build(folder, images, print)
    (folder / "prepare").unlink()
    (folder / "Dockerfile").write_text(f"ARG BASE={base}\nFROM $BASE\n")
    try:
        await images.tag(busybox_image, base, "latest")
        first = await build(folder, images, print)
        await images.tag(other.image.id, base, "latest")
        second = await build(folder, images, print)
        assert second.revision != first.revision
        assert first.inputs is not None
        assert second.inputs is not None
        assert (first.inputs.bases, second.inputs.bases) == ({base: busybox_image}, {base: other.image.id})
    finally:
        async with aiodocker.Docker(url=engine.url) as docker:
            await docker.images.delete(base, force=True)


async def test_a_user_that_the_image_lacks_is_refused_and_nothing_is_left(
    folder: Path, images: Images, engine: Endpoint
) -> None:
    plain = (await build(folder, images, print)).image
    (folder / "stack.toml").write_text('user = "somebody"')
    with pytest.raises(BuildError, match='no user "somebody" in /etc/passwd'):
        await build(folder, images, print)
    assert await tags(engine, folder.name) == {}
    async with aiodocker.Docker(url=engine.url) as docker:
        left = await docker.containers.list(
            all=True, filters={"name": [f"runner-build-{revision_of(plain, 'somebody')}"]}
        )
    assert left == []


async def test_a_step_that_fails_is_told_in_the_engines_words(folder: Path, images: Images) -> None:
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY nothing /\n")
    with pytest.raises(BuildError, match="COPY failed"):
        await build(folder, images, print)
    (folder / "Dockerfile").write_text("FRM scratch\n")
    with pytest.raises(BuildError, match="FRM"):
        await build(folder, images, print)


async def test_a_prepare_that_fails_ends_the_build_and_its_words_are_shown(folder: Path, images: Images) -> None:
    (folder / "prepare").write_text("#!/bin/sh\necho what is missing >&2\nexit 3\n")
    said: list[str] = []
    with pytest.raises(BuildError, match="failed with exit code 3"):
        await build(folder, images, said.append)
    assert said == ["what is missing"]
    (folder / "prepare").chmod(0o644)
    with pytest.raises(BuildError, match="make it executable"):
        await build(folder, images, print)


async def test_a_prepare_ends_with_the_build(folder: Path, tmp_path: Path) -> None:
    (folder / "prepare").write_text("#!/bin/sh\necho $$\nexec sleep 600\n")
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(30):
        task = asyncio.ensure_future(prepare(folder, tmp_path, lambda line: pid.set_result(int(line))))
        await pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(await pid, 0)


@pytest.mark.parametrize("missing", ["Dockerfile", "stack.toml"])
async def test_a_folder_that_is_no_stack_is_a_fault(folder: Path, images: Images, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        await build(folder, images, print)


async def test_an_engine_that_is_not_there_is_gone(tmp_path: Path) -> None:
    async with open_images(f"unix://{tmp_path}/none.sock") as images:
        with pytest.raises(EngineGone):
            await images.inspect("anything")


def test_the_context_is_the_same_wherever_the_folder_comes_from(tmp_path: Path) -> None:
    packed = []
    for name, mode in (("a", 0o600), ("b", 0o664)):
        folder, prepared = tmp_path / name / "folder", tmp_path / name / "prepared"
        (folder / "sub").mkdir(parents=True)
        (prepared / "tmp").mkdir(parents=True)
        (prepared / "tmp").chmod(0o1777)
        (folder / "stack.toml").write_text(name)
        (folder / "sub/file").write_text("from the folder")
        (folder / "sub/file").chmod(mode)
        (folder / "link").symlink_to("sub/file")
        (folder / "over").write_text("from the folder")
        (prepared / "over").write_text("prepared")
        context = io.BytesIO()
        pack(folder, prepared, context)
        packed.append(context.getvalue())
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0])) as tar:
        assert tar.getnames() == ["link", "over", "sub", "sub/file", "tmp"]
        assert tar.getmember("tmp").mode == 0o1777
        assert tar.getmember("sub/file").mode == 0o644
        over = tar.extractfile("over")
        assert over is not None
        assert over.read() == b"prepared"


async def test_a_base_of_ours_that_is_not_here_is_not_asked_for_elsewhere(images: Images, folder: Path) -> None:
    for line in (
        "FROM runner-base/none",
        "ARG A=none\nFROM runner-base/$A",
        "FROM scratch\nCOPY --chown=0 --from=runner/none:current / /",
    ):
        (folder / "Dockerfile").write_text(f"{line}\n")
        with pytest.raises(BuildError, match=r"runner(-base)?/none\S* is not here; run make stacks"):
            await build(folder, images, print)

"""A machine with an engine and stacks of its own names, on which the command line is called as a process."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiodocker

from runner.adapters.docker.images import open_images

PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A state folder and a folder of stacks; `worker` is also what the names of its stacks begin with."""

    url: str
    worker: str
    folder: Path

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def stacks(self) -> Path:
        return self.folder / "stacks"

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            "worker__name": self.worker,
            "worker__state_dir": str(self.state_dir),
            "stacks__dir": str(self.stacks),
            "engine__url": self.url,
            "limits__default__memory": "16m",
            "limits__default__disk": "4m",
            "limits__default__grace": "5s",
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        return kept | {f"RUNNER_{name.upper()}": value for name, value in settings.items()}

    @asynccontextmanager
    async def start(self, *words: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """`runner …`; killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "runner", *words),
            env=self.environment | env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def call(self, *words: str, **env: str) -> tuple[int, str, str]:
        """`runner …`, to its end: exit code, standard output, standard error."""
        async with self.start(*words, **env) as process:
            return await ended(process)

    async def containers(self) -> list[str]:
        """The names of all containers of this place's workers."""
        async with aiodocker.Docker(url=self.url) as docker:
            found = await docker.containers.list(all=True, filters={"label": ["runner.worker"]})
        names = [str(container["Names"][0]).lstrip("/") for container in found]
        return [name for name in names if name.startswith(f"runner-{self.worker}-")]

    async def images(self) -> dict[str, str]:
        """The image of each name that begins with this place's."""
        async with aiodocker.Docker(url=self.url) as docker:
            found = await docker.images.list(filters={"reference": [f"runner/{self.worker}*"]})
        return {tag.removeprefix("runner/"): image["Id"] for image in found for tag in image["RepoTags"] or ()}

    def write_stack(self, name: str, text: str = "", **files: str) -> Path:
        """Put a stack's folder there."""
        folder = self.stacks / name
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "stack.new"
        fresh.write_text(text)
        fresh.replace(folder / "stack.toml")
        for file, content in files.items():
            (folder / file).write_text(content)
        return folder


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Exit code, and what was left on its standard output and error."""
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@asynccontextmanager
async def open_place(url: str, worker: str, folder: Path) -> AsyncIterator[Place]:
    """A place without stacks; its images and containers are removed at the end."""
    place = Place(url=url, worker=worker, folder=folder)
    place.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.stacks.mkdir(exist_ok=True)
    try:
        yield place
    finally:
        async with aiodocker.Docker(url=url) as docker:
            for name in await place.containers():
                await docker.containers.container(name).delete(force=True)
        async with open_images(url) as images:
            for tag in await place.images():
                assert await images.remove(f"runner/{tag}")

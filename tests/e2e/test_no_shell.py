"""Jobs in an image that holds one program and nothing else: no shell, no library, no folder."""

import asyncio
import io
import platform
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh

from runner.init.build import compiler

pytestmark = [pytest.mark.engine, pytest.mark.broker]

BARE = "e2e-bare"
DOCKERFILE = "FROM scratch\nCOPY program /program\n"
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    char folder[256];
    printf("%s in %s\n", words[0], getcwd(folder, sizeof folder));
    return count > 1 ? atoi(words[1]) : 0;
}
"""


def _compile(folder: Path) -> bytes:
    target = folder / "program"
    command = [*compiler(platform.machine()), "-static", "-x", "c", "-o", str(target), "-"]
    subprocess.run(command, check=True, input=PROGRAM.encode())
    return target.read_bytes()


def _context(program: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("Dockerfile", DOCKERFILE.encode()), ("program", program)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    buffer.seek(0)
    return buffer


@pytest.fixture(params=[False, True], ids=["cold", "warm"])
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether containers wait for the jobs."""
    return bool(request.param)


@pytest.fixture
async def daemon(at: OpenSite, tmp_path: Path, warm: bool) -> AsyncIterator[Daemon]:  # noqa: FBT001 - it is a fixture
    """A daemon with a stack of that image."""
    program = await asyncio.to_thread(_compile, tmp_path)
    async with at(tmp_path) as site:
        async with aiodocker.Docker(url=site.engine) as docker:
            await docker.images.build(fileobj=_context(program), encoding="identity", tag=f"runner/{BARE}:current")
        site.write_stack(BARE, f'command = ["/program", "3"]\nwarm = {2 if warm else 0}\n')
        async with site.daemon(warm__enabled=str(warm).lower()) as daemon:
            await daemon.ready()
            yield daemon
            await daemon.clean()
            await daemon.stop()


async def _run(daemon: Daemon, acme: Submitter, command: list[str] | None, *, warm: bool) -> Followed:
    async def one_waits() -> bool:
        return await daemon.waiting(BARE) > 0

    if warm:
        await eventually(one_waits, "a container waits")
    job = await acme.run(command, stack=BARE)
    assert (await job.event("started"))["warm"] is warm
    return job


async def test_an_image_without_a_shell_runs_its_program(daemon: Daemon, warm: bool) -> None:  # noqa: FBT001
    async with open_submitter(daemon.site.broker, daemon.site.ns) as acme:
        job = await _run(daemon, acme, ["/program"], warm=warm)
        job.ended("succeeded", exit_code=0)
        assert job.text() == "/program in /work\n"
        job = await _run(daemon, acme, None, warm=warm)
        job.ended("failed", exit_code=3, reason="exited with code 3")
        job = await _run(daemon, acme, sh("/program"), warm=warm)
        job.ended("failed", exit_code=127, reason="the command, 'sh', not found in stack e2e-bare", blame="request")

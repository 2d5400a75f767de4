"""Secrets in a real container: readable for the job, and known to nobody else, the engine included."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import aiodocker
import pytest
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint

from runner.job import SECRET_BYTES_MAX, SECRETS_BYTES_MAX, SECRETS_MAX, Stack

pytestmark = pytest.mark.engine

VALUES = {"token": b"hunter22\n", "db.password": b"\0\xff raw"}


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened
        assert await opened.names() == set()


async def run(house: House, script: str, values: Mapping[str, bytes], stack: Stack | None = None) -> list[str]:
    """The lines that the script wrote."""
    attempt = replace(house.attempt("sh", "-c", script, stack=stack), secrets=values)
    try:
        end = await (await house.launch(attempt)).wait()
    finally:
        await house.engine.discard(attempt)
    assert (end.code, bytes(house.err)) == (0, b""), end
    return house.out.decode(errors="replace").splitlines()


@pytest.mark.parametrize("user", [65534, 1000, 0])
async def test_they_are_files_of_the_job_alone(house: House, user: int) -> None:
    stack = Stack(name="busybox", revision="1", image=house.image, uid=user, gid=user)
    script = 'cd "$JOB_SECRETS_DIR" && pwd && stat -c "%n %a %u %g" . * && cat token && wc -c <db.password'
    assert await run(house, script, VALUES, stack) == [
        "/job/secrets",
        f". 500 {user} {user}",
        f"db.password 400 {user} {user}",
        f"token 400 {user} {user}",
        "hunter22",
        "6",
    ]


async def test_they_are_in_memory_and_bounded(house: House) -> None:
    script = "grep ' /job/secrets ' /proc/mounts; df -k /job/secrets | tail -n 1; df -i /job/secrets | tail -n 1"
    mount, space, inodes = await run(house, script, VALUES)
    device, _, kind, options = mount.split()[:4]
    assert (device, kind) == ("tmpfs", "tmpfs")
    assert {"nosuid", "nodev", "noexec"} <= set(options.split(","))
    assert "hunter22" not in mount
    assert (int(space.split()[1]), int(inodes.split()[1])) == (384, 33)


async def test_a_job_without_any_has_an_empty_place_and_no_word_of_it(house: House) -> None:
    script = 'stat -c %a /job/secrets; ls -A /job/secrets | wc -l; echo "${JOB_SECRETS_DIR-none}"'
    assert await run(house, script, {}) == ["500", "0", "none"]


async def test_the_most_that_a_job_may_have_fits(house: House) -> None:
    size = SECRETS_BYTES_MAX // SECRETS_MAX
    values = {f"n{number:02}": os.urandom(size) for number in range(SECRETS_MAX)}
    assert await run(house, "cat /job/secrets/* | wc -c", values) == [str(SECRETS_BYTES_MAX)]
    large = {f"n{number}": os.urandom(SECRET_BYTES_MAX) for number in range(4)}
    assert await run(house, "cat /job/secrets/* | sha256sum | cut -c 1-4", large) != ["e3b0"]


async def test_what_a_job_writes_there_has_a_bound(house: House) -> None:
    script = """
    echo x 2>/dev/null >/job/secrets/mine && echo wrote
    chmod 700 /job/secrets && head -c 1m /dev/zero >/job/secrets/mine 2>/dev/null || stat -c %s /job/secrets/mine
    """
    (size,) = await run(house, script, VALUES)
    assert 0 < int(size) < 384 * 1024


async def test_the_engine_and_the_host_know_nothing_of_them(house: House, engine: Endpoint) -> None:
    attempt = replace(house.attempt("sh", "-c", "echo ready; exec sleep 60"), secrets=VALUES)
    try:
        container = await house.launch(attempt)
        await house.heard(b"ready")
        known = json.dumps(await house.inspect(attempt))
        async with aiodocker.Docker(url=engine.url) as docker:
            known += json.dumps(await docker.containers.container(container.id).top(ps_args="-ef"))
            changes = await docker._query_json(f"containers/{container.id}/changes")
        folder = house.state_dir / "jobs" / attempt.claim
        on_disk = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert list((folder / "secrets").iterdir()) == []
    finally:
        await house.engine.discard(attempt)
    assert "hunter22" not in known
    assert "db.password" not in known + json.dumps(changes)
    assert b"hunter22" not in on_disk

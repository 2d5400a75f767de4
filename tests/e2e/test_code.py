"""Jobs that bring their code along: in the message, from a server, from a folder; and those whose code is no good."""

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.archives import tar_entry, tar_gz, tar_of, zip_of
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, Site, eventually
from tests.e2e.submitter import STACK, Followed, Submitter, open_submitter, sh
from tests.integration.package_server import PackageServer, package_server

pytestmark = [pytest.mark.engine, pytest.mark.broker]

SCRIPT = '#!/bin/sh\necho "$0 says $(cat "$JOB_CODE_DIR/lib/word") in $PWD"\n'
FILES = {"main.sh": SCRIPT, "lib/word": "hello"}
ARCHIVE = tar_of(FILES, executable=["main.sh"])
SAID = "/job/code/main.sh says hello in /work\n"
MAIN = ["/job/code/main.sh"]


def inline(archive: bytes) -> dict[str, str]:
    return {"inline": base64.b64encode(archive).decode()}


def linked(url: str, archive: bytes = ARCHIVE) -> dict[str, str]:
    return {"url": url, "sha256": hashlib.sha256(archive).hexdigest()}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[PackageServer]:
    async with package_server() as server:
        yield server


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


def allow(server: PackageServer, shelf: Path) -> str:
    return f'["{server.url}/ok/", "file://{shelf}/"]'


@pytest.fixture(scope="module")
async def daemon(
    at: OpenSite, tmp_path_factory: pytest.TempPathFactory, server: PackageServer, shelf: Path
) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("code")
    settings = {"code__allow": allow(server, shelf), "code__cache_bytes": "0", "code__max_bytes": "1m"}
    async with at(folder) as site, site.daemon(**settings) as daemon:
        await daemon.ready()
        yield daemon
        await daemon.stop()


@pytest.fixture
async def acme(daemon: Daemon, server: PackageServer) -> AsyncIterator[Submitter]:
    server.files, server.asked = {"/ok/app.tgz": ARCHIVE}, Counter()
    server.open.set()
    async with open_submitter(daemon.site.broker, daemon.site.ns) as submitter:
        yield submitter
        await submitter.cancel_all()
        await daemon.clean()
        assert await submitter.purge("dead") == 0
    await eventually(lambda: gone(daemon.site), "no code is kept where there is no cache")


def packages(site: Site) -> list[str]:
    """The packages on disk, and what is being made or removed."""
    return [str(path.relative_to(site.state_dir)) for path in site.state_dir.glob("code/*/*")]


async def gone(site: Site) -> bool:
    return packages(site) == []


@pytest.mark.parametrize("archive", [ARCHIVE, zip_of(FILES, mode=0o755)], ids=["tar", "zip"])
async def test_code_in_the_message_runs(acme: Submitter, archive: bytes) -> None:
    job = await acme.run(MAIN, code=inline(archive))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == SAID
    assert job.result["seconds"]["prepare"] > 0


async def test_code_from_a_server_or_a_folder_runs(acme: Submitter, server: PackageServer, shelf: Path) -> None:
    (shelf / "app.tgz").write_bytes(ARCHIVE)
    for url in (f"{server.url}/ok/app.tgz", f"file://{shelf}/app.tgz"):
        job = await acme.run(MAIN, code=linked(url))
        job.ended("succeeded", blame="none", exit_code=0)
        assert job.text() == SAID


async def test_a_job_can_read_its_code_and_change_nothing_of_it(acme: Submitter) -> None:
    tries = "touch $1/x; echo x >>$1/main.sh; rm $1/main.sh; mkdir $1/y; chmod 777 $1; mount -o remount,rw $1; ls -A $1"
    job = await acme.run(
        sh(f"set -- $JOB_CODE_DIR; ( {tries} ) 2>/dev/null; id -u; ls -l $1/lib"), code=inline(ARCHIVE)
    )
    entries, listing = job.text().splitlines()[:3], job.text().splitlines()[-1]
    assert entries == ["lib", "main.sh", "65534"]
    assert listing.startswith("-r--r--r--")


async def test_a_job_without_code_hears_of_none(acme: Submitter) -> None:
    job = await acme.run(sh('echo "${JOB_CODE_DIR-none}"; test ! -e /job/code'))
    job.ended("succeeded", blame="none", exit_code=0)
    assert job.text() == "none\n"


async def rejected(acme: Submitter, code: dict[str, Any], reason: str) -> Followed:
    """Submit a job; assert that it is rejected for that reason, and that its message is kept."""
    job = await acme.submit(["true"], code=code)
    await job.finished()
    job.ended("rejected", blame="request", attempt=0)
    assert job.result["reason"] == reason
    letter = await acme.dead_letter()
    assert (letter.headers["x-code"], letter.headers["x-reason"]) == ("rejected", reason)
    return job


async def test_code_that_may_not_be_fetched_is_rejected_before_anybody_has_the_job(
    acme: Submitter, server: PackageServer, shelf: Path
) -> None:
    for url in (f"{server.url}/other/app.tgz", "https://a.example/app.tgz", f"file://{shelf}-other/app.tgz"):
        known = f"this operator allows {server.url}/ok/, file://{shelf}/"
        reason = f"code.url: {url} is not where packages may come from (code.allow); {known}"
        job = await rejected(acme, linked(url), reason)
        assert job.kinds == ["rejected", "finished"]
    assert not server.asked


async def test_code_that_is_no_good_is_rejected_by_name(acme: Submitter, server: PackageServer) -> None:
    device = tar_gz(tar_entry("dev/null", type=b"3"))
    why = "is a device; a package has only files, folders and links"
    job = await rejected(acme, inline(device), f'code: the archive\'s entry "dev/null" {why}')
    assert job.kinds == ["claimed", "rejected", "finished"]
    url, other = f"{server.url}/ok/app.tgz", linked(f"{server.url}/ok/app.tgz", b"other")
    found = hashlib.sha256(ARCHIVE).hexdigest()
    await rejected(acme, other, f"code.sha256: the {len(ARCHIVE)} bytes at {url} have {found}; name that, or them")
    missing = f"{server.url}/ok/missing.tgz"
    await rejected(acme, linked(missing), f"code.url: the server of {missing} answers 404 (Not Found)")
    server.files["/ok/large"] = bytes(2 << 20)
    large = f"{server.url}/ok/large"
    await rejected(acme, linked(large), f"code.url: {large} has more than 1 MiB, the most here (code.max_bytes)")


async def test_jobs_that_start_together_share_one_download_within_their_tenant(
    acme: Submitter, daemon: Daemon, server: PackageServer
) -> None:
    server.open.clear()
    code, asked = linked(f"{server.url}/ok/app.tgz"), server.asked
    ours = [await acme.submit(sh("cat $JOB_CODE_DIR/lib/word; exec sleep 60"), code=code) for _ in range(5)]
    await asyncio.gather(*(job.event("claimed") for job in ours))
    await eventually(lambda: is_asked(server), "the server is asked")
    server.open.set()
    await asyncio.gather(*(job.event("started") for job in ours))
    assert asked["/ok/app.tgz"] == 1
    theirs = await acme.submit(sh("cat $JOB_CODE_DIR/lib/word; exec sleep 60"), code=code, to="default.normal.other")
    await theirs.event("started")
    assert asked["/ok/app.tgz"] == 2
    assert len([name for name in packages(daemon.site) if not name.startswith("code/.")]) == 2
    # There is no cache, and yet nothing goes that somebody uses.
    for job in [*ours[:4], theirs]:
        await acme.cancel(job)
        await job.finished()
    await acme.cancel(await acme.submit(sh("exec sleep 60"), code=code))
    await (await acme.submit(sh("cat $JOB_CODE_DIR/lib/word"), code=code)).finished()
    assert asked["/ok/app.tgz"] == 2


async def is_asked(server: PackageServer) -> bool:
    return bool(server.asked)


async def test_a_job_is_cancelled_while_its_code_is_fetched(acme: Submitter, server: PackageServer) -> None:
    server.open.clear()
    server.left.clear()
    job = await acme.submit(MAIN, code=linked(f"{server.url}/ok/app.tgz"))
    await eventually(lambda: is_asked(server), "the server is asked")
    await acme.cancel(job, "too slow")
    await job.finished()
    job.ended("cancelled", blame="none", reason="cancelled: too slow")
    assert job.kinds == ["claimed", "finished"]
    async with asyncio.timeout(30):
        await server.left.wait()


async def test_a_job_whose_code_comes_too_late_expires(acme: Submitter, server: PackageServer) -> None:
    server.open.clear()
    job = await acme.submit(MAIN, code=linked(f"{server.url}/ok/app.tgz"), start_within="4s")
    await job.finished()
    job.ended("expired", blame="platform", reason="not started within 4s, its start_within: its code was not here yet")
    assert job.kinds == ["claimed", "finished"]


async def test_a_job_whose_code_cannot_be_had_now_is_passed_on(site: Site, shelf: Path) -> None:
    async with site.daemon(code__allow=f'["file://{shelf}/late/"]') as daemon:
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            job = await acme.submit(MAIN, code=linked(f"file://{shelf}/late/app.tgz"))
            deferred = await job.event("deferred")
            assert deferred["delay"] == 1
            why = f"this worker cannot open {shelf}/late of code.allow: No such file or directory"
            assert deferred["reason"] == why
            # All at once: the worker may look at any moment.
            (shelf / "early").mkdir()
            (shelf / "early" / "app.tgz").write_bytes(ARCHIVE)
            (shelf / "early").rename(shelf / "late")
            await job.finished()
            job.ended("succeeded", blame="none", exit_code=0)
        await daemon.stop()


async def test_the_next_life_leaves_the_code_of_running_jobs_alone(site: Site) -> None:
    async with site.daemon(code__cache_bytes="0") as first, open_submitter_after(first) as acme:
        job = await acme.submit(
            sh("while cat $JOB_CODE_DIR/lib/word && echo; do sleep 0.1; done"), code=inline(ARCHIVE)
        )
        await job.wrote("hello")
        await first.kill()
        async with site.daemon(code__cache_bytes="0") as second:
            await second.ready()
            seen = len(job.text())
            await job.until(lambda: len(job.text()) > seen, "more of its code read under the next life")
            await acme.cancel(job)
            await job.finished()
            job.ended("cancelled", blame="none", signal=15)
            await second.clean()
            await eventually(lambda: gone(site), "the code goes with its job")
            await second.stop()


async def test_a_daemon_that_is_killed_while_it_fetches_fetches_again(site: Site, server: PackageServer) -> None:
    server.files, server.asked = {"/ok/app.tgz": ARCHIVE}, Counter()
    server.open.clear()
    settings = {"code__allow": f'["{server.url}/ok/"]'}
    async with site.daemon(**settings) as first, open_submitter_after(first) as acme:
        job = await acme.submit(MAIN, code=linked(f"{server.url}/ok/app.tgz"))
        await eventually(lambda: is_asked(server), "the server is asked")
        await first.kill()
        server.open.set()
        async with site.daemon(**settings) as second:
            await job.finished()
            job.ended("succeeded", blame="none", exit_code=0)
            assert server.asked["/ok/app.tgz"] == 2
            assert list(site.state_dir.glob("code/.work/*")) == []
            await second.stop()


async def test_a_container_that_waited_shows_code_as_well_unless_that_is_large(site: Site) -> None:
    site.keep_warm(STACK, 2)
    look = "cat $1/lib/word; find $1 -type f | wc -l; touch $1/x; grep -c ' /job/code ' /proc/mounts"
    files = {**FILES, **{f"many/{number}": "" for number in range(1000)}}
    large = tar_of(files, executable=["main.sh"])
    async with site.daemon(warm__enabled="true") as daemon, open_submitter_after(daemon) as acme:
        for archive, found, warm in ((ARCHIVE, "hello2\n0\n", True), (large, "hello1002\n1\n", False)):
            await eventually(lambda: waits(site, 2), "two containers wait")
            job = await acme.run(sh(f"set -- $JOB_CODE_DIR; {look}"), code=inline(archive))
            assert job.text() == found
            assert "Read-only file system" in job.text("err")
            assert (await job.event("started"))["warm"] is warm
        await daemon.clean()
        await daemon.stop()
    assert len(packages(site)) == 2


async def waits(site: Site, count: int) -> bool:
    return len(await site.warm_containers()) == count


@asynccontextmanager
async def open_submitter_after(daemon: Daemon) -> AsyncIterator[Submitter]:
    """A submitter, once the daemon takes jobs."""
    await daemon.ready()
    async with open_submitter(daemon.site.broker, daemon.site.ns) as submitter:
        yield submitter

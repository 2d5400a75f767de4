"""Code packages: where they are fetched and where not, how often, and what stays on disk."""

import asyncio
import hashlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import RequestInfo, web
from multidict import CIMultiDict, CIMultiDictProxy
from tests.archives import tar_of
from tests.fakes import ROUTE, make_job, until
from tests.integration.package_server import PackageServer, make_certificate, package_server
from yarl import URL

from runner.adapters.packages import addresses, fetch, store, threads
from runner.adapters.packages.archive import unpack
from runner.adapters.packages.fetch import Patience
from runner.adapters.packages.observer import Arrival
from runner.adapters.packages.store import PackageStore, open_packages
from runner.adapters.packages.tree import Extent
from runner.errors import DeferredError, RejectedError
from runner.job import InlineCode, Job, LinkedCode, Priority, Route
from runner.ports import Unpacked
from runner.sources import parse_source

ARCHIVE = tar_of({"main.sh": "echo hi"}, executable=["main.sh"])
LONG = Patience(
    connect=timedelta(seconds=30),
    silence=timedelta(seconds=30),
    total=timedelta(seconds=60),
    pauses=(timedelta(milliseconds=1),),
)
"""Of what a test does not wait for."""


class Counts:
    """Implements `PackageObserver`."""

    def __init__(self) -> None:
        self.arrived: Counter[Arrival] = Counter()
        self.kept = 0
        self.failed = 0

    def package_arrived(self, how: Arrival) -> None:
        self.arrived[how] += 1

    def packages_kept(self, size: int) -> None:
        self.kept = size

    def cleanup_failed(self) -> None:
        self.failed += 1


class House:
    """A store in a folder, and short words for what is asked of it."""

    def __init__(self, store: PackageStore, folder: Path, counts: Counts) -> None:
        self.store = store
        self.folder = folder
        self.counts = counts

    @property
    def packages(self) -> set[str]:
        """What is on disk: `tenant/sha256`."""
        return {str(path.relative_to(self.folder)) for path in self.folder.glob("[!.]*/*")}

    @property
    def work(self) -> list[Path]:
        """What is being made or removed."""
        return list((self.folder / ".work").iterdir())


Open = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the store in a folder of the test, with these settings, in a life of the daemon with these claims."""

    @asynccontextmanager
    async def open_house(*sources: str, claims: tuple[str, ...] = (), **more: Any) -> AsyncIterator[House]:
        counts, folder = Counts(), tmp_path / "code"
        settings: dict[str, Any] = {"private": (), "max_bytes": 1 << 20, "cache_bytes": 1 << 20, "reserve": 0}
        settings |= {"patience": LONG, **more}
        allowed = tuple(parse_source(source) for source in sources)
        async with open_packages(folder=folder, sources=allowed, observer=counts, **settings) as store:
            await store.load(claims)
            yield House(store, folder, counts)

    return open_house


@pytest.fixture
async def server() -> AsyncIterator[PackageServer]:
    async with package_server() as server:
        server.files["/ok/app.tgz"] = ARCHIVE
        yield server


def linked(url: str, archive: bytes = ARCHIVE, *, tenant: str = "acme") -> Job:
    code = LinkedCode(url=url, sha256=hashlib.sha256(archive).hexdigest())
    return make_job(code=code, route=Route(pool="default", priority=Priority.NORMAL, tenant=tenant))


def inline(archive: bytes, tenant: str = "acme") -> Job:
    route = Route(pool=ROUTE.pool, priority=ROUTE.priority, tenant=tenant)
    return make_job(code=InlineCode(archive=archive), route=route)


async def refused(hold: Awaitable[Unpacked]) -> str:
    with pytest.raises(RejectedError) as refusal:
        await hold
    return refusal.value.reason


async def passed_on(hold: Awaitable[Unpacked]) -> str:
    with pytest.raises(DeferredError) as deferral:
        await hold
    return deferral.value.reason


async def test_a_package_in_the_message_is_unpacked(opened: Open) -> None:
    async with opened() as house:
        tree = (await house.store.hold("c1", inline(ARCHIVE))).folder
        assert (tree / "main.sh").read_text() == "echo hi"
        assert os.access(tree / "main.sh", os.X_OK)
        assert (await house.store.hold("c2", inline(tar_of({"a/b/c": "", "d": ""})))).entries == 4
        assert f"acme/{hashlib.sha256(ARCHIVE).hexdigest()}" in house.packages
        assert house.folder.stat().st_mode & 0o777 == 0o700
        assert not house.work


async def test_a_bad_one_leaves_nothing(opened: Open) -> None:
    async with opened() as house:
        reason = await refused(house.store.hold("c1", inline(tar_of({"../x": ""}))))
        assert reason == 'code: the archive\'s entry "../x" has .. in its path, which may lead out of the package'
        await until(lambda: not house.work)
        assert house.packages == set()
        assert house.counts.arrived == {Arrival.REJECTED: 1}


async def test_jobs_that_want_the_same_at_once_fetch_it_once(opened: Open, server: PackageServer) -> None:
    server.open.clear()
    async with opened(f"{server.url}/ok/") as house, asyncio.TaskGroup() as tasks:
        url = f"{server.url}/ok/app.tgz"
        holds = [tasks.create_task(house.store.hold(f"c{number}", linked(url))) for number in range(5)]
        await until(lambda: server.asked["/ok/app.tgz"])
        server.open.set()
        assert len({await hold for hold in holds}) == 1
        assert server.asked["/ok/app.tgz"] == 1
        await house.store.hold("c9", linked(url))
        await house.store.hold("c10", inline(ARCHIVE))
        assert server.asked["/ok/app.tgz"] == 1
        assert house.counts.arrived == {Arrival.NEW: 5, Arrival.CACHED: 2}


async def test_tenants_do_not_share(opened: Open, server: PackageServer) -> None:
    async with opened(f"{server.url}/ok/") as house:
        ours = await house.store.hold("c1", linked(f"{server.url}/ok/app.tgz"))
        theirs = await house.store.hold("c2", linked(f"{server.url}/ok/app.tgz", tenant="other"))
        assert ours != theirs
        assert server.asked["/ok/app.tgz"] == 2


async def test_whoever_goes_does_not_end_it_for_the_others(opened: Open, server: PackageServer) -> None:
    server.open.clear()
    async with opened(f"{server.url}/ok/") as house, asyncio.TaskGroup() as tasks:
        url = f"{server.url}/ok/app.tgz"
        goes, stays = (tasks.create_task(house.store.hold(claim, linked(url))) for claim in ("goes", "stays"))
        await until(lambda: server.asked["/ok/app.tgz"])
        goes.cancel()
        await asyncio.wait({goes})
        server.open.set()
        assert ((await stays).folder / "main.sh").exists()
        assert server.asked["/ok/app.tgz"] == 1


async def test_what_nobody_waits_for_any_more_is_given_up(opened: Open, server: PackageServer) -> None:
    server.open.clear()
    async with opened(f"{server.url}/ok/", patience=Patience()) as house, asyncio.TaskGroup() as tasks:
        hold = tasks.create_task(house.store.hold("c1", linked(f"{server.url}/ok/app.tgz")))
        await until(lambda: server.asked["/ok/app.tgz"])
        hold.cancel()
        async with asyncio.timeout(30):
            await server.left.wait()
        await until(lambda: not house.work)
        server.open.set()
        assert (await house.store.hold("c1", linked(f"{server.url}/ok/app.tgz"))).folder.exists()


async def says(request: web.Request) -> web.StreamResponse:
    """The status that the path names."""
    return web.Response(status=int(request.path.rsplit("/", 1)[-1]), headers={"Location": request.path})


async def cut(request: web.Request) -> web.StreamResponse:
    """Half of what was promised."""
    response = web.StreamResponse(headers={"Content-Length": str(len(ARCHIVE))})
    await response.prepare(request)
    await response.write(ARCHIVE[: len(ARCHIVE) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def stuck(request: web.Request) -> web.StreamResponse:
    """A beginning, and then nothing."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(ARCHIVE[:5])
    await asyncio.Event().wait()
    return response


async def drips(request: web.Request) -> web.StreamResponse:
    """Never silent, and never done."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.02)


async def endless(request: web.Request) -> web.StreamResponse:
    """More than anybody wants, without saying how much."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(64):
        await response.write(bytes(1 << 16))
    return response


def to(url: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def sent_on(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(url)

    return sent_on


@pytest.mark.parametrize(
    ("status", "phrase"), [(404, "Not Found"), (403, "Forbidden"), (410, "Gone"), (204, "No Content")]
)
async def test_what_a_server_refuses_for_good_is_rejected(
    opened: Open, server: PackageServer, status: int, phrase: str
) -> None:
    server.handlers[f"/ok/{status}"] = says
    async with opened(f"{server.url}/ok/") as house:
        reason = await refused(house.store.hold("c1", linked(f"{server.url}/ok/{status}?token=secret")))
        assert reason == f"code.url: the server of {server.url}/ok/{status} answers {status} ({phrase})"
        assert server.asked[f"/ok/{status}"] == 1


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientResponseError(
            RequestInfo(URL("http://x/?token=secret"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://x/")),
            (),
            status=400,
            message="no HTTP",
        ),
        aiohttp.ConnectionTimeoutError("Connection timeout to host http://x/?token=secret"),
        aiohttp.InvalidURL("http://x/?token=secret"),
    ],
    ids=["response", "timeout", "url"],
)
async def test_no_error_shows_the_query(
    opened: Open, server: PackageServer, monkeypatch: pytest.MonkeyPatch, error: aiohttp.ClientError
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(aiohttp.ClientSession, "_request", fail)
    async with opened(f"{server.url}/ok/") as house:
        reason = await passed_on(house.store.hold("c1", linked(f"{server.url}/ok/app.tgz?token=secret")))
        assert reason.startswith(f"the code at {server.url}/ok/app.tgz cannot be fetched: ")
        assert "secret" not in reason


async def test_a_name_server_that_hangs_has_no_more_time_than_a_server(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", hang)
    patience = Patience(connect=timedelta(milliseconds=100), pauses=())
    async with opened("https://ok.example/", patience=patience) as house, asyncio.timeout(30):
        reason = await passed_on(house.store.hold("c1", linked("https://ok.example/app.tgz?token=secret")))
        assert reason.endswith("cannot be fetched: its server did not answer in time")


@pytest.mark.parametrize("path", ["500", "503", "429", "cut", "stuck"])
async def test_what_may_go_better_next_time_is_tried_again_and_passed_on(
    opened: Open, server: PackageServer, path: str
) -> None:
    server.handlers[f"/ok/{path}"] = {"cut": cut, "stuck": stuck}.get(path, says)
    patience = replace(LONG, silence=timedelta(seconds=1)) if path == "stuck" else LONG
    async with opened(f"{server.url}/ok/", patience=patience) as house:
        reason = await passed_on(house.store.hold("c1", linked(f"{server.url}/ok/{path}")))
        assert reason.startswith(f"the code at {server.url}/ok/{path} cannot be fetched: ")
        assert server.asked[f"/ok/{path}"] == 2
        assert house.counts.arrived == {Arrival.DEFERRED: 1}


async def test_a_server_that_recovers_is_enough(opened: Open, server: PackageServer) -> None:
    async def once_bad(request: web.Request) -> web.StreamResponse:
        del server.handlers["/ok/app.tgz"]
        return await cut(request)

    server.handlers["/ok/app.tgz"] = once_bad
    async with opened(f"{server.url}/ok/") as house:
        assert (await house.store.hold("c1", linked(f"{server.url}/ok/app.tgz"))).folder.exists()


async def test_nobody_waits_for_ever_for_a_server_that_drips(opened: Open, server: PackageServer) -> None:
    server.handlers["/ok/x"] = drips
    patience = Patience(total=timedelta(milliseconds=300))
    async with opened(f"{server.url}/ok/", patience=patience) as house:
        assert "was not here within 0.3s" in await passed_on(house.store.hold("c1", linked(f"{server.url}/ok/x")))


async def test_a_server_that_is_not_there_is_waited_for_elsewhere(opened: Open) -> None:
    async with opened("http://127.0.0.1:1/ok/") as house:
        assert "cannot be fetched" in await passed_on(house.store.hold("c1", linked("http://127.0.0.1:1/ok/x")))


async def test_another_archive_than_promised_is_rejected(opened: Open, server: PackageServer) -> None:
    server.files["/ok/app.tgz"] = ARCHIVE + b"\0"
    found = hashlib.sha256(ARCHIVE + b"\0").hexdigest()
    async with opened(f"{server.url}/ok/") as house:
        reason = await refused(house.store.hold("c1", linked(f"{server.url}/ok/app.tgz")))
        assert reason.startswith(f"code.sha256: the {len(ARCHIVE) + 1} bytes at {server.url}/ok/app.tgz have {found}")
        assert server.asked["/ok/app.tgz"] == 1


@pytest.mark.parametrize("told", [True, False])
async def test_what_is_too_long_is_not_even_taken(opened: Open, server: PackageServer, *, told: bool) -> None:
    server.files["/ok/x"] = bytes(3 << 20)
    if not told:
        server.handlers["/ok/x"] = endless
    async with opened(f"{server.url}/ok/") as house:
        reason = await refused(house.store.hold("c1", linked(f"{server.url}/ok/x")))
        assert reason == f"code.url: {server.url}/ok/x has more than 1 MiB, the most here (code.max_bytes)"
        assert server.asked["/ok/x"] == 1


async def test_a_redirect_is_followed_where_it_is_allowed(opened: Open, server: PackageServer) -> None:
    server.handlers["/ok/latest"] = to("app.tgz?token=1")
    async with opened(f"{server.url}/ok/") as house:
        assert (await house.store.hold("c1", linked(f"{server.url}/ok/latest"))).folder.exists()
        assert server.asked == {"/ok/latest": 1, "/ok/app.tgz": 1}


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("/elsewhere/app.tgz", "which is not where packages may come from (code.allow)"),
        ("http://127.0.0.1:1/ok/app.tgz", "which is not where packages may come from (code.allow)"),
        ("https://ok.example/app.tgz", "which is not where packages may come from (code.allow)"),
        ("file:///srv/code/app.tgz", "a file of our own"),
        ("ftp://ok.example/app.tgz", "to an address that is neither"),
        ("http://169.254.169.254/latest/meta-data", "to an address that is sent in the clear"),
        ("loop", "more than 5 times"),
    ],
)
async def test_a_redirect_is_followed_nowhere_else(
    opened: Open, server: PackageServer, location: str, why: str
) -> None:
    server.handlers["/ok/loop"] = to(location)
    async with opened(f"{server.url}/ok/", "file:///srv/code/") as house:
        assert why in await refused(house.store.hold("c1", linked(f"{server.url}/ok/loop")))
        assert server.asked.keys() == {"/ok/loop"}


def names(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Have all names lead to these addresses."""

    async def resolve(_: object, host: str, port: int, __: object) -> list[dict[str, object]]:
        return [{"hostname": host, "host": one, "port": port, "family": 2, "proto": 0, "flags": 0} for one in found]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)


@pytest.mark.parametrize(
    "found",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["93.184.216.34", "192.168.0.1"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["::1"],
        ["fe80::1"],
        ["fd00::1"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        ["2002:a00:1::"],
        ["::a00:1"],
        ["fec0::1"],
        ["64:ff9b:1::a00:1"],
    ],
)
async def test_a_name_that_leads_inside_is_not_followed(
    opened: Open, monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    names(monkeypatch, *found)
    async with opened("https://ok.example/") as house:
        reason = await refused(house.store.hold("c1", linked("https://ok.example/app.tgz")))
        assert reason.startswith(f"code.url: ok.example has the address {found[-1]}, which is not public")


async def test_a_private_range_is_reached_where_the_operator_says_so() -> None:
    ranges = [IPv4Network("10.0.0.0/8"), IPv4Network("127.0.0.0/8"), IPv4Network("169.254.0.0/16")]
    assert addresses.is_reachable("10.1.2.3", ranges)
    assert addresses.is_reachable("::ffff:10.1.2.3", ranges)
    assert addresses.is_reachable("93.184.216.34", [])
    assert not addresses.is_reachable("192.168.1.1", ranges)
    assert not addresses.is_reachable("127.0.0.1", ranges)
    assert not addresses.is_reachable("169.254.169.254", ranges)


async def test_the_connection_is_made_to_what_was_checked_with_a_certificate_that_fits(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "ok.example")
    monkeypatch.setattr(addresses, "is_reachable", lambda address, _: address == "127.0.0.1")
    names(monkeypatch, "127.0.0.1")
    async with package_server(certificate) as server:
        server.files["/app.tgz"] = ARCHIVE
        port = parse_source(server.url + "/").port
        allowed = [f"https://{name}:{port}/" for name in ("ok.example", "127.0.0.1", "wrong.example")]
        async with opened(*allowed) as house:
            unknown = await passed_on(house.store.hold("c1", linked(f"{allowed[0]}app.tgz")))
            assert "certificate" in unknown
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            assert "certificate" in await passed_on(house.store.hold("c1", linked(f"{allowed[2]}app.tgz")))
            assert server.asked == {}
            assert (await house.store.hold("c1", linked(f"{allowed[0]}app.tgz"))).folder.exists()
            assert (await house.store.hold("c2", linked(f"{allowed[1]}app.tgz", tenant="other"))).folder.exists()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of packages, and beside it what is none of ours."""
    shelf = tmp_path / "shelf"
    (shelf / "deep").mkdir(parents=True)
    (shelf / "deep" / "app.tgz").write_bytes(ARCHIVE)
    (shelf / "large").write_bytes(bytes(2 << 20))
    (tmp_path / "secret").write_bytes(ARCHIVE)
    (shelf / "link").symlink_to("../secret")
    (shelf / "folder-link").symlink_to("..")
    os.mkfifo(shelf / "fifo")
    return shelf


async def test_a_file_of_an_allowed_folder_is_taken(opened: Open, shelf: Path) -> None:
    async with opened(f"file://{shelf}/") as house:
        assert (await house.store.hold("c1", linked(f"file://{shelf}/deep/app.tgz"))).folder.exists()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing", "No such file or directory"),
        ("link", "Too many levels of symbolic links (links are not followed)"),
        ("folder-link/secret", "(links are not followed)"),
        ("deep/app.tgz/x", "Not a directory"),
        ("deep", "is no file"),
        ("deep/", "is no file"),
        ("", "is no file"),
        ("fifo", "is no file"),
        ("large", "has more than 1 MiB"),
        ("../secret", "has no plain path"),
    ],
)
async def test_what_is_no_file_beneath_it_is_rejected(opened: Open, shelf: Path, path: str, why: str) -> None:
    async with opened(f"file://{shelf}/") as house:
        if path == "../secret":
            with pytest.raises(ValueError, match=why):
                await house.store.hold("c1", linked(f"file://{shelf}/{path}"))
        else:
            assert why in await refused(house.store.hold("c1", linked(f"file://{shelf}/{path}")))


async def test_a_folder_that_is_not_mounted_here_may_be_elsewhere(opened: Open, shelf: Path) -> None:
    async with opened(f"file://{shelf}/gone/") as house:
        reason = await passed_on(house.store.hold("c1", linked(f"file://{shelf}/gone/x")))
        assert reason == f"this worker cannot open {shelf}/gone of code.allow: No such file or directory"


def sized(name: str) -> bytes:
    """A package of 204 KiB on disk, 20 of them beside its tree, so that five of them fit."""
    return tar_of({name: os.urandom(180 << 10)})


async def test_what_was_used_least_lately_goes_first_and_nothing_that_is_in_use(opened: Open) -> None:
    jobs = {name: inline(sized(name)) for name in "abcdefg"}

    def kept(house: House) -> str:
        return "".join(sorted(path.name for path in house.folder.glob("[!.]*/*/tree/*")))

    async with opened() as house:
        for name in "abcdefg":
            await house.store.hold(name, jobs[name])
        assert kept(house) == "abcdefg"
        assert house.counts.kept > 1 << 20
        await house.store.hold("a again", jobs["a"])
        for name in "abcdefg":
            house.store.release(name)
        assert kept(house) == "adefg"
        house.store.release("a again")
        assert kept(house) == "adefg"
        assert house.counts.kept <= 1 << 20
        await until(lambda: not house.work)


async def test_without_a_cache_a_package_stays_for_its_job_alone(opened: Open) -> None:
    async with opened(cache_bytes=0) as house:
        tree = (await house.store.hold("c1", inline(ARCHIVE))).folder
        assert (tree / "main.sh").exists()
        house.store.release("c1")
        house.store.release("c1")
        assert house.packages == set()
        await until(lambda: not house.work)
        assert house.counts.failed == 0


async def test_the_next_life_keeps_what_its_containers_use(opened: Open) -> None:
    async with opened(cache_bytes=0) as house:
        runs = await house.store.hold("runs", inline(sized("runs")))
        await house.store.hold("ended", inline(sized("ended")))
        (house.folder / ".work" / "broken-off").mkdir()
        (house.folder / "acme" / "no-package").mkdir()
    async with opened(cache_bytes=0, claims=("runs", "another")) as house:
        assert house.packages == {f"acme/{runs.folder.parent.name}"}
        await until(lambda: not house.work)
        house.store.release("runs")
        assert house.packages == set()


async def test_after_a_crash_of_the_machine_nothing_is_trusted(opened: Open) -> None:
    async with opened() as house:
        await house.store.hold("c1", inline(ARCHIVE))
        (house.folder / ".boot").write_text("another boot")
    async with opened(claims=("c1",)) as house:
        assert house.packages == set()


async def test_a_full_disk_is_no_fault_of_the_job(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.adapters.packages.store.unpack", full)
    async with opened() as house:
        reason = await passed_on(house.store.hold("c1", inline(ARCHIVE)))
        assert reason == "this worker cannot keep the job's code: No space left on device"


@pytest.mark.parametrize("source", ["message", "server", "folder"])
async def test_what_the_disk_keeps_free_stays_free(
    opened: Open, server: PackageServer, shelf: Path, source: str
) -> None:
    jobs = {
        "message": inline(ARCHIVE),
        "server": linked(f"{server.url}/ok/app.tgz"),
        "folder": linked(f"file://{shelf}/deep/app.tgz"),
    }
    async with opened(f"{server.url}/ok/", f"file://{shelf}/", reserve=1 << 50) as house:
        reason = await passed_on(house.store.hold("c1", jobs[source]))
        assert reason == "the job's code would leave less than 1024 TiB of this worker's disk free (capacity.disk_free)"
        await until(lambda: not house.work)


async def test_only_so_many_are_fetched_at_once(
    opened: Open, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FLIGHTS_EACH", 2)
    server.open.clear()
    async with opened(f"{server.url}/ok/", patience=Patience()) as house, asyncio.TaskGroup() as tasks:
        urls = [f"/ok/app.tgz?{number}" for number in range(4)]
        for url in urls:
            tasks.create_task(house.store.hold(url[-1], linked(f"{server.url}{url}")))
        await until(lambda: server.asked["/ok/app.tgz"] == 2)
        tasks.create_task(house.store.hold("other", linked(f"{server.url}/ok/app.tgz", tenant="other")))
        await until(lambda: server.asked["/ok/app.tgz"] == 3)
        assert len(house.work) == 3
        await house.store.hold("message", inline(tar_of({"x": ""})))
        server.open.set()
    assert server.asked["/ok/app.tgz"] == 5


async def test_the_time_to_unpack_begins_when_it_does(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, began, free = [0.0], [], threading.Event()

    def slow(*arguments: Any, **more: Any) -> Extent:
        began.append(arguments)
        free.wait(60)
        return unpack(*arguments, **more)

    monkeypatch.setattr("runner.adapters.packages.store.unpack", slow)
    monkeypatch.setattr("runner.adapters.packages.store.time.monotonic", lambda: clock[0])
    async with opened() as house:
        holds = [asyncio.create_task(house.store.hold(name, inline(sized(name)))) for name in "abcd"]
        await until(lambda: len(began) == 2)
        other = asyncio.create_task(house.store.hold("e", inline(ARCHIVE, tenant="other")))
        await until(lambda: len(began) == 3)
        clock[0] = 121.0
        free.set()
        told = await asyncio.gather(*holds, other, return_exceptions=True)
    assert [str(late) for late in (*told[:2], told[4])] == [
        "code: it takes longer than 2m to unpack; send less of it"
    ] * 3
    assert [type(waited) for waited in told[2:4]] == [Unpacked] * 2


async def test_a_folder_that_hangs_does_not_hold_up_the_others(
    opened: Open, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(fetch, "copy", lambda *_: answers.wait(60))
    monkeypatch.setattr(threads, "_PARTING", timedelta(milliseconds=10))
    patience = Patience(total=timedelta(milliseconds=200))
    async with asyncio.timeout(30):
        async with opened(f"file://{shelf}/", patience=patience) as house:
            urls = [f"file://{shelf}/{number}" for number in range(4)]
            told = await asyncio.gather(*(passed_on(house.store.hold(url[-1], linked(url))) for url in urls))
            assert told == [f"the code at {url} was not here within 0.2s" for url in urls]
            assert (await house.store.hold("c1", inline(ARCHIVE))).folder.exists()
    answers.set()
    await until(lambda: not any(thread.name == "packages" for thread in threading.enumerate()))

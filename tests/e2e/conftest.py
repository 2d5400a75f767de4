from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from secrets import token_hex

import pytest
from tests.e2e.daemon import Daemon, Site, open_site
from tests.e2e.submitter import Submitter, open_submitter
from tests.services import Endpoint

OpenSite = Callable[[Path], AbstractAsyncContextManager[Site]]


@pytest.fixture(scope="session")
def at(broker: Endpoint, engine: Endpoint, busybox_image: str) -> OpenSite:
    """Opens a site of its own in an empty folder."""

    def open_at(folder: Path) -> AbstractAsyncContextManager[Site]:
        ns = f"e{token_hex(5)}"
        return open_site(broker=broker.url, engine=engine.url, image=busybox_image, folder=folder, ns=ns)

    return open_at


@pytest.fixture
async def site(at: OpenSite, tmp_path: Path) -> AsyncIterator[Site]:
    """A site for the daemons of one test."""
    async with at(tmp_path) as site:
        yield site


@pytest.fixture(scope="session")
async def shared(at: OpenSite, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The daemon of all tests that don't disturb each other; at the end it leaves nothing, not even a message."""
    async with at(tmp_path_factory.mktemp("shared")) as site, site.daemon() as daemon:
        await daemon.ready()
        yield daemon
        await daemon.stop()
        assert await site.messages() == {}


@pytest.fixture(scope="session")
async def shared_submitter(shared: Daemon) -> AsyncIterator[Submitter]:
    async with open_submitter(shared.site.broker, shared.site.ns) as submitter:
        yield submitter


@pytest.fixture
async def daemon(shared: Daemon, shared_submitter: Submitter) -> AsyncIterator[Daemon]:
    """The shared daemon; after each test it has to be idle and clean, with no dead letter that was not looked at."""
    yield shared
    await shared_submitter.cancel_all()
    await shared.clean()
    assert await shared_submitter.purge("dead") == 0


@pytest.fixture
def acme(daemon: Daemon, shared_submitter: Submitter) -> Submitter:  # noqa: ARG001 - there is nobody without it
    """A client of the shared daemon."""
    return shared_submitter

from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import pytest
from scripts.devservices.shared import shared_broker, shared_engine
from tests.services import Endpoint, build_busybox, endpoint


@pytest.fixture(scope="session")
async def broker() -> AsyncIterator[Endpoint]:
    """The broker that all tests share, each in a namespace of its own."""
    async with endpoint("RUNNER_TEST_AMQP_URL", shared_broker()) as shared:
        yield shared


@pytest.fixture(scope="session")
async def engine() -> AsyncIterator[Endpoint]:
    """The engine that all tests share, each under a worker's name of its own."""
    async with endpoint("RUNNER_TEST_ENGINE_URL", shared_engine()) as shared:
        yield shared


@pytest.fixture(scope="session")
async def busybox_image(engine: Endpoint) -> str:
    """The id of an image with busybox and all its applets in `/bin`."""
    return await build_busybox(engine.url)


@pytest.fixture
def namespace() -> str:
    """A value for `amqp.namespace` that no other test has; also good as a worker's name."""
    return f"t{token_hex(6)}"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty `worker.state_dir`."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path

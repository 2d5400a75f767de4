"""The one pair of services that everything in this working copy shares, under `.dev/`."""

import fcntl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from scripts.devservices.broker import Broker
from scripts.devservices.engine import Engine
from scripts.devservices.process import as_root

DEV = Path(__file__).resolve().parents[2] / ".dev"


def shared_broker() -> Broker:
    """The working copy's broker, running or not."""
    return Broker(DEV / "broker")


def shared_engine() -> Engine:
    """The working copy's engine, running or not."""
    return Engine(DEV / "engine")


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the lock of the shared services: two starts at once would each make their own."""
    DEV.mkdir(parents=True, exist_ok=True)
    with (DEV / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def start(service: Broker | Engine) -> None:
    """Start a shared service unless it runs. A broker that starts here is empty."""
    if isinstance(service, Broker) and service.process is None:
        service.erase()
    await service.start()


def delete() -> None:
    """Delete everything that the stopped services keep; images and containers belong to root."""
    subprocess.run(as_root("rm", "-rf", "--one-file-system", str(DEV)), check=True)


@asynccontextmanager
async def borrowed(service: Broker | Engine) -> AsyncIterator[str]:
    """The URL of a shared service, which runs in here, and afterwards only if it did before."""
    async with AsyncExitStack() as stack:
        with exclusive():
            if service.process is None:
                stack.push_async_callback(service.stop)
            await start(service)
        yield service.url

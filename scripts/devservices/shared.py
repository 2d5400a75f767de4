"""The one pair of services that everything in this working copy shares, under `.dev/`."""

import fcntl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

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
    """The URL of a shared service, which runs in here.

    It runs on if it ran before the first of those who borrow it at the same time; else the last one stops it.
    """
    DEV.mkdir(parents=True, exist_ok=True)
    with _users(service).open("w") as users:
        with exclusive():
            if service.process is None:
                _borrowers_own(service).touch()
            await start(service)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield service.url
        finally:
            with exclusive():
                if _is_last(users) and _borrowers_own(service).exists():
                    _borrowers_own(service).unlink()
                    await service.stop()


def keep(service: Broker | Engine) -> None:
    """Whoever borrows the service leaves it running: somebody has asked for it apart from them."""
    _borrowers_own(service).unlink(missing_ok=True)


def _users(service: Broker | Engine) -> Path:
    return DEV / f"{service.folder.name}.users"


def _borrowers_own(service: Broker | Engine) -> Path:
    """A file that is there while the service runs for its borrowers only."""
    return DEV / f"{service.folder.name}.borrowed"


def _is_last(users: IO[str]) -> bool:
    """Whether nobody else borrows; the lock is then ours alone."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

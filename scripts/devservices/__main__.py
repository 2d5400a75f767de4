"""The private services of this working copy, under `.dev/`."""

import argparse
import asyncio
import fcntl
import shlex
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.devservices import Broker, Engine, ServiceError

DEV = Path(__file__).resolve().parents[2] / ".dev"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two starts at once would each make their own services."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def start(broker: Broker, engine: Engine) -> None:
    """Start what does not run yet, both at once; a broker that starts is empty."""
    if broker.process is None:
        broker.erase()
    await _both(broker.start(), engine.start())


async def stop(broker: Broker, engine: Engine) -> None:
    """Stop what runs, both at once."""
    await _both(broker.stop(), engine.stop())


def environment(broker: Broker, engine: Engine) -> str:
    """Shell lines that point the runner at the services."""
    values = {"RUNNER_AMQP__URL": broker.url, "RUNNER_ENGINE__URL": engine.url}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def status(broker: Broker, engine: Engine) -> int:
    """Print a line for each service; 0 when both run."""
    for name, service in (("broker", broker), ("engine", engine)):
        process = service.process
        print(f"{name}: {f'runs, pid {process.pid}, {service.url}' if process else 'does not run'}")
    return 0 if broker.process and engine.process else 1


async def _both(*steps: Awaitable[None]) -> None:
    # Not a task group: trouble with one is no reason to leave the other half started or half stopped.
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if result is not None:
            raise result


def main() -> int:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(prog="scripts/services", description=__doc__)
    parser.add_argument("command", choices=["start", "stop", "status", "env"])
    command = parser.parse_args().command
    broker, engine = Broker(DEV / "broker"), Engine(DEV / "engine")
    try:
        if command == "status":
            return status(broker, engine)
        if command != "env":
            with exclusive(DEV):
                asyncio.run((start if command == "start" else stop)(broker, engine))
        if command != "stop":
            print(environment(broker, engine))
    except ServiceError as error:
        print(f"scripts/services: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The private services of this working copy, under `.dev/`."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Awaitable

from scripts.devservices import Broker, Engine, ServiceError
from scripts.devservices.shared import delete, exclusive, keep, shared_broker, shared_engine, start


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


async def both(*steps: Awaitable[object]) -> None:
    """Take two steps at once; trouble with one is no reason to leave the other half done."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def main() -> int:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(prog="scripts/services", description=__doc__)
    parser.add_argument("command", choices=["start", "stop", "clean", "status", "env"])
    command = parser.parse_args().command
    broker, engine = shared_broker(), shared_engine()
    try:
        if command == "status":
            return status(broker, engine)
        if command == "start":
            with exclusive():
                asyncio.run(both(start(broker), start(engine)))
                keep(broker)
                keep(engine)
        if command in {"stop", "clean"}:
            with exclusive():
                asyncio.run(both(broker.stop(), engine.stop()))
        if command == "clean":
            delete()
        if command in {"start", "env"}:
            print(environment(broker, engine))
    except ServiceError as error:
        print(f"scripts/services: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

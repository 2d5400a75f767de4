"""What leases cost: CPU seconds of the daemon's side and of the broker, and messages, per job and minute.

    .venv/bin/python -m scripts.lease_cost [--jobs 300] [--seconds 60]

Starts a broker of its own, holds that many leases of 120 s as a worker does, and reads the CPU time of both processes.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import aio_pika

from runner.adapters.amqp import topology
from runner.adapters.amqp.leases import Leases
from runner.adapters.amqp.link import Link
from runner.adapters.amqp.names import Header, Names
from runner.adapters.amqp.publisher import Publisher
from runner.adapters.amqp.pulse import Pulse
from runner.codec import new_id
from scripts.devservices import Broker

BODY = b'{"stack": "busybox", "command": ["echo", "hi"]}'


class Silent:
    """Nobody counts here."""

    def amqp_connected(self, role: str) -> None:
        del role

    def amqp_disconnected(self, role: str) -> None:
        del role

    def lease_adopted(self) -> None:
        pass

    def lease_lost(self) -> None:
        pass


def message(**more: str | int) -> aio_pika.Message:
    """A job's message, as a lease carries it."""
    headers = {Header[name.upper()].value: value for name, value in more.items()}
    return aio_pika.Message(BODY, headers={**headers}, delivery_mode=2, message_id=new_id())


async def nobody(_: str) -> None:
    """Takes notice of nothing."""


async def measure(jobs: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="runner-lease-", dir="/tmp") as folder:
        async with Broker(Path(folder)) as broker:
            names, publisher, pulse = Names("cost"), Publisher(), Pulse(timedelta(seconds=10))
            async with await aio_pika.connect(broker.url) as connection:
                await topology.apply(connection, topology.describe_topology(names, []))
            leases = Leases(
                names=names,
                worker="cost",
                lifetime=timedelta(seconds=120),
                publisher=publisher,
                observer=Silent(),
                pulse=pulse,
                superseded=nobody,
            )
            links = (
                Link((broker.url,), "cost", "consume", pulse, Silent(), (leases.use,)),
                Link((broker.url,), "cost", "publish", Pulse(timedelta(seconds=10)), Silent(), (publisher.use,)),
            )
            async with asyncio.TaskGroup() as tasks:
                chores = [tasks.create_task(link.run()) for link in links]
                while not all(link.up for link in links):  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.05)
                for number in range(jobs):
                    await leases.acquire(f"{number:032x}", message)
                chores.append(tasks.create_task(leases.renew()))
                node = broker.process
                await report(jobs, seconds, lambda: cpu_seconds(node.pid) if node else 0.0)
                for chore in chores:
                    chore.cancel()


async def report(jobs: int, seconds: float, broker_cpu: Callable[[], float]) -> None:
    own, broker = cpu_seconds(os.getpid()), broker_cpu()
    await asyncio.sleep(seconds)
    own, broker = cpu_seconds(os.getpid()) - own, broker_cpu() - broker
    per = 60 / seconds / jobs * 1000
    print(f"{jobs} leases of 120 s for {seconds:.0f} s: 2.5 copies a job and minute")
    print(f"daemon {own * per:6.2f} ms of CPU a job and minute ({own / seconds:.1%} of a core)")
    print(f"broker {broker * per:6.2f} ms of CPU a job and minute ({broker / seconds:.1%} of a core)")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads (proc(5))."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description="What leases cost; see scripts/lease_cost.py")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    asyncio.run(measure(options.jobs, options.seconds))


if __name__ == "__main__":
    main()

"""Several workers of one namespace, a client that knows the contract alone, and a witness that misses nothing."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import aio_pika
import aiodocker
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.connection import make_url
from tests.e2e.daemon import Daemon, Site, eventually, free_port, open_site, remove_all

from runner.adapters.amqp.names import Names

STACK = "e2e-plain"


@dataclass(slots=True, kw_only=True)
class Fleet:
    """A namespace and its workers. Events of jobs are kept in a durable queue, so that none is missed by anybody."""

    site: Site
    ns: str
    events: list[dict[str, Any]] = field(default_factory=list)
    seen: set[str | None] = field(default_factory=set)
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @property
    def names(self) -> Names:
        return Names(self.ns)

    def name(self, letter: str) -> str:
        """A worker's name, which no other test has."""
        return f"{self.ns}-{letter}"

    async def start(self, letter: str, stack: AsyncExitStack, *, url: str | None = None, **settings: str) -> Daemon:
        """Start a worker, through a proxy if `url` says so; killed when the stack is left."""
        daemon = await stack.enter_async_context(self._worker(letter, url or self.site.broker, settings))
        self.daemons[letter] = daemon
        await daemon.ready()
        return daemon

    @asynccontextmanager
    async def _worker(self, letter: str, url: str, settings: dict[str, str]) -> AsyncIterator[Daemon]:
        port, log, state = free_port(), self.site.folder / f"{letter}.log", self.site.folder / letter
        state.mkdir(mode=0o700)
        own = {
            "worker__name": self.name(letter),
            "worker__state_dir": str(state),
            "amqp__url": url,
            "amqp__heartbeat": "2s",
            "http__port": str(port),
        }
        environ = self.site.environment({**own, **settings})
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "runner", "serve", env=environ, stdin=asyncio.subprocess.DEVNULL, stderr=stderr
            )
        try:
            yield Daemon(site=self.site, process=process, log=log, url=f"http://127.0.0.1:{port}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def submit(self, count: int, script: str, **fields: Any) -> list[str]:
        """Publish jobs that run a script; their ids."""
        ids = [f"j{token_hex(6)}" for _ in range(count)]
        async with await aio_pika.connect(self.site.broker) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(self.ns, ensure=False)
            for job_id in ids:
                body = {
                    "id": job_id,
                    "stack": STACK,
                    "command": ["sh", "-c", script],
                    "limits": {"cpus": 0.05},
                    **fields,
                }
                await exchange.publish(aio_pika.Message(json.dumps(body).encode()), "default.normal.acme")
        return ids

    async def cancel(self, ids: Sequence[str]) -> None:
        """Ask for the end of these jobs."""
        async with await aio_pika.connect(self.site.broker) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(self.names.control, ensure=False)
            for job_id in ids:
                await exchange.publish(aio_pika.Message(b""), f"job.acme.{job_id}.cancel")

    async def listen(self) -> None:
        """Put down the events for as long as the broker is there; what happens meanwhile waits in the queue."""
        # Made by hand, because `aio_pika.connect` leaves a connection that failed for the garbage collector.
        connection = aio_pika.Connection(make_url(self.site.broker))
        try:
            await connection.connect(timeout=5)
            channel = await connection.channel()
            queue = await channel.declare_queue(f"{self.ns}.witness", durable=True)
            await queue.bind(self.names.events, "#")
            await queue.consume(self._note)
            await channel.closed()
        finally:
            await connection.close()

    async def _note(self, message: AbstractIncomingMessage) -> None:
        # A repeat bears the same id, and consumers drop it.
        if message.message_id not in self.seen:
            self.seen.add(message.message_id)
            self.events.append(json.loads(message.body))
        await message.ack()

    def of(self, kind: str, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The events of a kind that these jobs had."""
        return [event for event in self.events if event["event"] == kind and event["id"] in ids]

    def count(self, kind: str, ids: Sequence[str]) -> Counter[str]:
        """How many events of a kind each of these jobs had."""
        return Counter(event["id"] for event in self.of(kind, ids))

    async def all_have(self, kind: str, ids: Sequence[str], timeout: float) -> None:
        """Return when each of the jobs had an event of that kind."""

        async def complete() -> bool:
            return self.count(kind, ids).keys() == set(ids)

        await eventually(complete, f"{kind} of {len(ids)} jobs", timeout)

    def ran_once(self, ids: Sequence[str], outcome: str = "succeeded") -> None:
        """Assert that each of the jobs was started once, and ended once."""
        once = dict.fromkeys(ids, 1)
        assert dict(self.count("started", ids)) == once
        assert dict(self.count("finished", ids)) == once
        assert {event["outcome"] for event in self.of("finished", ids)} == {outcome}
        kinds = {event["event"] for event in self.events if event["id"] in ids}
        assert kinds - {"stopping"} == {"claimed", "started", "finished"}

    async def containers(self, letter: str, *, running: bool = False) -> list[str]:
        """The containers of one worker."""
        label = f"runner.worker={self.name(letter)}"
        async with aiodocker.Docker(url=self.site.engine) as docker:
            found = await docker.containers.list(all=not running, filters={"label": [label]})
            # One that is just being removed may be listed without a name.
            return [(container["Names"] or [container["Id"]])[0].lstrip("/") for container in found]

    async def idle(self) -> bool:
        """Whether no container is left, which is the last thing that a job's worker sees to."""
        return not [name for letter in self.daemons for name in await self.containers(letter)]

    async def no_message(self) -> bool:
        """Whether the queues are empty. What somebody holds is not seen, so ask once no worker runs."""
        queues = [each.name for each in self.site.topology.queues if each.arguments.get("x-queue-type") != "stream"]
        for letter in self.daemons:
            queues += [self.names.worker_lease(self.name(letter)), self.names.worker_superseded(self.name(letter))]
        async with await aio_pika.connect(self.site.broker) as connection:
            channel = await connection.channel()
            declared = [await channel.declare_queue(queue, passive=True) for queue in queues]
            return not any(queue.declaration_result.message_count for queue in declared)

    def said(self, letter: str, message: str) -> int:
        """How often a worker has logged that."""
        return self.daemons[letter].log.read_text().count(f'"{message}"')


@asynccontextmanager
async def open_fleet(*, broker: str, engine: str, image: str, folder: Path) -> AsyncIterator[Fleet]:
    """A fleet without workers; their containers and queues are removed at the end."""
    ns = f"f{token_hex(5)}"
    folder.mkdir()
    async with open_site(broker=broker, engine=engine, image=image, folder=folder, ns=ns) as site:
        fleet = Fleet(site=site, ns=ns)
        try:
            yield fleet
        finally:
            await _remove_containers(fleet)


async def _remove_containers(fleet: Fleet) -> None:
    async def theirs() -> list[str]:
        return [name for letter in fleet.daemons for name in await fleet.containers(letter)]

    await remove_all(fleet.site.engine, theirs)

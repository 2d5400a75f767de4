"""A private RabbitMQ node: own home and cookie, own ports, own port mapper, loopback only."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import aio_pika
from aio_pika.connection import make_url

from scripts.devservices.process import Process, ServiceError, find_program, launch, log_tail

_PORT_NAMES = ("amqp", "dist", "epmd")
_PORT_RANGE = range(20000, 32000)
"""Below the ports that the kernel gives to clients."""

# The wrapper on PATH changes to the package's own user; the node must run as whoever started it.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Broker:
    """A RabbitMQ node in a folder. `conf` are lines for its `rabbitmq.conf`, e.g. `consumer_timeout = 60000`.

    What runs in the folder is found again by any later `Broker` of the same folder.
    """

    def __init__(self, folder: Path, *, conf: Sequence[str] = ()) -> None:
        self.folder = folder.absolute()
        self._conf = tuple(conf)
        self._digest = hashlib.sha256(str(self.folder).encode()).hexdigest()

    @property
    def url(self) -> str:
        """Where clients connect. Known once it was started, and kept over restarts."""
        return f"amqp://guest:guest@127.0.0.1:{self._ports()['amqp']}/"

    @property
    def process(self) -> Process | None:
        """The node, if it runs."""
        return Process.read(self.folder / "node.process")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, timeout: float = 90) -> None:
        """Return when a client has connected; at once when it runs already."""
        node = self.process
        if node is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._epmd() is None:
                self._choose_ports()
                self._start_epmd()
            node = self._start_node()
        await self._ready(node, timeout)

    async def stop(self) -> None:
        """Shut down cleanly; what is durable stays in the folder."""
        for process in (self.process, self._epmd()):
            if process is not None:
                await process.end(grace=40)

    def erase(self) -> None:
        """Forget all queues and messages. For a broker that does not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    async def kill(self) -> None:
        """End the node at once, as a power cut would."""
        node = self._running()
        node.send(signal.SIGKILL)
        await node.gone(10)

    async def pause(self) -> None:
        """Make it hang: connections stay open, nobody answers."""
        await self._running().suspend()

    async def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send(signal.SIGCONT)

    async def restart(self) -> None:
        """Shut down cleanly and start again, on the same port."""
        if (node := self.process) is not None:
            await node.end(grace=40)
        await self.start()

    def _running(self) -> Process:
        if (node := self.process) is None:
            raise ServiceError(f"no broker runs in {self.folder}")
        return node

    def _epmd(self) -> Process | None:
        return Process.read(self.folder / "epmd.process")

    def _ports(self) -> dict[str, int]:
        try:
            ports: dict[str, int] = json.loads((self.folder / "ports.json").read_text())
        except FileNotFoundError:
            raise ServiceError(f"no broker was ever started in {self.folder}") from None
        return ports

    def _choose_ports(self) -> None:
        """Keep the ports that were recorded, while they are free; each folder begins its search elsewhere."""
        path = self.folder / "ports.json"
        ports = self._ports() if path.exists() else {}
        if not ports or not all(_is_free(port) for port in ports.values()):
            first = int(self._digest[:8], 16) % len(_PORT_RANGE)
            free = (port for port in (*_PORT_RANGE[first:], *_PORT_RANGE[:first]) if _is_free(port))
            path.write_text(json.dumps(dict(zip(_PORT_NAMES, free, strict=False))))

    def _start_epmd(self) -> None:
        # Our own port mapper: the one that Erlang starts by itself would serve every node of the machine, and stay.
        port = str(self._ports()["epmd"])
        command = [find_program("epmd"), "-address", "127.0.0.1", "-port", port]
        launch(command, record=self.folder / "epmd.process", log=self.folder / "epmd.log")

    def _start_node(self) -> Process:
        if not _SERVER.exists():
            raise ServiceError("rabbitmq-server is not installed; `make setup` installs what is missing")
        for name in ("home", "data", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        listener = f"listeners.tcp.1 = 127.0.0.1:{self._ports()['amqp']}"
        lines = [listener, "disk_free_limit.absolute = 50MB", *self._conf]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, ""]))
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        command = [str(_SERVER)]
        return launch(
            command, record=self.folder / "node.process", log=self.folder / "node.log", env=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        """Everything that the node must not take from the machine's own RabbitMQ."""
        ports = self._ports()
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "RABBITMQ_NODENAME": f"runner-{self._digest[:12]}@localhost",
            "RABBITMQ_DIST_PORT": str(ports["dist"]),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "data" / "config"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
            # Makes the start script become the node instead of waiting for it: one pid, one signal.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    async def _ready(self, node: Process, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not await _connects(self.url):
                    if await node.gone(0.2):
                        raise ServiceError(f"the broker ended while it started{log_tail(self.folder / 'node.log')}")
        except TimeoutError:
            log = log_tail(self.folder / "node.log")
            raise ServiceError(f"the broker was not ready after {timeout:.0f} s{log}") from None


async def _connects(url: str) -> bool:
    # A bare connection first: the client would log every refusal while the node boots.
    address = urlsplit(url)
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError:
        return False
    writer.close()
    # Made by hand, because `aio_pika.connect` leaves a connection that failed half open for the garbage collector.
    connection = aio_pika.Connection(make_url(url))
    try:
        await connection.connect(timeout=5)
    except (OSError, TimeoutError, aio_pika.exceptions.AMQPError):
        return False
    else:
        return True
    finally:
        await connection.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

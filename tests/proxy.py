"""A proxy that makes the network's faults, between a client and a broker (TCP) or an engine (unix socket)."""

import asyncio
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 64 * 1024


@dataclass(slots=True)
class _Direction:
    """What happens to the bytes that go one way, on all connections."""

    flows: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on bytes, and the end of them, while they flow."""
        while data := await reader.read(_CHUNK):
            await self.flows.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
        await self.flows.wait()
        writer.write_eof()


class Proxy:
    """Stands before the service at `upstream` (`amqp://…` or `unix://…`) while it is entered; connect to `url`."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._to_service = _Direction()
        self._to_client = _Direction()
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None
        # Bound and never listening: while nobody is welcome, nobody else gets the port, not even as a client.
        self._reserved: socket.socket | None = None
        self._folder = Path()

    @property
    def url(self) -> str:
        """The upstream's URL, with the proxy's address in the place of the service's."""
        if self._upstream.scheme == "unix":
            return f"unix://{self._socket}"
        login, at, _ = self._upstream.netloc.rpartition("@")
        return self._upstream._replace(netloc=f"{login}{at}127.0.0.1:{self._port}").geturl()

    @property
    def _port(self) -> int:
        assert self._reserved is not None
        return int(self._reserved.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        # Not pytest's folder: a socket's path may have 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="runner-proxy-", dir="/tmp"))
        self.heal()
        if self._upstream.scheme != "unix":
            self._reserved = socket.socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._reserved.bind(("127.0.0.1", 0))
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        if self._reserved is not None:
            self._reserved.close()
        shutil.rmtree(self._folder)

    async def cut(self) -> None:
        """Break all connections at once; new ones are welcome."""
        tasks = list(self._connections)
        for writers in self._connections.values():
            for writer in writers:
                writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refuse(self) -> None:
        """Break all connections, and refuse new ones until `accept`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()
        self._socket.unlink(missing_ok=True)

    async def accept(self) -> None:
        """Take connections (again), at the same address."""
        if self._server is not None:
            return
        if self._upstream.scheme == "unix":
            self._server = await asyncio.start_unix_server(self._serve, self._socket)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_port=True)

    def black_hole(self, *, to_service: bool = True, to_client: bool = True) -> None:
        """Hold back all bytes that go the given ways, and the news of a close; connections stay open, new ones too."""
        for direction, held in ((self._to_service, to_service), (self._to_client, to_client)):
            if held:
                direction.flows.clear()

    def delay(self, seconds: float) -> None:
        """Let every piece of data wait that long, both ways."""
        self._to_service.delay = self._to_client.delay = seconds

    def heal(self) -> None:
        """End `black_hole` and `delay`; what was held back arrives now."""
        self.delay(0)
        for direction in (self._to_service, self._to_client):
            direction.flows.set()

    @property
    def _socket(self) -> Path:
        return self._folder / "proxy.sock"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._server is None:  # it was accepted just before all were refused
            writer.transport.abort()
            return
        writers = self._connections[task] = [writer]
        try:
            service_reader, service_writer = await self._connect()
            writers.append(service_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._to_service.pump(reader, service_writer))
                group.create_task(self._to_client.pump(service_reader, writer))
        except* OSError:
            pass  # one end is gone, and now the other one is, too
        finally:
            del self._connections[task]
            for each in writers:
                each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream.scheme == "unix":
            return await asyncio.open_unix_connection(self._upstream.path)
        return await asyncio.open_connection(self._upstream.hostname, self._upstream.port)

"""Requests to the engine's HTTP API, with no more around them than they need."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, urlsplit

from runner.adapters.docker.connection import Answer, Connection
from runner.errors import ConfigError

_IDLE_MOST = 8
_IDLE_FOR = 15.0
"""Seconds after which a connection that nobody used is not trusted: what is between us and the engine may be gone."""
_UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


class HttpError(Exception):
    """The engine answered with a status that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message


class Unreachable(ConnectionError):
    """No connection could be made."""


class Api:
    """Makes requests in the version that the engine speaks, each on a connection that nobody else has meanwhile.

    Whoever calls limits their time; one that is given up closes its connection. Raises `HttpError`, `OSError`, and
    `ValueError` and its like for what the engine says of its version. Paths begin with `/` and are sent as they are.
    """

    def __init__(self, url: str) -> None:
        """Raises `ConfigError`."""
        self.busy: set[Connection] = set()
        """Those that carry a request or a stream."""
        self._idle: list[Connection] = []
        self._version: str | None = None
        parts = urlsplit(url)
        self._socket = parts.path if parts.scheme == "unix" else ""
        self._address = (parts.hostname or "", _port(parts))
        self._host = parts.netloc or "localhost"
        if not self._socket and not (parts.scheme in ("tcp", "http") and parts.hostname and self._address[1]):
            raise ConfigError(f"engine.url is {url!r}; it must be unix:///path, tcp://host:port or http://host:port")

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """All of the engine's answer."""
        return await self._whole(await self.open(method, path, body))

    async def open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, upgrade: bool = False
    ) -> Answer:
        """The beginning of an answer; its connection is the caller's, who has to close it."""
        try:
            return await self._request(method, await self._versioned(path), body, upgrade=upgrade)
        except HttpError as error:
            if error.status != HTTPStatus.BAD_REQUEST or "client version" not in error.message:
                raise
        self.forget_version()  # it has changed behind our back
        return await self._request(method, await self._versioned(path), body, upgrade=upgrade)

    async def ping(self) -> None:
        """Have the engine answer on a new connection: one that shuts down still answers on the old ones."""
        connection = await self._connect()
        try:
            answer = await connection.ask(self._encode("GET", "/_ping", None))
            if answer.status != HTTPStatus.OK:
                raise HttpError(answer.status, "no ping")
        finally:
            connection.close()

    def forget_version(self) -> None:
        """Ask for the version before the next request: another engine may come back than the one that went."""
        self._version = None

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._idle, *self.busy):
            connection.close()

    async def _versioned(self, path: str) -> str:
        if self._version is None:
            answer = await self._whole(await self._request("GET", "/version"))
            self._version = str(json.loads(answer)["ApiVersion"])
        return f"/v{self._version}{path}"

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, upgrade: bool = False
    ) -> Answer:
        request = self._encode(method, path, body, upgrade=upgrade)
        kept = self._kept()
        try:
            answer = await self._sent(kept or await self._connect(), request)
        except ConnectionError:
            if kept is None or method == "POST":
                raise
            # The engine may have closed it while nobody used it, and to ask twice does no harm.
            answer = await self._sent(await self._connect(), request)
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES and answer.status != HTTPStatus.NOT_MODIFIED:
            is_json, said = answer.json, (await self._whole(answer)).decode()
            raise HttpError(answer.status, str(json.loads(said)["message"]) if is_json else said)
        return answer

    def _encode(self, method: str, path: str, body: Mapping[str, Any] | None, *, upgrade: bool = False) -> bytes:
        if not path.isprintable() or " " in path:
            raise ValueError(f"{path!r} is no path")
        content = b"" if body is None else json.dumps(body).encode()
        length = f"Content-Length: {len(content)}\r\n" if method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n{length}"
        return f"{head}{_UPGRADE if upgrade else ''}\r\n".encode() + content

    async def _sent(self, connection: Connection, request: bytes) -> Answer:
        try:
            return await connection.ask(request)
        except BaseException:
            connection.close()
            raise

    async def _whole(self, answer: Answer) -> bytes:
        try:
            said = await answer.body()
        except BaseException:
            answer.connection.close()
            raise
        self._keep(answer)
        return said

    def _kept(self) -> Connection | None:
        """A connection from before that still serves."""
        oldest = asyncio.get_running_loop().time() - _IDLE_FOR
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh and connection.idle_since > oldest:
                self.busy.add(connection)
                return connection
            connection.close()
        return None

    def _keep(self, answer: Answer) -> None:
        connection = answer.connection
        if not (answer.reusable and connection.fresh and len(self._idle) < _IDLE_MOST):
            connection.close()
            return
        self.busy.discard(connection)
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            if self._socket:
                _, connection = await loop.create_unix_connection(lambda: Connection(self._gone), self._socket)
            else:
                _, connection = await loop.create_connection(lambda: Connection(self._gone), *self._address)
        except OSError as error:
            raise Unreachable(str(error)) from error
        self.busy.add(connection)
        return connection

    def _gone(self, connection: Connection) -> None:
        self.busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


@asynccontextmanager
async def open_api(url: str) -> AsyncIterator[Api]:
    """The API at `unix://…`, `tcp://…` or `http://…`, with as many connections as it takes; it need not be there."""
    api = Api(url)
    try:
        yield api
    finally:
        api.close()


def _port(url: SplitResult) -> int:
    """The port, 0 if it is none."""
    try:
        return 80 if url.port is None else url.port
    except ValueError:
        return 0

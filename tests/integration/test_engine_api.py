"""Which connection a request takes, and when it is made again; with a server that says what it is told to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.engine_log import EngineLog

from runner.adapters.docker import api as api_module
from runner.adapters.docker.client import EngineClient, open_client
from runner.errors import EngineError, EngineGone

VERSION = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"ApiVersion":"1.41"}'
GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


class Script:
    """What each connection says to one request after the other; then it is closed. Notes what was asked on which."""

    def __init__(self, connections: Sequence[Sequence[bytes]]) -> None:
        self.connections = list(connections)
        self.asked: list[list[str]] = []
        self.closed = [asyncio.Event() for _ in connections]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, asked = len(self.asked), list[str]()
        self.asked.append(asked)
        try:
            for answer in self.connections[number]:
                asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" HTTP")[0].decode())
                writer.write(answer)
                await writer.drain()
            if not self.connections[number][-1]:
                writer.transport.abort()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.closed[number].set()


@asynccontextmanager
async def told(path: Path, *connections: Sequence[bytes]) -> AsyncIterator[tuple[EngineClient, Script]]:
    script, socket = Script(connections), path / "engine.sock"
    async with await asyncio.start_unix_server(script.serve, socket), open_client(f"unix://{socket}", EngineLog()) as c:
        yield c, script
        assert not c.api.busy


async def test_one_connection_carries_request_after_request(tmp_path: Path) -> None:
    async with told(tmp_path, [VERSION, GONE, DONE, GONE]) as (client, script):
        assert await client.inspect("a") is None
        await client.start("b")
        assert await client.inspect("c") is None
    assert script.asked == [
        [
            "GET /version",
            "GET /v1.41/containers/a/json",
            "POST /v1.41/containers/b/start",
            "GET /v1.41/containers/c/json",
        ]
    ]


async def test_one_that_was_closed_unseen_is_replaced_where_asking_twice_does_no_harm(tmp_path: Path) -> None:
    """The server takes the request and breaks the connection instead of answering."""
    async with told(tmp_path, [VERSION, b""], [GONE]) as (client, script):
        assert await client.inspect("a") is None
    assert script.asked[1] == ["GET /v1.41/containers/a/json"]


async def test_what_changes_something_is_asked_for_once(tmp_path: Path) -> None:
    async with told(tmp_path, [VERSION, b""], [DONE]) as (client, script):
        with pytest.raises(EngineGone):
            await client.start("a")
        assert len(script.asked) == 1


async def test_what_is_closed_is_not_used_again(tmp_path: Path) -> None:
    async with told(tmp_path, [VERSION, GONE], [DONE]) as (client, script):
        assert await client.inspect("a") is None
        await script.closed[0].wait()
        async with asyncio.timeout(30):
            while client.api._idle:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        await client.start("b")
    assert script.asked[1] == ["POST /v1.41/containers/b/start"]


async def test_nor_is_one_that_said_something_unasked(tmp_path: Path) -> None:
    """As what stands between us and the engine may, before it closes a connection that nobody used."""
    async with told(tmp_path, [VERSION, GONE + TIMED_OUT, DONE], [DONE]) as (client, script):
        assert await client.inspect("a") is None
        await client.start("b")
    assert script.asked[1] == ["POST /v1.41/containers/b/start"]


async def test_nor_is_one_that_nobody_used_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(tmp_path, [VERSION, GONE, DONE], [DONE]) as (client, script):
        assert await client.inspect("a") is None
        monkeypatch.setattr(api_module, "_IDLE_FOR", 0.0)
        await client.start("b")
    assert script.asked[1] == ["POST /v1.41/containers/b/start"]


async def test_of_many_only_a_few_are_kept(tmp_path: Path) -> None:
    async with told(tmp_path, [VERSION, GONE], *([GONE, GONE],) * 20) as (client, _):
        assert await client.inspect("first") is None
        await asyncio.gather(*(client.inspect(f"c{number}") for number in range(20)))
        assert len(client.api._idle) <= api_module._IDLE_MOST


async def test_a_path_that_would_be_two_requests_is_not_sent(tmp_path: Path) -> None:
    async with told(tmp_path, [VERSION, GONE]) as (client, script):
        with pytest.raises(EngineError):
            await client.inspect("a/json HTTP/1.1\r\n\r\nDELETE /b")
        assert script.asked == [["GET /version"]]

"""Answers of an engine, however they are cut; no engine is asked."""

import asyncio
from typing import Any, cast

import pytest

from runner.adapters.docker.connection import Answer, Connection, NotHttp

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
PIECES = JSON + b"Transfer-Encoding: chunked\r\n\r\n4;x=y\r\nWiki\r\nA\r\npedia in a\r\n0\r\nX-After: 1\r\n\r\n"
LENGTH = JSON + b"content-length: 14\r\n\r\nWikipedia in a"
TO_THE_END = b"HTTP/1.0 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nWikipedia in a"


class Transport:
    """Is paused and closed by whoever reads."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.closed = False

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def write(self, data: bytes) -> None:
        self.told.append(data.decode())


class Receiver:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ends = 0

    def feed_data(self, data: bytes) -> None:
        self.got += data

    def feed_eof(self) -> None:
        self.ends += 1


def connected() -> tuple[Connection, Transport]:
    connection, transport = Connection(lambda _: None), Transport()
    connection.connection_made(cast("Any", transport))
    return connection, transport


async def asked(connection: Connection, head: bytes) -> Answer:
    asking = asyncio.create_task(connection.ask(b"GET"))
    await asyncio.sleep(0)
    connection.data_received(head)
    return await asking


async def read(data: bytes, cut: int, *, lost: Exception | None = None) -> tuple[Answer, bytes]:
    """What is read of `data` that comes in pieces, before the connection ends."""
    connection, _ = connected()

    async def whole() -> tuple[Answer, bytes]:
        answer = await connection.ask(b"GET")
        return answer, await answer.body()

    reading = asyncio.create_task(whole())
    for at in range(0, len(data), cut):
        await asyncio.sleep(0)
        connection.data_received(data[at : at + cut])
    await asyncio.sleep(0)
    connection.connection_lost(lost)
    async with asyncio.timeout(30):
        return await reading


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("data", "status", "is_json", "reusable"),
    [(PIECES, 200, True, True), (LENGTH, 200, True, True), (TO_THE_END, 403, False, False)],
    ids=["pieces", "length", "to-the-end"],
)
async def test_a_body_is_the_same_however_it_comes(
    data: bytes, cut: int, *, status: int, is_json: bool, reusable: bool
) -> None:
    answer, body = await read(data, cut)
    assert (answer.status, answer.json, answer.reusable, body) == (status, is_json, reusable, b"Wikipedia in a")


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", False),
    ],
    ids=["none", "unchanged", "hints-before", "closes"],
)
async def test_an_answer_without_a_body(data: bytes, *, reusable: bool) -> None:
    answer, body = await read(data, 1000)
    assert (answer.reusable, body) == (reusable, b"")


@pytest.mark.parametrize("cut", [1, 1000])
@pytest.mark.parametrize("data", [PIECES, LENGTH, TO_THE_END], ids=["pieces", "length", "to-the-end"])
async def test_an_answer_that_breaks_off_is_none(data: bytes, cut: int) -> None:
    with pytest.raises(ConnectionError):
        await read(data[:-8], cut, lost=OSError("reset"))


@pytest.mark.parametrize("data", [PIECES, LENGTH], ids=["pieces", "length"])
async def test_nor_is_one_that_is_over_too_early(data: bytes) -> None:
    with pytest.raises(ConnectionError):
        await read(data[:-8], 1000)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\n",
        b"HTTP/1.1 200 " + 70000 * b"x",
    ],
    ids=["other", "no-status", "negative", "no-number", "negative-piece", "no-end"],
)
async def test_what_is_no_http(data: bytes) -> None:
    with pytest.raises(NotHttp):
        await read(data, 1000)


async def test_an_answer_that_nobody_reads_is_held_up() -> None:
    connection, transport = connected()
    answer = await asked(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n")
    connection.data_received(bytes(300_000))
    assert transport.told == ["GET", "pause"]
    got = len(await answer.piece())
    assert transport.told == ["GET", "pause", "resume"]
    connection.data_received(bytes(100_000))
    assert got + len(await answer.piece()) == 400_000
    assert await answer.piece() == b""


async def test_what_comes_unasked_makes_it_useless() -> None:
    connection, _ = connected()
    assert connection.fresh
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert not connection.fresh


async def test_so_does_what_comes_behind_an_answer() -> None:
    connection, _ = connected()
    answer = await asked(connection, LENGTH + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 1\r\n\r\nx")
    assert (answer.status, await answer.body()) == (200, b"Wikipedia in a")
    assert not connection.fresh


async def test_who_takes_it_over_has_all_that_comes_and_hears_of_its_end_once() -> None:
    connection, _ = connected()
    receiver = Receiver()
    answer = await asked(connection, b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\near")
    connection.data_received(b"ly ")
    connection.hand_over(receiver)
    connection.data_received(b"late")
    connection.connection_lost(None)
    assert (answer.status, bytes(receiver.got), receiver.ends) == (101, b"early late", 1)

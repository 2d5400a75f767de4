"""The proxy that other tests make faults with must make exactly those."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.proxy import Proxy

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """Sends back what it gets, and counts it."""

    def __init__(self) -> None:
        self.received = b""
        self.arrived = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1024):
                async with self.arrived:
                    self.received += data
                    self.arrived.notify_all()
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def got(self, data: bytes) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: self.received == data)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=["tcp", "unix"])
async def proxy(request: pytest.FixtureRequest, echo: Echo, tmp_path: Path) -> AsyncIterator[Proxy]:
    if request.param == "tcp":
        server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
        url = f"amqp://user:word@127.0.0.1:{server.sockets[0].getsockname()[1]}/vhost"
    else:
        server = await asyncio.start_unix_server(echo.serve, tmp_path / "echo.sock")
        url = f"unix://{tmp_path}/echo.sock"
    async with server, Proxy(url) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> Pair:
    if proxy.url.startswith("unix://"):
        return await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
    assert proxy.url.startswith("amqp://user:word@127.0.0.1:")
    assert proxy.url.endswith("/vhost")
    port = proxy.url.rpartition(":")[2].removesuffix("/vhost")
    return await asyncio.open_connection("127.0.0.1", int(port))


async def ask(pair: Pair, word: bytes) -> bytes:
    pair[1].write(word)
    async with asyncio.timeout(30):
        return await pair[0].readexactly(len(word))


async def is_broken(pair: Pair) -> bool:
    try:
        async with asyncio.timeout(30):
            return await pair[0].read() == b""
    except ConnectionError:
        return True


async def answers_within(pair: Pair, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return bool(await pair[0].read(1))
    except TimeoutError:
        return False


async def test_hands_on_both_ways_and_half_closes(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    assert await ask((reader, writer), b"hello") == b"hello"
    assert proxy.connections == 1
    writer.write(b"last")
    writer.write_eof()
    assert await reader.read() == b"last"
    writer.close()


async def test_cut_breaks_what_is_open_and_takes_what_is_new(proxy: Proxy) -> None:
    pair = await connect(proxy)
    await ask(pair, b"x")
    await proxy.cut()
    assert await is_broken(pair)
    assert proxy.connections == 0
    again = await connect(proxy)
    assert await ask(again, b"y") == b"y"
    for _, writer in (pair, again):
        writer.close()


async def test_refuse_until_accept_at_the_same_address(proxy: Proxy) -> None:
    pair = await connect(proxy)
    await ask(pair, b"x")
    url = proxy.url
    await proxy.refuse()
    assert await is_broken(pair)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await connect(proxy)
    await proxy.accept()
    assert proxy.url == url
    again = await connect(proxy)
    assert await ask(again, b"y") == b"y"
    for _, writer in (pair, again):
        writer.close()


async def test_black_hole_holds_back_and_heal_delivers(proxy: Proxy, echo: Echo) -> None:
    pair = await connect(proxy)
    await ask(pair, b"x")
    proxy.black_hole()
    pair[1].write(b"y")
    silent = await connect(proxy)
    silent[1].write(b"z")
    assert not await answers_within(pair, 0.2)
    assert not await answers_within(silent, 0.2)
    assert echo.received == b"x"
    proxy.heal()
    assert await answers_within(pair, 30)
    assert await answers_within(silent, 30)
    for _, writer in (pair, silent):
        writer.close()


async def test_black_hole_one_way(proxy: Proxy, echo: Echo) -> None:
    pair = await connect(proxy)
    await ask(pair, b"x")
    proxy.black_hole(to_service=False)
    pair[1].write(b"y")
    await echo.got(b"xy")
    assert not await answers_within(pair, 0.2)
    proxy.heal()
    assert await answers_within(pair, 30)
    pair[1].close()


async def test_delay(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    pair = await connect(proxy)
    proxy.delay(0.1)
    before = loop.time()
    await ask(pair, b"x")
    assert loop.time() - before >= 0.2
    pair[1].close()

"""What can be reached from a job without a network: nothing, not even another job."""

import asyncio
from urllib.parse import urlsplit

import pytest
from tests.e2e.submitter import sh
from tests.hostile.arena import check
from tests.hostile.attack import survived
from tests.hostile.conftest import OpenArena

pytestmark = [pytest.mark.engine, pytest.mark.broker]

ANSWERS = """\
the host's loopback: ECONNREFUSED
the metadata address: ENETUNREACH
the engine's bridge: ENETUNREACH
a private address: ENETUNREACH
the world: ENETUNREACH
the engine: ENOENT
the usual engine: ENOENT
a name that shims had: ECONNREFUSED
sockets: [01], routes: 0
"""


async def test_nothing_is_reached_that_others_listen_on(arena_at: OpenArena, *, warm: bool) -> None:
    called = asyncio.Event()
    server = await asyncio.start_server(lambda _reader, _writer: called.set(), "127.0.0.1", 0)
    async with server, arena_at(warm=warm) as arena:
        port = server.sockets[0].getsockname()[1]
        other = await arena.submit(sh(f"echo up; nc -l -p {port} -e echo caught; echo called"))
        await other.wrote("up\n")
        words = ("reach", str(port), urlsplit(arena.daemon.site.engine).path)
        row = survived("others", *words, stopped_by="a network namespace of its own", out=ANSWERS)
        job = await arena.attack(row)
        check(row, await job.finished())
        await arena.acme.cancel(other)
        await other.finished()
        other.ended("cancelled", blame="none", signal=15)
        assert "called" not in other.text()
        assert not called.is_set()

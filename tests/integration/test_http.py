"""The HTTP side of the daemon, through real sockets."""

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from runner.adapters import http
from runner.adapters.http import Views, serve_http
from runner.adapters.metrics import Metrics
from runner.errors import ConfigError

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@dataclass
class Daemon:
    """What the views show."""

    problems: list[str] = field(default_factory=list)
    status: dict[str, object] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=lambda: Metrics(version="1.2.3", installed=tuple))


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: Mapping[str, str]
    json: object = None


@asynccontextmanager
async def serving(daemon: Daemon, *, page: bool = True) -> AsyncIterator["Client"]:
    views = Views(
        metrics=daemon.metrics.render,
        problems=lambda: daemon.problems,
        status=(lambda: daemon.status) if page else None,
    )
    async with serve_http("127.0.0.1", 0, views) as port, aiohttp.ClientSession() as session:
        yield Client(session, f"http://127.0.0.1:{port}")


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str, method: str = "GET") -> Answer:
        async with self.session.request(method, self.url + path) as response:
            kind = response.content_type
            parsed = await response.json() if kind == "application/json" and method == "GET" else None
            return Answer(response.status, await response.text(), dict(response.headers), parsed)


async def test_the_metrics_are_prometheus_text() -> None:
    daemon = Daemon()
    daemon.metrics.deferred()
    async with serving(daemon) as client:
        answer = await client.get("/metrics")

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "\nrunner_deferred_total 1.0\n" in answer.text


async def test_health_is_an_answer_whatever_else_is_wrong() -> None:
    async with serving(Daemon(problems=["the broker is gone"])) as client:
        answer = await client.get("/healthz")

    assert (answer.status, answer.text) == (200, "ok\n")


async def test_readiness_lists_what_is_wrong_now() -> None:
    daemon = Daemon()
    async with serving(daemon) as client:
        ready = await client.get("/readyz")
        daemon.problems = ["the broker is gone", "draining"]
        unready = await client.get("/readyz")
        daemon.problems = []
        ready_again = await client.get("/readyz")

    assert (ready.status, ready.json) == (200, [])
    assert (unready.status, unready.json) == (503, ["the broker is gone", "draining"])
    assert ready_again.status == 200


async def test_the_page_shows_facts_rows_and_values() -> None:
    status: dict[str, object] = {
        "Worker": {"name": "w1", "pools": ["default", "big"], "since": None},
        "Running": [{"job": "one", "stack": "busybox"}, {"job": "two", "stack": "ruby"}],
        "Waiting": [],
        "Note": "all is well",
    }
    async with serving(Daemon(status=status)) as client:
        answer = await client.get("/")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    for part in [
        "<h2>Worker</h2>",
        "<tr><th>pools</th><td>default, big</td></tr>",
        "<tr><th>since</th><td>–</td></tr>",
        "<tr><th>job</th><th>stack</th></tr><tr><td>one</td><td>busybox</td></tr>",
        "<h2>Waiting</h2>\n<p>–</p>",
        "<p>all is well</p>",
    ]:
        assert part in answer.text


async def test_nothing_in_the_page_is_taken_for_html() -> None:
    evil = "<script>alert('1')</script>&\""
    status: dict[str, object] = {
        evil: evil,
        "facts": {evil: evil},
        "rows": [{evil: evil}],
        "list": {"of": [evil]},
    }
    async with serving(Daemon(status=status)) as client:
        answer = await client.get("/")

    assert "<script" not in answer.text
    assert answer.text.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;&quot;") == 7
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_without_the_page_the_rest_is_still_there() -> None:
    async with serving(Daemon(), page=False) as client:
        statuses = [(await client.get(path)).status for path in ("/", "/metrics", "/healthz", "/readyz")]

    assert statuses == [404, 200, 200, 200]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/metrics", 405)])
async def test_nothing_else_is_there(method: str, path: str, status: int) -> None:
    async with serving(Daemon()) as client:
        assert (await client.get(path, method)).status == status


async def test_a_port_in_use_is_a_configuration_error_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        views = Views(metrics=bytes, problems=list, status=None)
        with pytest.raises(ConfigError, match=rf"^http\.port: cannot listen on 127\.0\.0\.1 port {port} "):
            async with serve_http("127.0.0.1", port, views):
                pass


async def test_it_ends_at_once_although_a_connection_is_open() -> None:
    daemon = Daemon()
    async with asyncio.timeout(10):
        async with serving(daemon) as client:
            await client.get("/healthz")
            port = int(client.url.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_connection_that_waits_for_its_next_request_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SHUTDOWN", 3600.0)
    async with asyncio.timeout(30):
        async with serving(Daemon()) as client:
            port = int(client.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with serving(Daemon()) as client:
            await client.get("/metrics")

    assert caplog.records == []


def test_the_operations_page_explains_every_metric() -> None:
    rendered = Metrics(version="1", installed=tuple).render().decode()
    names = set(re.findall(r"^# TYPE (runner_\w+)", rendered, re.MULTILINE))
    page = OPERATIONS.read_text(encoding="utf-8")

    assert len(names) > 20
    assert {name for name in names if f"`{name}" not in page} == set()

"""What operators and their tools read over HTTP: metrics, health, readiness and a page for people."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape

# The library's low-level server, by its modules: `aiohttp.web` brings routes, files and applications, of 1.3 MiB.
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from aiohttp.web_server import Server
from prometheus_client import CONTENT_TYPE_LATEST

from runner.errors import ConfigError

_METHODS = ("GET", "HEAD")
_SHUTDOWN = 1.0
"""Seconds that an answer which is on its way may still take at the end."""
_REFRESH_SECONDS = 5
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}"><title>runner</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: 0 0 1em }} h2 {{ font-size: 1em; margin: 1.5em 0 .3em }}
td, th {{ border-bottom: 1px solid #ddd; padding: .2em 1.2em .2em 0; text-align: left; vertical-align: top }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }} td, th {{ border-color: #444 }} }}
</style></head><body><h1>runner</h1>
{body}
</body></html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What is shown, asked for anew with each request. None of these may block.

    `problems` has a sentence for each thing that keeps this worker from taking jobs. `status` has a heading for each
    part of the page, with facts by name, a list of such facts, or a plain value; None leaves the page out.
    """

    metrics: Callable[[], bytes]
    problems: Callable[[], Sequence[str]]
    status: Callable[[], Mapping[str, object]] | None


@asynccontextmanager
async def serve_http(host: str, port: int, views: Views) -> AsyncIterator[int]:
    """Answer requests until the block is left; gives the port (chosen by the system where `port` is 0).

    Raises `ConfigError` when the address cannot be had.
    """
    answers = _answers(views)

    async def answer(request: BaseRequest) -> Response:
        return _answer(answers, request)

    requests = Server(answer, access_log=None)
    listener = await _listen(requests, host, port)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        requests.pre_shutdown()  # or a connection that only waits for its next request would be waited for
        await requests.shutdown(_SHUTDOWN)


async def _listen(requests: Server, host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(requests, host, port)
    except OSError as error:
        raise ConfigError(
            f"http.port: cannot listen on {host} port {port} ({error.strerror}); choose another port or host"
        ) from error


def _answers(views: Views) -> Mapping[str, Callable[[], Response]]:
    """What answers, by path."""

    def readiness() -> Response:
        problems = list(views.problems())
        return Response(text=json.dumps(problems), status=503 if problems else 200, content_type="application/json")

    answers = {
        "/metrics": lambda: Response(body=views.metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST}),
        # That this is answered is all there is to say: the event loop turns.
        "/healthz": lambda: Response(text="ok\n"),
        "/readyz": readiness,
    }
    if (status := views.status) is not None:
        answers["/"] = lambda: Response(text=_page(status()), content_type="text/html", headers=_HEADERS)
    return answers


def _answer(answers: Mapping[str, Callable[[], Response]], request: BaseRequest) -> Response:
    answer = answers.get(request.path)
    if answer is None:
        return Response(text="404: Not Found", status=404)
    if request.method not in _METHODS:
        return Response(text="405: Method Not Allowed", status=405, headers={"Allow": ",".join(_METHODS)})
    return answer()


def _page(status: Mapping[str, object]) -> str:
    parts = [f"<h2>{escape(heading)}</h2>\n{_show(value)}" for heading, value in status.items()]
    return _PAGE.format(refresh=_REFRESH_SECONDS, body="\n".join(parts))


def _show(value: object) -> str:
    if isinstance(value, Mapping) and value:
        rows = [f"<tr><th>{escape(str(name))}</th><td>{escape(_text(fact))}</td></tr>" for name, fact in value.items()]
        return f"<table>{''.join(rows)}</table>"
    if isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        return _table(value)
    return f"<p>{escape(_text(value))}</p>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(row.get(name)))}</td>" for name in names) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: object) -> str:
    if value is None or value in ([], (), {}):
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)

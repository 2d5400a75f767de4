"""What we make of an engine's answers, with a server that gives them on demand; and the ways to reach an engine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from tests.engine_log import EngineLog
from tests.integration.engine_house import open_house
from tests.services import Endpoint

from runner.adapters.docker.attachment import READ_BYTES
from runner.adapters.docker.client import TIME_LIMITS, Deletion, EngineClient, Operation, Refused, open_client
from runner.errors import ConfigError, EngineError, EngineGone, EngineUnfit, ImageMissing, RunnerError, StartError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(
    path: Path, handler: Handler, versions: Iterable[str] = repeat("1.41")
) -> AsyncIterator[tuple[EngineClient, EngineLog]]:
    """A client whose engine answers everything but the question for its version with `handler`."""
    answers = iter(versions)

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": next(answers)})

    app = web.Application()
    app.router.add_get("/version", version)
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    socket = path / "engine.sock"
    await web.UnixSite(runner, str(socket)).start()
    log = EngineLog()
    try:
        async with open_client(f"unix://{socket}", log) as client:
            yield client, log
    finally:
        await runner.cleanup()


def refusing(status: int, message: str) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response({"message": message}, status=status)

    return handler


async def create(client: EngineClient) -> object:
    return await client.create("name", {})


async def start(client: EngineClient) -> None:
    await client.start("id")


async def signal(client: EngineClient) -> None:
    await client.signal("id", 15)


async def delete(client: EngineClient) -> object:
    return await client.delete("id")


async def inspect(client: EngineClient) -> object:
    return await client.inspect("id")


async def wait(client: EngineClient) -> object:
    return await client.wait("id")


async def attach(client: EngineClient) -> object:
    return await client.attach("id")


Call = Callable[[EngineClient], Awaitable[object]]


@pytest.mark.parametrize(
    ("call", "status", "message", "error", "kind"),
    [
        (create, 404, "No such image: sha256:1", ImageMissing, "refused"),
        (create, 404, "no such network", Refused, "refused"),
        (create, 400, "invalid CPUs", StartError, "refused"),
        (create, 409, "Conflict. The name is in use", Refused, "refused"),
        (create, 500, "no space left on device", EngineUnfit, "failed"),
        (start, 400, "exec format error", StartError, "refused"),
        (start, 500, "cannot find bridge", Refused, "failed"),
        (start, 400, "mkdir /run/c: no space left on device", EngineUnfit, "refused"),
        (signal, 409, "Container id is paused", Refused, None),
        (signal, 500, "no exit event", Refused, "failed"),
        (delete, 409, "cannot remove", Refused, None),
        (delete, 500, "device or resource busy", Refused, "failed"),
        (inspect, 500, "oh", Refused, "failed"),
        (attach, 404, "No such container", Refused, "refused"),
        (attach, 200, "not upgraded", EngineError, None),
    ],
)
async def test_a_refusal_becomes_an_error_of_ours(
    tmp_path: Path, *, call: Call, status: int, message: str, error: type[RunnerError], kind: str | None
) -> None:
    async with answering(tmp_path, refusing(status, message)) as (client, log):
        with pytest.raises(error) as raised:
            await call(client)
        assert type(raised.value) is error
        operation = "kill" if call is signal else call.__name__
        assert dict(log.failures) == ({(operation, kind): 1} if kind else {})


@pytest.mark.parametrize(
    ("call", "status", "message", "answer"),
    [
        (signal, 404, "No such container", None),
        (signal, 409, "Container id is not running", None),
        (delete, 404, "No such container", Deletion.ABSENT),
        (delete, 409, "removal of container id is already in progress", Deletion.IN_PROGRESS),
        (delete, 204, "", Deletion.DONE),
        (inspect, 404, "No such container", None),
        (wait, 404, "No such container", True),
        (start, 304, "", None),
    ],
)
async def test_a_refusal_that_is_an_answer(
    tmp_path: Path, call: Call, status: int, message: str, answer: object
) -> None:
    async with answering(tmp_path, refusing(status, message)) as (client, log):
        assert await call(client) == answer
        assert not log.failures
        assert log.calls.total() == 1


async def test_an_answer_that_makes_no_sense(tmp_path: Path) -> None:
    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(body=b"{", content_type="application/json")

    async with answering(tmp_path, nonsense) as (client, log):
        for call in (create, inspect):
            with pytest.raises(EngineError):
                await call(client)
        assert log.failures["create", "garbled"] == 1


async def info(client: EngineClient) -> object:
    return await client.info()


async def labelled(client: EngineClient) -> object:
    return await client.labelled("a=b")


@pytest.mark.parametrize(
    ("call", "operation", "answer"),
    [
        (info, "info", "{}"),
        (info, "info", "[]"),
        (info, "info", '{"NCPU": 2}'),
        (info, "info", '{"NCPU": null, "MemTotal": 5}'),
        (info, "info", '{"NCPU": 1e999, "MemTotal": 5}'),
        (labelled, "list", "{}"),
        (labelled, "list", "null"),
        (labelled, "list", "[{}]"),
        (labelled, "list", '["a"]'),
        (labelled, "list", '[{"Id": "a", "Names": [5], "Created": 5}]'),
        (labelled, "list", '[{"Id": "a", "Names": ["/x"]}]'),
        (inspect, "inspect", "{}"),
        (inspect, "inspect", "[]"),
        (inspect, "inspect", '{"Id": "a", "State": {}}'),
        (inspect, "inspect", '{"Id": "a", "State": null, "Config": {}}'),
        (create, "create", "{}"),
    ],
)
async def test_an_answer_that_lacks_what_we_need(tmp_path: Path, call: Call, operation: str, answer: str) -> None:
    async def odd(_request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    async with answering(tmp_path, odd) as (client, log):
        with pytest.raises(EngineError, match=f"the engine's answer to {operation} makes no sense") as raised:
            await call(client)
        assert type(raised.value) is EngineError
        assert dict(log.failures) == {(operation, "garbled"): 1}


async def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with answering(tmp_path, broken) as (client, log):
        with pytest.raises(EngineGone):
            await wait(client)
        assert log.failures["wait", "connection"] == 1


async def test_every_call_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in Operation:
        monkeypatch.setitem(TIME_LIMITS, operation, timedelta(seconds=0.05))

    async def never(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async with answering(tmp_path, never) as (client, log):
        calls: list[Call] = [create, start, signal, delete, inspect, attach]
        for call in calls:
            with pytest.raises(EngineGone, match="did not answer"):
                await call(client)
        with pytest.raises(EngineGone):
            await client.ping()
        with pytest.raises(EngineGone):
            await client.info()
        with pytest.raises(EngineGone):
            await client.labelled("a=b")
        assert await wait(client) is False
        assert {kind for _, kind in log.failures} == {"timeout"}
        assert log.failures.total() == len(calls) + 3
        assert not client.api.busy


def flood(size: int) -> bytes:
    return b"".join(b"\x01\0\0\0" + len(line).to_bytes(4) + line for line in repeat(b"x" * 32768, size // 32768))


async def test_of_a_flood_others_have_to_wait_for_little_at_a_time(tmp_path: Path) -> None:
    """Counts what is handed over between two turns of everybody else."""
    size, total, in_turn, most = 4 * 2**20, 0, 0, 0
    listening, told = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        await listening.wait()
        request.transport.write(flood(size))
        await told.wait()
        request.transport.abort()
        return web.Response()

    def turn() -> None:
        nonlocal in_turn, most
        in_turn, most = 0, max(most, in_turn)
        if total < size:
            asyncio.get_running_loop().call_soon(turn)
        else:
            told.set()

    def take(_stream: int, data: bytes) -> None:
        nonlocal in_turn, total
        in_turn, total = in_turn + len(data), total + len(data)

    async with answering(tmp_path, handler) as (client, _):
        (await client.attach("id")).listen(take, lambda: None)
        listening.set()
        turn()
        async with asyncio.timeout(30):
            await told.wait()
        assert total == size
        assert 0 < most <= READ_BYTES


async def test_an_engine_that_changed_its_version(tmp_path: Path) -> None:
    spoken = "v1.41"

    async def handler(request: web.Request) -> web.Response:
        if request.path.startswith(f"/{spoken}/"):
            return web.json_response([])
        return web.json_response({"message": "client version 1.41 is too new"}, status=400)

    async with answering(tmp_path, handler, versions=["1.41", "1.40"]) as (client, log):
        assert await client.labelled("a=b") == []
        spoken = "v1.40"
        assert await client.labelled("a=b") == []
        assert not log.failures


async def test_a_version_that_cannot_be_agreed_on_is_not_the_jobs_fault(tmp_path: Path) -> None:
    async with answering(tmp_path, refusing(400, "client version 1.41 is too old")) as (client, _):
        with pytest.raises(Refused):
            await create(client)


async def test_the_list_copes_with_containers_that_lost_their_name(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.query["filters"] == '{"label": ["runner.worker=w1"]}'
        assert request.query["all"] == "1"
        return web.json_response([{"Id": "a", "Names": ["/x"], "Created": 5}, {"Id": "b", "Names": None, "Created": 6}])

    async with answering(tmp_path, handler) as (client, _):
        found = await client.labelled("runner.worker=w1")
        assert [(each.id, each.name, each.created) for each in found] == [("a", "x", 5.0), ("b", "b", 6.0)]


@pytest.mark.parametrize("url", ["", "/run/docker.sock", "unix://", "tcp://", "ssh://host", "npipe://x"])
async def test_a_url_that_leads_nowhere(url: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.url"):
        async with open_client(url, EngineLog()):
            pass


@asynccontextmanager
async def over_tcp(url: str) -> AsyncIterator[int]:
    """A port that leads to the engine's socket."""
    tasks = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        engine_reader, engine_writer = await asyncio.open_unix_connection(urlsplit(url).path)
        try:
            await asyncio.gather(pump(reader, engine_writer), pump(engine_reader, writer))
        except OSError:
            pass  # the client has hung up
        finally:
            writer.close()
            engine_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*tasks)


@pytest.mark.engine
@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_an_engine_over_tcp(
    engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str, scheme: str
) -> None:
    async with (
        over_tcp(engine.url) as port,
        open_house(f"{scheme}://127.0.0.1:{port}", namespace, state_dir, busybox_image) as house,
    ):
        await house.client.ping()
        assert (await house.run("cat", stdin=b"over tcp")).code == 0
        assert bytes(house.out) == b"over tcp"
        assert await house.names() == set()


@pytest.mark.engine
async def test_what_the_engine_says_of_itself(engine: Endpoint) -> None:
    async with open_client(engine.url, EngineLog()) as client:
        info = await client.info()
    assert info.cpus >= 1
    assert info.memory > 2**20
    assert info.cgroup_version in (1, 2)
    assert "runc" in info.runtimes

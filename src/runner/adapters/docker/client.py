"""The engine's HTTP API: every call has a time limit, and fails with an error of ours."""

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from runner.adapters.docker.api import Api, HttpError, Unreachable, open_api
from runner.adapters.docker.attachment import READ_BYTES, Attachment
from runner.adapters.docker.connection import Answer
from runner.adapters.docker.frames import FrameParser
from runner.adapters.docker.observer import EngineObserver
from runner.errors import EngineError, EngineGone, EngineUnfit, ImageMissing, RunnerError, StartError
from runner.job import Bytes

T = TypeVar("T")


class Operation(StrEnum):
    """The calls that are made, as the metrics name them."""

    PING = "ping"
    INFO = "info"
    LIST = "list"
    INSPECT = "inspect"
    SIZE = "size"
    CREATE = "create"
    ATTACH = "attach"
    LOGS = "logs"
    START = "start"
    UPDATE = "update"
    RENAME = "rename"
    KILL = "kill"
    WAIT = "wait"
    DELETE = "delete"


class FailureKind(StrEnum):
    """How a call failed, as the metrics name it."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    REFUSED = "refused"
    FAILED = "failed"
    GARBLED = "garbled"


TIME_LIMITS: Mapping[Operation, timedelta] = {
    Operation.PING: timedelta(seconds=5),
    Operation.INFO: timedelta(seconds=10),
    Operation.LIST: timedelta(seconds=30),
    Operation.INSPECT: timedelta(seconds=10),
    Operation.SIZE: timedelta(seconds=60),
    Operation.CREATE: timedelta(seconds=60),
    Operation.ATTACH: timedelta(seconds=10),
    Operation.LOGS: timedelta(seconds=10),
    Operation.START: timedelta(seconds=120),
    Operation.UPDATE: timedelta(seconds=10),
    Operation.RENAME: timedelta(seconds=10),
    Operation.KILL: timedelta(seconds=20),
    Operation.WAIT: timedelta(seconds=60),
    Operation.DELETE: timedelta(seconds=60),
}
"""Sized for an engine under load: a start alone takes seconds when many go on at once."""

TimeLimits = Mapping[Operation, timedelta]
"""How long each call may take; has all of `Operation`."""

_NONSENSE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
"""What an answer raises that is broken JSON, or JSON of another shape than ours."""

_NO_SPACE = os.strerror(errno.ENOSPC).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the engine says of itself and its host. `root` is the folder of its containers and images."""

    version: str
    cpus: int
    memory: Bytes
    cgroup_version: int
    root: Path
    runtimes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A container as the list shows it. `name` is the id where it has lost its name."""

    id: str
    name: str
    created: float
    running: bool


class Deletion(StrEnum):
    """What became of a request to delete a container."""

    DONE = "done"
    ABSENT = "absent"
    IN_PROGRESS = "in_progress"


class Refused(EngineError):
    """The engine answered with an error that has no class of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineUnreachable(EngineGone):
    """No connection could be made, so the engine was not asked."""


class EngineClient:
    """What we ask of the engine. Methods raise `EngineGone`, or `EngineError` and its kin, and nothing else."""

    def __init__(self, api: Api, observer: EngineObserver, limits: TimeLimits) -> None:
        self.limits = limits
        self.doubted = asyncio.Event()
        """Set when a call other than a ping got no answer; whoever watches the engine clears it."""
        self.api = api
        self._observer = observer

    async def ping(self) -> None:
        """Return when the engine takes new connections: one that shuts down still answers on the old ones."""
        await self._call(Operation.PING, self.api.ping)

    async def info(self) -> EngineInfo:
        """What the engine says of itself."""
        return await self._call(Operation.INFO, self._info)

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make a container; its id. Raises `StartError` or `ImageMissing` as well."""
        return await self._call(Operation.CREATE, lambda: self._create(name, body))

    async def attach(self, container: str) -> Attachment:
        """Take the streams of a container that was not started yet (afterwards it may hang, or miss something)."""
        return await self._call(Operation.ATTACH, lambda: self._attach(container))

    async def read_log(self, container: str, take: Callable[[int, bytes], None], *, follow: bool) -> None:
        """Read the engine's copy of a container's output from its beginning; `follow` it as long as it grows.

        `take` gets each stream's number and bytes, in order. The end of it says nothing about the container's end.
        """
        request = partial(self._open_log, container, follow=follow)
        answer = await self._call(Operation.LOGS, request, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
        frames, pause = FrameParser(), None if follow else self.limits[Operation.LOGS].total_seconds()
        try:
            while True:
                async with asyncio.timeout(pause):
                    chunk = await answer.piece()
                if not chunk:
                    return
                for at in range(0, len(chunk), READ_BYTES):
                    for stream, pieces in groupby(frames.feed(chunk[at : at + READ_BYTES]), key=itemgetter(0)):
                        take(stream, b"".join(piece for _, piece in pieces))
                    await asyncio.sleep(0)  # others have their turn
        except OSError as error:
            raise EngineGone(f"the engine broke off a container's log: {error!r}") from error
        finally:
            answer.connection.close()

    async def start(self, container: str) -> None:
        """Start it; done already when it runs. Raises `StartError` as well."""
        await self._call(Operation.START, lambda: self.api.ask("POST", f"/containers/{container}/start"))

    async def update(self, container: str, resources: Mapping[str, Any]) -> None:
        """Change its limits while it runs. Memory and swap have to be named together."""
        await self._call(Operation.UPDATE, lambda: self.api.ask("POST", f"/containers/{container}/update", resources))

    async def rename(self, container: str, name: str) -> None:
        """Give it another name, whether or not it runs."""
        path = f"/containers/{container}/rename?name={name}"
        await self._call(Operation.RENAME, lambda: self.api.ask("POST", path))

    async def signal(self, container: str, signal: int) -> None:
        """Send a signal to its first process; done already when it has ended."""
        kill = partial(self.api.ask, "POST", f"/containers/{container}/kill?signal={signal}")
        try:
            await self._call(Operation.KILL, kill, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
        except Refused as refusal:
            ended = refusal.status == HTTPStatus.CONFLICT and "not running" in str(refusal)
            if refusal.status != HTTPStatus.NOT_FOUND and not ended:
                raise

    async def wait(self, container: str) -> bool:
        """Wait until it has ended or is gone, a minute at most; false when it has not. Only `inspect` has the truth."""
        try:
            async with asyncio.timeout(self.limits[Operation.WAIT].total_seconds()):
                wait = partial(self.api.ask, "POST", f"/containers/{container}/wait")
                await self._call(Operation.WAIT, wait, HTTPStatus.NOT_FOUND, limited=False)
        except TimeoutError:
            return False
        except Refused as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise
        return True

    async def inspect(self, container: str) -> dict[str, Any] | None:
        """All there is to know of a container, by id or name; None if there is none.

        It has the keys `Id`, `State` and `Config` at least.
        """
        try:
            return await self._call(Operation.INSPECT, lambda: self._inspect(container), HTTPStatus.NOT_FOUND)
        except Refused as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def layer_size(self, container: str) -> Bytes:
        """What a container's own files take, by their lengths; the engine goes through all of them for it."""
        return await self._call(Operation.SIZE, lambda: self._layer_size(container), HTTPStatus.NOT_FOUND)

    async def delete(self, container: str) -> Deletion:
        """Kill and remove a container and its anonymous volumes. Only a later 404 proves that it is gone."""
        delete = partial(self.api.ask, "DELETE", f"/containers/{container}?force=1&v=1")
        try:
            await self._call(Operation.DELETE, delete, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
        except Refused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return Deletion.ABSENT
            if refusal.status == HTTPStatus.CONFLICT and "already in progress" in str(refusal):
                return Deletion.IN_PROGRESS
            raise
        return Deletion.DONE

    async def labelled(self, label: str) -> Sequence[Listed]:
        """All containers with that label (`name=value`), whatever their state."""
        return await self._call(Operation.LIST, lambda: self._list(label))

    # What parses an answer is part of the request, so that `_call` hears of an answer that lacks what we need.

    async def _info(self) -> EngineInfo:
        said = json.loads(await self.api.ask("GET", "/info"))
        return EngineInfo(
            version=str(said.get("ServerVersion", "")),
            cpus=int(said["NCPU"]),
            memory=Bytes(int(said["MemTotal"])),
            cgroup_version=int(said.get("CgroupVersion") or 1),
            root=Path(str(said["DockerRootDir"])),
            runtimes=frozenset(said.get("Runtimes") or {}),
        )

    async def _create(self, name: str, body: Mapping[str, Any]) -> str:
        created = json.loads(await self.api.ask("POST", f"/containers/create?name={name}", body))["Id"]
        if not isinstance(created, str):
            raise TypeError("Id is of the wrong type")
        return created

    async def _inspect(self, container: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(await self.api.ask("GET", f"/containers/{container}/json"))
        if not (isinstance(said["Id"], str) and isinstance(said["State"], dict) and isinstance(said["Config"], dict)):
            raise TypeError("Id, State or Config is of the wrong type")
        return said

    async def _layer_size(self, container: str) -> Bytes:
        said = json.loads(await self.api.ask("GET", f"/containers/{container}/json?size=1"))
        return Bytes(int(said["SizeRw"]))

    async def _list(self, label: str) -> list[Listed]:
        query = urlencode({"all": 1, "filters": json.dumps({"label": [label]})})
        said = json.loads(await self.api.ask("GET", f"/containers/json?{query}"))
        if not isinstance(said, list):
            raise TypeError("not a list")  # an empty object must not pass for no containers
        return [
            Listed(
                id=one["Id"],
                name=(one.get("Names") or [one["Id"]])[0].lstrip("/"),
                created=float(one["Created"]),
                running=one.get("State") == "running",
            )
            for one in said
        ]

    async def _attach(self, container: str) -> Attachment:
        path = f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        return Attachment(await self.api.open("POST", path, upgrade=True))

    async def _open_log(self, container: str, *, follow: bool) -> Answer:
        return await self.api.open("GET", f"/containers/{container}/logs?stdout=1&stderr=1&follow={int(follow)}")

    async def _call(
        self,
        operation: Operation,
        request: Callable[[], Awaitable[T]],
        *expected: HTTPStatus,
        limited: bool = True,
    ) -> T:
        """Make a call. A refusal with an `expected` status is raised like any other, but is no failure to count."""
        began = time.monotonic()
        limit = self.limits[operation].total_seconds() if limited else None
        try:
            async with asyncio.timeout(limit):
                return await request()
        except (HttpError, OSError, *_NONSENSE) as error:
            failure, kind = _translated(operation, error, self.limits[operation])
            if not (isinstance(failure, Refused) and failure.status in expected):
                self._observer.call_failed(operation, kind)
            if isinstance(failure, EngineGone):
                self.api.forget_version()
                if operation is not Operation.PING:
                    self.doubted.set()
            raise failure from error
        finally:
            self._observer.call_done(operation, time.monotonic() - began)


@asynccontextmanager
async def open_client(
    url: str, observer: EngineObserver, limits: TimeLimits = TIME_LIMITS
) -> AsyncIterator[EngineClient]:
    """A client for the engine at `unix://…`, `tcp://…` or `http://…`; the engine need not be there.

    Each job holds connections for as long as it lives, so their number is not limited.
    """
    async with open_api(url) as api:
        yield EngineClient(api, observer, limits)


def _translated(operation: Operation, error: Exception, limit: timedelta) -> tuple[RunnerError, FailureKind]:
    match error:
        case TimeoutError():
            seconds = limit.total_seconds()
            return EngineGone(f"the engine did not answer {operation} within {seconds:g} s"), FailureKind.TIMEOUT
        case HttpError() if operation is Operation.PING:
            return EngineGone(f"{operation}: {error}"), FailureKind.FAILED
        case HttpError():
            return _refusal(operation, error.status, error.message)
        case OSError():
            kind = EngineUnreachable if isinstance(error, Unreachable) else EngineGone
            return kind(f"no connection to the engine for {operation}: {error}"), FailureKind.CONNECTION
        case _:
            return EngineError(f"the engine's answer to {operation} makes no sense: {error!r}"), FailureKind.GARBLED


def _refusal(operation: Operation, status: int, message: str) -> tuple[RunnerError, FailureKind]:
    kind = FailureKind.FAILED if status >= HTTPStatus.INTERNAL_SERVER_ERROR else FailureKind.REFUSED
    starting = operation in (Operation.CREATE, Operation.START)
    if starting and _NO_SPACE in message.lower():
        return EngineUnfit(f"the engine's disk is full: {message}"), kind
    if operation is Operation.CREATE and status == HTTPStatus.NOT_FOUND and "No such image" in message:
        return ImageMissing(message), kind
    if starting and status == HTTPStatus.BAD_REQUEST and "client version" not in message:
        return StartError(message), kind
    return Refused(f"the engine refused {operation}: {message} (HTTP {status})", status), kind

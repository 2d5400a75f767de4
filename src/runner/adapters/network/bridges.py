"""The engine's networks for jobs that reach out: bridges without the engine's own masquerading and without IPv6."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import aiodocker
import aiohttp

from runner.errors import EngineError, EngineGone, HostError

LABEL = "runner.worker"

_ANSWER = timedelta(seconds=30)
_CANNOT_CONNECT = 900  # aiodocker's own status for a connection that could not be made or broke
_NAME = "com.docker.network.bridge.name"
_SHUT = {
    "com.docker.network.bridge.enable_icc": "false",
    "com.docker.network.bridge.enable_ip_masquerade": "false",
}
"""What our rules do themselves is off in the engine; what they forbid, it forbids as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A network as the engine has it. `fault` says what makes it unfit for jobs; None if nothing does."""

    name: str
    bridge: str
    worker: str | None
    subnets: tuple[IPv4Network, ...]
    fault: str | None
    attached: tuple[str, ...] = ()

    @property
    def subnet(self) -> IPv4Network | None:
        """Its only subnet."""
        return self.subnets[0] if len(self.subnets) == 1 else None


class Bridges:
    """Lists, makes and removes networks. Raises `EngineError` and its kin."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def all(self) -> Sequence[Bridge]:
        """All networks of the engine, not only ours; who is attached is left out."""
        async with _call("list the networks"):
            return [_bridge(said) for said in await self._docker.networks.list()]

    async def inspect(self, name: str) -> Bridge | None:
        """The network of that name, with the names of the containers on it; None if there is none."""
        try:
            async with _call("look up a network"):
                return _bridge(await self._docker._query_json(f"networks/{name}"))  # noqa: SLF001 - `get` tells an id
        except _NotThere:
            return None

    async def make(self, name: str, bridge: str, subnet: IPv4Network, worker: str) -> None:
        """Make a network that is ours."""
        config = {
            "Name": name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "EnableIPv6": False,
            "Options": {_NAME: bridge, **_SHUT},
            "IPAM": {"Driver": "default", "Config": [{"Subnet": str(subnet), "Gateway": str(gateway_of(subnet))}]},
            "Labels": {LABEL: worker},
        }
        async with _call("make a network"):
            await self._docker.networks.create(config)

    async def remove(self, name: str) -> None:
        """Remove a network; done already when there is none. Raises `HostError` while a container is attached."""
        try:
            async with _call("remove a network"), self._docker._query(f"networks/{name}", method="DELETE"):  # noqa: SLF001
                return
        except _NotThere:
            return

    async def forget_image(self, name: str) -> None:
        """Remove an image; done already when there is none."""
        try:
            async with _call("remove an image"):
                await self._docker.images.delete(name, force=True)
        except _NotThere:
            return


@asynccontextmanager
async def open_bridges(url: str) -> AsyncIterator[Bridges]:
    """The networks of the engine at `unix://…`, `tcp://…` or `http://…`."""
    async with aiodocker.Docker(url=url.replace("tcp://", "http://", 1)) as docker:
        yield Bridges(docker)


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The host's own address on a bridge with that subnet."""
    return subnet[1]


class _NotThere(EngineError):
    """The engine has no such thing."""


def _bridge(said: Mapping[str, Any]) -> Bridge:
    options = said.get("Options") or {}
    ranges = (said.get("IPAM") or {}).get("Config") or ()
    return Bridge(
        name=said["Name"],
        bridge=options.get(_NAME, ""),
        worker=(said.get("Labels") or {}).get(LABEL),
        subnets=tuple(IPv4Network(each["Subnet"]) for each in ranges if ":" not in each.get("Subnet", ":")),
        fault=_fault(said, options),
        attached=tuple(sorted(each["Name"] for each in (said.get("Containers") or {}).values())),
    )


def _fault(said: Mapping[str, Any], options: Mapping[str, str]) -> str | None:
    if said.get("Driver") != "bridge":
        return f"its driver is {said.get('Driver')}"
    if said.get("EnableIPv6") or said.get("Internal"):
        return "it has IPv6, or is internal"
    return next(
        (f"its option {name} is not {value}" for name, value in _SHUT.items() if options.get(name) != value), None
    )


@asynccontextmanager
async def _call(doing: str) -> AsyncIterator[None]:
    with _translated(doing):
        async with asyncio.timeout(_ANSWER.total_seconds()):
            yield


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            raise _NotThere(error.message) from error
        if error.status == HTTPStatus.FORBIDDEN and "active endpoints" in error.message:
            raise HostError(f"{error.message}; let the jobs end, and do it again") from error
        if error.status == _CANNOT_CONNECT:
            raise EngineGone(f"no connection to the engine to {doing}: {error.message}") from error
        raise EngineError(f"the engine refused to {doing}: {error.message}") from error
    except TimeoutError as error:
        raise EngineGone(f"the engine did not answer in time to {doing}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineGone(f"no connection to the engine to {doing}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the engine's answer makes no sense, to {doing}: {error!r}") from error

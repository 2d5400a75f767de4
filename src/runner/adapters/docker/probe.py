"""Two containers of ours on a network: one that tries what it can reach, and a neighbour for it to find."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from ipaddress import AddressValueError, IPv4Address
from secrets import token_hex
from typing import Any

from runner.adapters.docker.census import Census
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import Site, probe_body
from runner.adapters.docker.removal import Removal
from runner.errors import EngineError

_PATIENCE = timedelta(seconds=60)
_CLEAR = timedelta(seconds=60)
"""How long they are waited for to be gone; the sweep removes what is left."""

Words = Callable[[IPv4Address], Sequence[str]]
"""What to try, given the neighbour's address; see `init/probe.c`."""


class Probes:
    """Probes networks. Sweeps leave the containers alone for as long as one goes on."""

    def __init__(self, *, client: EngineClient, removal: Removal, census: Census, site: Site) -> None:
        self._client = client
        self._removal = removal
        self._census = census
        self._site = site
        self._names: set[str] = set()

    def names(self) -> frozenset[str]:
        """The containers of the probes that go on."""
        return frozenset(self._names)

    async def run(self, network: str, image: str, words: Words) -> str:
        """What the probe told; nothing is left of it. `image` may be empty. Raises `EngineError` and its kin."""
        name = f"probe-{self._site.worker}-{token_hex(4)}"
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()), AsyncExitStack() as stack:
                neighbour = await self._start(stack, f"{name}-neighbour", network, image, ())
                address = _address_on(network, await self._client.inspect(neighbour))
                prober = await self._start(stack, name, network, image, ("probe", *words(address)))
                while not await self._client.wait(prober):
                    pass
                told = bytearray()
                await self._client.read_log(prober, lambda _, data: told.extend(data), follow=False)
                if not _runs(await self._client.inspect(neighbour)):  # nobody being there would be silent, too
                    raise EngineError(f"the neighbour in a probe of {network} ended before the probe did")
                return told.decode(errors="replace")
        except TimeoutError:
            raise EngineError(f"a probe of {network} did not end within {_PATIENCE.total_seconds():.0f} s") from None

    async def _start(self, stack: AsyncExitStack, name: str, network: str, image: str, words: Sequence[str]) -> str:
        """A container that runs, and is removed with the stack; its id."""
        self._names.add(name)
        body = probe_body(image, network, words, self._site)
        creation = asyncio.create_task(self._client.create(name, body))
        stack.push_async_callback(self._remove, name, creation)
        container = await asyncio.shield(creation)
        self._census.appeared(name)
        await self._client.start(container)
        return container

    async def _remove(self, name: str, creation: asyncio.Task[str]) -> None:
        """Only an engine that has answered is sure to have made the container, or none."""
        try:
            async with asyncio.timeout(_CLEAR.total_seconds()):
                await asyncio.wait({creation})
                await self._removal.remove(name)
        except TimeoutError:
            return
        finally:
            creation.cancel()
            self._names.discard(name)


def _runs(said: Mapping[str, Any] | None) -> bool:
    return bool(((said or {}).get("State") or {}).get("Running"))


def _address_on(network: str, said: Mapping[str, Any] | None) -> IPv4Address:
    try:
        return IPv4Address((said or {})["NetworkSettings"]["Networks"][network]["IPAddress"])
    except (KeyError, TypeError, AddressValueError) as error:
        raise EngineError(f"the engine does not tell a container's address on {network}") from error

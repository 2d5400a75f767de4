"""Containers of ours on a network: one that tries what it can reach, and neighbours for it to find."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import AddressValueError, IPv4Address
from secrets import token_hex
from typing import Any

from runner.adapters.docker.census import Census
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import Site, probe_body
from runner.adapters.docker.removal import Removal
from runner.errors import EngineError, EngineGone, StartError

_LOG = logging.getLogger(__name__)

_PATIENCE = timedelta(seconds=60)
_CLEAR = timedelta(seconds=60)
"""How long they are waited for to be gone; the sweep removes what is left."""
_CLEAR_AT_THE_END = timedelta(seconds=5)
"""The same for a probe that is cancelled: the daemon is about to end, and the next one sweeps, too."""

Words = Callable[[IPv4Address, IPv4Address | None], Sequence[str]]
"""What to try, given the addresses of the neighbour, and of one beside the network; see `init/probe.c`."""


@dataclass(frozen=True, slots=True)
class _Neighbour:
    container: str
    address: IPv4Address


@dataclass(slots=True, kw_only=True)
class _Probe:
    """What there is of one probe: its containers' names, each with the request to make it."""

    network: str
    image: str
    name: str
    made: dict[str, asyncio.Task[str]] = field(default_factory=dict)


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

    async def run(self, network: str, image: str, words: Words, beside: str | None = None) -> str:
        """What the probe told; nothing is left of it. `image` may be empty. Raises `EngineError` and its kin.

        `beside` is another network, whose containers are tried, too, unless there can be none.
        """
        probe = _Probe(network=network, image=image, name=f"probe-{self._site.worker}-{token_hex(4)}")
        patience = _CLEAR
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                return await self._told(probe, words, beside)
        except TimeoutError:
            raise EngineError(f"a probe of {network} did not end within {_PATIENCE.total_seconds():.0f} s") from None
        except asyncio.CancelledError:
            patience = _CLEAR_AT_THE_END
            raise
        finally:
            await self._remove(probe, patience)

    async def _told(self, probe: _Probe, words: Words, beside: str | None) -> str:
        neighbour = await self._neighbour(probe, f"{probe.name}-neighbour", probe.network)
        other = await self._beside(probe, beside)
        tried = words(neighbour.address, other.address if other else None)
        prober = await self._start(probe, probe.name, probe.network, ("probe", *tried))
        while not await self._client.wait(prober):
            pass
        told = bytearray()
        await self._client.read_log(prober, lambda _, data: told.extend(data), follow=False)
        for each in filter(None, (neighbour, other)):  # nobody being there would be silent, too
            if not _runs(await self._client.inspect(each.container)):
                raise EngineError(f"the neighbour in a probe of {probe.network} ended before the probe did")
        return told.decode(errors="replace")

    async def _neighbour(self, probe: _Probe, name: str, network: str) -> _Neighbour:
        container = await self._start(probe, name, network, ())
        return _Neighbour(container, _address_on(network, await self._client.inspect(container)))

    async def _beside(self, probe: _Probe, network: str | None) -> _Neighbour | None:
        """A network on which nothing can be started has a probe of its own, which says so; this one goes on."""
        if network is None:
            return None
        try:
            return await self._neighbour(probe, f"{probe.name}-beside", network)
        except EngineGone:
            raise
        except (EngineError, StartError) as error:
            _LOG.warning("a network has no container to be probed", extra={"network": network, "problem": str(error)})
            return None

    async def _start(self, probe: _Probe, name: str, network: str, words: Sequence[str]) -> str:
        """A container that runs, and is removed with the probe; its id."""
        self._names.add(name)
        body = probe_body(probe.image, network, words, self._site)
        creation = probe.made[name] = asyncio.create_task(self._client.create(name, body))
        container = await asyncio.shield(creation)
        self._census.appeared(name)
        await self._client.start(container)
        return container

    async def _remove(self, probe: _Probe, patience: timedelta) -> None:
        """Remove its containers, all at once."""
        try:
            async with asyncio.timeout(patience.total_seconds()), asyncio.TaskGroup() as tasks:
                for name, creation in probe.made.items():
                    tasks.create_task(self._remove_one(name, creation))
        except TimeoutError:
            return
        finally:
            for creation in probe.made.values():
                creation.cancel()
            self._names.difference_update(probe.made)

    async def _remove_one(self, name: str, creation: asyncio.Task[str]) -> None:
        """Only an engine that has answered is sure to have made the container, or none."""
        await asyncio.wait({creation})
        await self._removal.remove(name)


def _runs(said: Mapping[str, Any] | None) -> bool:
    return bool(((said or {}).get("State") or {}).get("Running"))


def _address_on(network: str, said: Mapping[str, Any] | None) -> IPv4Address:
    try:
        return IPv4Address((said or {})["NetworkSettings"]["Networks"][network]["IPAddress"])
    except (KeyError, TypeError, AddressValueError) as error:
        raise EngineError(f"the engine does not tell a container's address on {network}") from error

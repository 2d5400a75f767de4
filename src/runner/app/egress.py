"""Which jobs may reach out now: those on a network that was made for them, and proven to be shut where it has to be."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address
from typing import NoReturn
from urllib.parse import urlsplit

from runner.adapters.docker.config import Access
from runner.adapters.docker.images import Images
from runner.adapters.docker.probe import Probes
from runner.adapters.network.host import outward_address, outward_address_6
from runner.adapters.network.proof import IMAGE, Proof, Target, judge, targets_on
from runner.adapters.network.record import Made, Record, RecordFile
from runner.app.network import APPLY, difference_of, network_for
from runner.errors import DeferredError, EngineError, HostError, StartError
from runner.job import Json, Stack
from runner.settings import Settings

log = logging.getLogger(__name__)

_EVERY = timedelta(seconds=60)
_AGAIN = timedelta(seconds=15)
"""How soon a network is probed again that is not proven, or whose last probe proved nothing."""
_LOOK = timedelta(seconds=2)
"""How soon it is noticed that networks were applied."""
_MISSES = 3
"""How many probes in a row may fail to prove what was proven before, as long as they find nothing open."""
_AT_ONCE = 2
"""How many networks are probed at once: each takes three containers, which no budget counts."""
_NOT_YET = "it was not probed yet"


class Gate:
    """Says who may reach out, by the record of what was applied and by what the probes found."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = RecordFile(settings.worker.state_dir)
        self._problems: dict[str, str | None] = {}
        self._stamp: int | None = None
        self.record: Record | None = None
        self.reread()

    def reread(self) -> bool:
        """Read the record again; whether it was written since. What it says now and did not before is unproven."""
        stamp = self._file.written()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            record = self._file.read()
        except HostError as error:
            log.error("the record of the networks is broken", extra={"fault": str(error)})  # noqa: TRY400 - told whole
            record = None
        if record != self.record:
            self.record = record
            self.forget()
        return True

    def forget(self) -> None:
        """Nothing is proven any more."""
        self._problems = {made.name: _NOT_YET for made in self.networks}

    @property
    def networks(self) -> tuple[Made, ...]:
        """Those that were made."""
        return self.record.networks if self.record else ()

    def found(self, network: str, problem: str | None) -> None:
        """What a probe found on a network; None if it is proven."""
        if network in self._problems:
            self._problems[network] = problem

    def proven(self, network: str) -> bool:
        """Whether that network is."""
        return network in self._problems and self._problems[network] is None

    def problem(self) -> str | None:
        """Why some or all jobs cannot reach out; None when all can."""
        if self.record is None:
            return f"this worker's egress network is not set up; {APPLY}"
        if difference := difference_of(self.record, self._settings):
            return f"this worker's egress network: {difference}; {APPLY}"
        unproven = [f"{name}: {problem}" for name, problem in self._problems.items() if problem is not None]
        return f"this worker's egress network is not proven: {'; '.join(unproven)}; {APPLY}" if unproven else None

    def refusal(self, stack: Stack) -> str | None:
        """Why the jobs of a stack cannot reach out now; None when they can."""
        try:
            self.access(stack)
        except DeferredError as error:
            return error.reason
        return None

    def network(self, stack: Stack) -> Made | None:
        """That of the jobs of a stack; None if it was not made."""
        if self.record is None:
            return None
        return network_for(self.record, self._settings.network.bridge, stack.name, stack.allow)

    def access(self, stack: Stack) -> Access:
        """How the jobs of a stack reach out. Raises `DeferredError` while they may not."""
        record = self.record
        if record is None or difference_of(record, self._settings):
            raise DeferredError(str(self.problem()))
        made = self.network(stack)
        if made is None:
            raise DeferredError(f'the stack "{stack.name}" has no network on this worker for its list; {APPLY}')
        problem = self._problems.get(made.name, _NOT_YET)
        if problem is not None:
            raise DeferredError(f"this worker's egress network is not proven: {made.name}: {problem}; {APPLY}")
        servers = tuple(str(address) for address in record.nameservers)
        return Access(network=made.name, nameservers=servers, resolv_conf=self._file.resolv_conf)

    def status(self) -> dict[str, Json]:
        """For the status page and the answer to `ping`."""
        return {"proven": self.record is not None and self.problem() is None, "problem": self.problem()}


@dataclass(slots=True, kw_only=True)
class Watch:
    """Probes the networks: at the start, when they were applied, when the engine is back, and every minute."""

    settings: Settings
    gate: Gate
    probes: Probes
    images: Images
    tell: Callable[[bool], None] = lambda _: None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _misses: dict[str, int] = field(default_factory=dict)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _looks: int = -1

    def engine_returned(self) -> None:
        """Whatever was proven has to be proven again."""
        self.gate.forget()
        self._woken.set()

    async def run(self) -> NoReturn:
        """Probe until cancelled."""
        while True:
            self._woken.clear()
            await self.look()
            await self._pause()

    async def look(self) -> None:
        """Probe every network once, a few at a time."""
        self.gate.reread()
        self._looks += 1
        async with asyncio.TaskGroup() as tasks:
            for made in self.gate.networks:
                tasks.create_task(self._look_at(made))
        self.tell(self.gate.record is not None and self.gate.problem() is None)

    async def look_for(self, stack: Stack) -> None:
        """Probe the network of a stack's jobs once."""
        self.gate.reread()
        if (made := self.gate.network(stack)) is not None:
            await self._look_at(made)

    async def _pause(self) -> None:
        """Until the next probe is due, or there is a reason for one."""
        networks = self.gate.networks
        sure = all(self.gate.proven(made.name) and not self._misses.get(made.name) for made in networks)
        left = _EVERY if sure else _AGAIN
        while left > timedelta(0) or not networks:
            try:
                async with asyncio.timeout(_LOOK.total_seconds()):
                    await self._woken.wait()
                    return
            except TimeoutError:
                left -= _LOOK
            if self.gate.reread():
                return

    async def _look_at(self, made: Made) -> None:
        async with self._places:
            record = self.gate.record
            if record is None or self._woken.is_set():
                return  # all are probed anew
            try:
                proof = await self._probe(made, record)
            except (EngineError, StartError) as error:
                proof = Proof(unproven=(str(error),))  # also one that does not answer: it may do so to everybody else
        if record is self.gate.record and not self._woken.is_set():  # else the probe is of another time
            self._conclude(made.name, proof)

    async def _probe(self, made: Made, record: Record) -> Proof:
        if await self.images.inspect(IMAGE) is None:
            await self.images.make_empty(*IMAGE.split(":"))
        url = urlsplit(self.settings.engine.url)
        targets: list[Target] = []

        def words(neighbour: IPv4Address, beside: IPv4Address | None) -> list[str]:
            found = targets_on(
                made.segment,
                record,
                neighbour=neighbour,
                beside=beside,
                host=outward_address(),
                host_6=outward_address_6(),
                engine_port=None if url.scheme == "unix" else url.port,
            )
            targets.extend(found)
            return [target.word for target in targets]

        return judge(targets, await self.probes.run(made.name, IMAGE, words, self._beside(made, record)))

    def _beside(self, made: Made, record: Record) -> str | None:
        """The network whose containers are tried from this one: each time another, so that all are in the end."""
        names = [each.name for each in record.networks]
        place = names.index(made.name)
        others = names[place + 1 :] + names[:place]
        return others[self._looks % len(others)] if others else None

    def _conclude(self, network: str, proof: Proof) -> None:
        was_proven = self.gate.proven(network)
        misses = self._misses[network] = 0 if proof.holds else self._misses.get(network, 0) + 1
        if was_proven and not proof.open and 0 < misses < _MISSES:
            log.warning("a probe proved nothing", extra={"network": network, "why": str(proof)})
            return
        self.gate.found(network, None if proof.holds else str(proof))
        if was_proven and not proof.holds:
            log.error("egress network is not proven any more", extra={"network": network, "why": str(proof)})
        elif not was_proven and proof.holds:
            log.info("egress network proven", extra={"network": network})

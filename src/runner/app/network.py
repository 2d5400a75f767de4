"""The networks of jobs that reach out: made, verified and removed, for an operator."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from runner.adapters.network import host, nft
from runner.adapters.network.bridges import Bridge, Bridges, open_bridges
from runner.adapters.network.lock import NetworkLock
from runner.adapters.network.proof import CONTAINER, IMAGE
from runner.adapters.network.record import Made, Record, RecordFile
from runner.adapters.network.rules import Isolation
from runner.adapters.network.segments import DEFAULT_RANGE, Wanted, free_subnet, network_of, table_name, wanted_networks
from runner.app.finding import Finding, Remedy
from runner.destination import PRIVATE, Destination
from runner.errors import ConfigError, HostError
from runner.settings import Settings
from runner.stacks.lists import allow_lists, reaching

APPLY = "run: runner network apply"

_PROBE_MOST = 30
"""Seconds that a probe is waited for."""
_NO_NAME_SERVERS = (
    "network.nameservers: this machine's resolv.conf names none that a job could reach; write for example "
    '["192.0.2.53"], the addresses of those that jobs may ask'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What stands now. `did` is what had to be done for it, a line each."""

    did: tuple[str, ...]
    record: Record


async def apply_network(settings: Settings) -> Applied:
    """Make what is missing, replace what differs, remove what nobody wants any more. Safe to do again at any time.

    Raises `ConfigError` for settings and stack files, `HostError` for this machine, `EngineError` for the engine.
    """
    host.require_root()
    async with NetworkLock(settings.worker.state_dir).hold():
        return await _apply(settings)


async def keep_network(settings: Settings) -> Applied | None:
    """Do so again where it was done and not removed since, which is the timer's part; None elsewhere."""
    host.require_root()
    if RecordFile(settings.worker.state_dir).written() is None:
        return None
    async with NetworkLock(settings.worker.state_dir).hold():
        removed = RecordFile(settings.worker.state_dir).written() is None
        return None if removed else await _apply(settings)


async def _apply(settings: Settings) -> Applied:
    file = RecordFile(settings.worker.state_dir)
    # First of all: jobs that run are held back again, whatever is wrong with stack files, engine or networks.
    did = _bring_back(file)
    wanted = wanted_networks(settings.network.bridge, allow_lists(settings.stacks.dir))
    async with open_bridges(settings.engine.url) as bridges:
        work = _Apply(settings=settings, wanted=wanted, bridges=bridges, file=file, did=did)
        record = await work.run()
    return Applied(did=tuple(work.did), record=record)


def _bring_back(file: RecordFile) -> list[str]:
    """Load the rules that were applied, if they are gone or changed; what was done.

    What keeps it from that ends nothing: what comes next makes a record and rules that this kernel takes, or says why.
    """
    try:
        record = file.read()
        return [f"loaded the rules of {record.table}"] if record is not None and _load(record) else []
    except HostError as error:
        return [f"went on without the rules of before: {error}"]


def _load(record: Record) -> bool:
    """Have the rules of a record loaded; whether they were not."""
    script, there = record.rules.script(), nft.loaded(record.table)
    if there is not None and there == nft.would_load(script, record.table):
        return False
    nft.load(script)
    return True


@dataclass(slots=True, kw_only=True)
class _Apply:
    """One run of `apply`. The rules stand before the networks that they are for, and outlive them."""

    settings: Settings
    wanted: tuple[Wanted, ...]
    bridges: Bridges
    file: RecordFile
    did: list[str] = field(default_factory=list)

    async def run(self) -> Record:
        nameservers, before = name_servers(self.settings), self._before()
        there = {bridge.name: bridge for bridge in await self.bridges.all()}
        self._refuse_foreign(there)
        kept = {want.name: there[want.name] for want in self.wanted if self._fits(want, there.get(want.name))}
        shut = [made for bridge in self._ours(there) if bridge.name not in kept and (made := await self._clear(bridge))]
        others = [bridge for bridge in there.values() if bridge not in self._ours(there)]
        taken = [subnet for bridge in (*others, *kept.values()) for subnet in bridge.subnets]
        taken += [made.segment.subnet for made in shut]
        record = Record(
            table=table_name(self.settings.network.bridge),
            networks=(*self._placed(kept, taken), *shut),
            nameservers=nameservers,
            private=self.settings.network.private,
            connections=self.settings.network.connections,
            isolation=Isolation.BRIDGE if nft.knows_bridge_names() else Isolation.ADDRESS,
        )
        self._switch_on(record)
        if _load(record):
            self.did.append(f"loaded the rules of {record.table}")
        for made in record.networks[: len(self.wanted)]:
            if made.name not in kept:
                await self._make(made)
        if self.did or record != before:
            self.file.write(record)
        if before is not None and before.table != record.table:
            nft.delete(before.table)
        return record

    def _before(self) -> Record | None:
        """What an earlier run made; a record that cannot be read is replaced."""
        try:
            return self.file.read()
        except HostError:
            return None

    def _ours(self, there: Mapping[str, Bridge]) -> list[Bridge]:
        return [bridge for bridge in there.values() if bridge.worker == self.settings.worker.name]

    def _refuse_foreign(self, there: Mapping[str, Bridge]) -> None:
        for want in self.wanted:
            found = there.get(want.name)
            if found is not None and found.worker != self.settings.worker.name:
                whose = f"that of the worker {found.worker}" if found.worker else "not ours"
                raise ConfigError(f"network.bridge: the engine has a network {want.name}, {whose}; choose another name")
            if found is None and host.has_interface(want.bridge):
                raise ConfigError(
                    f"network.bridge: this machine has an interface {want.bridge} that is not the engine's; "
                    "delete it, or choose another name"
                )

    def _fits(self, want: Wanted, found: Bridge | None) -> bool:
        if found is None or found.fault or found.bridge != want.bridge or found.subnet is None:
            return False
        within = self.settings.network.subnet
        return within is None or found.subnet.subnet_of(within)

    async def _clear(self, bridge: Bridge) -> Made | None:
        """Remove a network that is not as it should be. One that is in use is shut instead, if nobody wants it."""
        found = await _in_use(self.bridges, bridge.name)
        if found is None:
            return None
        if not found.attached:
            await self.bridges.remove(bridge.name)
            self.did.append(f"removed the network {bridge.name}")
            return None
        users = f"{bridge.name} is still used by {', '.join(found.attached)}"
        if found.subnet is None or any(want.name == bridge.name for want in self.wanted):
            raise HostError(f"the network {users} and has to be made again; let that end, and do this again")
        self.did.append(f"shut the network {bridge.name}: nobody wants it any more, but {users}")
        return Made(name=bridge.name, segment=Wanted(name=bridge.name, bridge=bridge.bridge, allow=()).on(found.subnet))

    def _placed(self, kept: Mapping[str, Bridge], taken: list[IPv4Network]) -> Iterator[Made]:
        """Each network that is wanted, with the subnet that it has or gets. The operator's range is not doubted."""
        within = self.settings.network.subnet
        taken = [*taken, *(() if within else (*host.routed(), *self.settings.network.private))]
        for want in self.wanted:
            subnet = kept[want.name].subnet if want.name in kept else free_subnet(within or DEFAULT_RANGE, taken)
            if subnet is None:
                raise ConfigError(
                    f"network.subnet: {within or DEFAULT_RANGE} has no room for the network {want.name}; "
                    f"each of the {len(self.wanted)} takes a /22 of it, or all of a smaller one"
                )
            taken.append(subnet)
            yield Made(name=want.name, segment=want.on(subnet))

    def _switch_on(self, record: Record) -> None:
        if host.forward():
            self.did.append("switched on net.ipv4.ip_forward")
        if record.isolation is Isolation.ADDRESS and host.see_bridged():
            self.did.append("switched on net.bridge.bridge-nf-call-iptables and -ip6tables")

    async def _make(self, made: Made) -> None:
        await self.bridges.make(made.name, made.segment.bridge, made.segment.subnet, self.settings.worker.name)
        self.did.append(f"made the network {made.name}, {made.segment.subnet}")


async def check_network(settings: Settings) -> AsyncIterator[Finding]:
    """Whether everything is as `apply` would make it, changing nothing. Raises as `apply_network` does."""
    host.require_root()
    record = RecordFile(settings.worker.state_dir).read()
    if record is None:
        yield Finding(name="egress", detail=f"is not set up; {APPLY}", remedy=Remedy.CONFIG)
        return
    lists = allow_lists(settings.stacks.dir)
    difference = difference_of(record, settings, lists)
    yield (
        Finding(name="settings", detail="as they were applied")
        if difference is None
        else _mend("settings", difference, Remedy.CONFIG)
    )
    async with open_bridges(settings.engine.url) as bridges:
        for made in record.networks:
            yield _network(made, await bridges.inspect(made.name))
    yield _rules(record)
    yield _switch("forwarding", "net.ipv4.ip_forward", on=host.forwards())
    if record.isolation is Isolation.ADDRESS:
        yield _switch("bridged frames", "net.bridge.bridge-nf-call-iptables, -ip6tables", on=host.sees_bridged())
    for finding in _useless(lists, settings.network.private):
        yield finding


def look_at_egress(settings: Settings) -> Finding:
    """What whoever is not root can tell: whether what was applied is what settings and stacks ask for."""
    folder = settings.stacks.dir
    try:
        record = RecordFile(settings.worker.state_dir).read()
        wanting = reaching(folder)
        if record is None and not wanting:
            return Finding(name="egress", detail=f"is not set up; for jobs that reach out, {APPLY}")
        if record is None:
            return _mend("egress", f"is not set up, but asked for by {', '.join(wanting)}", Remedy.CONFIG)
        if difference := difference_of(record, settings, allow_lists(folder)):
            return _mend("egress", difference, Remedy.CONFIG)
    except HostError as error:
        return Finding(name="egress", detail=str(error), remedy=Remedy.MACHINE)
    except ConfigError:
        return Finding(name="egress", detail="is not looked at: a stack's file has faults, which are told above")
    names = ", ".join(made.name for made in record.networks)
    return Finding(name="egress", detail=f"{names}; the daemon proves them, as root see runner network check")


async def remove_network(settings: Settings) -> tuple[str, ...]:
    """Remove all that `apply` made; what was removed, a line each.

    Raises `HostError` while a container is attached, and `EngineError`.
    """
    host.require_root()
    async with NetworkLock(settings.worker.state_dir).hold():
        return await _remove(settings)


async def _remove(settings: Settings) -> tuple[str, ...]:
    file, removed = RecordFile(settings.worker.state_dir), []
    async with open_bridges(settings.engine.url) as bridges:
        names = [bridge.name for bridge in await bridges.all() if bridge.worker == settings.worker.name]
        for name in names:
            found = await _in_use(bridges, name)
            if found is not None and found.attached:
                raise HostError(f"the network {name} is used by {', '.join(found.attached)}; let that end first")
        for name in names:
            await bridges.remove(name)
            removed.append(f"the network {name}")
        await bridges.forget_image(IMAGE)
    tables = {table_name(settings.network.bridge)}
    try:
        record = file.read()
        tables |= {record.table} if record else set()
    except HostError:
        removed.append("a record that could not be read")
    removed += [f"the rules of {table}" for table in sorted(tables) if nft.delete(table)]
    file.remove()
    return tuple(removed)


async def _in_use(bridges: Bridges, name: str) -> Bridge | None:
    """The network, once no probe is on it: the daemon's take some seconds."""
    for _ in range(_PROBE_MOST):
        found = await bridges.inspect(name)
        if found is None or not any(user.startswith(CONTAINER) for user in found.attached):
            return found
        await asyncio.sleep(1)
    return await bridges.inspect(name)


def name_servers(settings: Settings) -> tuple[IPv4Address, ...]:
    """Those of the settings, or else of this machine. Raises `ConfigError` when there are none."""
    found = settings.network.nameservers or host.name_servers()
    if not found:
        raise ConfigError(_NO_NAME_SERVERS)
    return found


def difference_of(
    record: Record, settings: Settings, lists: Mapping[str, tuple[Destination, ...]] | None = None
) -> str | None:
    """What has changed in settings or stacks since the record was made; None if nothing has. Pure but for `lists`."""
    asked, subnet = settings.network, settings.network.subnet
    changed = [
        name
        for name, same in (
            ("bridge", record.table == table_name(asked.bridge)),
            ("subnet", subnet is None or all(_within(made, subnet) for made in record.networks)),
            ("private", record.private == asked.private),
            ("nameservers", asked.nameservers in (None, record.nameservers)),
            ("connections", record.connections == asked.connections),
        )
        if not same
    ]
    if changed:
        return f"changed since they were applied: {', '.join(f'network.{name}' for name in changed)}"
    if lists is None:
        return None
    wanted = wanted_networks(asked.bridge, lists)
    other = {want.name for want in wanted if not _stands(record, want)}
    other |= {made.name for made in record.networks} - {want.name for want in wanted}
    return f"not as the stacks' lists say: {', '.join(sorted(other))}" if other else None


def network_for(record: Record, bridge: str, stack: str, allow: tuple[Destination, ...]) -> Made | None:
    """The network that was made for a stack's jobs; None unless it lets them go exactly where the stack says."""
    want = network_of(bridge, stack, allow)
    return record.network(want.name) if _stands(record, want) else None


def _stands(record: Record, want: Wanted) -> bool:
    made = record.network(want.name)
    return made is not None and (made.segment.bridge, made.segment.allow) == (want.bridge, want.allow)


def _within(made: Made, subnet: IPv4Network) -> bool:
    return made.segment.subnet.subnet_of(subnet) or made.segment.allow == ()


def _network(made: Made, found: Bridge | None) -> Finding:
    name, segment = f"network {made.name}", made.segment
    if found is None:
        return _mend(name, "the engine does not have it", Remedy.SERVICE)
    if found.fault or (found.bridge, found.subnet) != (segment.bridge, segment.subnet):
        return _mend(name, found.fault or "it is another one than was made", Remedy.SERVICE)
    return Finding(name=name, detail=f"{segment.subnet} on {segment.bridge}, {len(found.attached)} containers")


def _rules(record: Record) -> Finding:
    there = nft.loaded(record.table)
    if there is None:
        return _mend("rules", f"the tables {record.table} are not loaded: jobs on these networks are not held back")
    if there != nft.would_load(record.rules.script(), record.table):
        return _mend("rules", f"the tables {record.table} were changed by somebody else")
    return Finding(name="rules", detail=f"{record.table}, frames told by {record.isolation}")


def _switch(name: str, setting: str, *, on: bool) -> Finding:
    return Finding(name=name, detail=f"{setting} is on") if on else _mend(name, f"{setting} is off")


def _useless(lists: Mapping[str, tuple[Destination, ...]], opened: tuple[IPv4Network, ...]) -> Iterator[Finding]:
    for stack, allow in lists.items():
        for each in allow:
            private = any(each.range.subnet_of(shut) for shut in PRIVATE)
            if private and not any(each.range.subnet_of(place) for place in opened):
                detail = f"allow: {each} is private, and network.private does not open it; add it there, or take it out"
                yield Finding(name=f"stack {stack}", detail=detail, remedy=Remedy.CONFIG)


def _mend(name: str, what: str, remedy: Remedy = Remedy.MACHINE) -> Finding:
    return Finding(name=name, detail=f"{what}; {APPLY}", remedy=remedy)

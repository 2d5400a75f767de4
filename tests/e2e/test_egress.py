"""Jobs that reach out, on a machine of the test's own: its engine, its packet filter, and an internet behind it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from secrets import token_hex
from socket import SOCK_DGRAM
from typing import Any, cast

import aiodocker
import pytest
from tests.e2e.daemon import Daemon, Site, eventually, open_site
from tests.e2e.submitter import STACK, Submitter, open_submitter
from tests.egress_site import FOREIGN, LISTED, METADATA, NAMES, OUTSIDE, PRIVATE, PUBLIC, Machine, open_machine
from tests.netns import entered, path_of, socket_in
from tests.services import Endpoint

from runner.adapters.network.record import Record, RecordFile
from runner.adapters.network.segments import table_name
from runner.app.finding import Finding, Remedy
from runner.app.network import Applied, apply_network, check_network, look_at_egress, remove_network
from runner.errors import ConfigError, EngineGone, HostError
from runner.settings import Settings, load_settings

pytestmark = [pytest.mark.engine, pytest.mark.broker]

WIDE, NARROW = "runner0", "runner0-listed"
_OTHERS = ("jobs0", "jobs0-listed")
"""Networks of the worker whose jobs run, beside those that the other tests make and remove."""
_TRY = 'for each; do [ "$(nc -w 4 "${each%:*}" "${each#*:}" </dev/null)" = hello ] && echo "$each"; done; true'
"""Tells which of some addresses (`host:port`) says hello."""
_PLAIN = {"network__nameservers": f'["{NAMES}"]'}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Whoever runs `runner network` on the machine, for one worker."""

    machine: Machine
    site: Site
    plain: Mapping[str, str]

    async def command(self, *words: str, **settings: str) -> Said:
        """A command on the machine."""
        command = ("nsenter", f"--net={path_of(self.machine.host)}", sys.executable, "-m", "runner", *words)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.site.environment({**self.plain, **settings}),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Said(code=process.returncode or 0, out=out.decode(), err=err.decode())

    def settings(self, **settings: str) -> Settings:
        return load_settings(self.site.environment({**self.plain, **settings}))

    async def apply(self, **settings: str) -> Applied:
        with entered(self.machine.host):
            return await apply_network(self.settings(**settings))

    async def check(self, **settings: str) -> dict[str, Finding]:
        with entered(self.machine.host):
            return {finding.name: finding async for finding in check_network(self.settings(**settings))}

    async def remove(self, **settings: str) -> tuple[str, ...]:
        with entered(self.machine.host):
            return await remove_network(self.settings(**settings))

    def lose_rules(self, table: str) -> None:
        """What `nft flush ruleset` does to us; the engine's own chains stay."""
        for family in ("inet", "bridge"):
            self.machine.run("nft", "delete", "table", family, table)

    async def left(self) -> tuple[set[str], set[str], list[str]]:
        """The engine's networks, the tables and the files that are ours."""
        async with aiodocker.Docker(url=self.site.engine) as docker:
            networks = {network["Name"] for network in await docker.networks.list()}
        name = table_name(self.plain.get("network__bridge", "runner0"))
        tables = {line for line in self.machine.run("nft", "list", "tables").splitlines() if name in line}
        return (
            {name for name in networks if name not in ("host", "none", *_OTHERS)},
            tables,
            [path.name for path in self.site.state_dir.glob("*.*") if path.name in ("egress.json", "resolv.conf")],
        )


@pytest.fixture(scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    async with open_machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A daemon whose jobs reach out, an operator, and a submitter."""

    operator: Operator
    daemon: Daemon
    submitter: Submitter

    async def tried(self, *addresses: str, stack: str = "reaching", **fields: Any) -> list[str]:
        """Which of the addresses (`host:port`) a job reaches."""
        job = await self.submitter.run(["sh", "-c", _TRY, "sh", *addresses], stack=stack, **fields)
        job.ended("succeeded", exit_code=0)
        return job.text().split()


@asynccontextmanager
async def serving(namespace: str, address: str, port: int) -> AsyncIterator[None]:
    """Somebody in a namespace who says hello."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    listening = socket_in(namespace)
    listening.bind((address, port))
    async with await asyncio.start_server(greet, sock=listening):
        yield


class NameServer(asyncio.DatagramProtocol):
    """Knows one address, whatever it is asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(0, 12) + 5
        if data[end - 4 : end - 2] == b"\0\1":  # an address
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + IPv4Address(PUBLIC).packed
            head = data[:2] + b"\x81\x80" + data[4:6] + b"\0\1\0\0\0\0"
            self._transport.sendto(head + data[12:end] + answer, addr)
        else:
            self._transport.sendto(data[:2] + b"\x81\x80" + data[4:6] + bytes(6) + data[12:end], addr)


@asynccontextmanager
async def naming(namespace: str, address: str) -> AsyncIterator[None]:
    listening = socket_in(namespace, kind=SOCK_DGRAM)
    listening.setblocking(False)
    listening.bind((address, 53))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(NameServer, sock=listening)
    try:
        yield
    finally:
        transport.close()


_OURS = {**_PLAIN, "network__bridge": "jobs0"}


@pytest.fixture(scope="module")
async def reach(broker: Endpoint, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reach]:
    """A worker on the machine, with networks; at the end nothing is left of them."""
    folder, ns = tmp_path_factory.mktemp("reach"), f"e{token_hex(5)}"
    async with AsyncExitStack() as stack:
        for address, port in ((PUBLIC, 80), (LISTED, 80), (LISTED, 81), (METADATA, 80), (PRIVATE, 80), (FOREIGN, 53)):
            await stack.enter_async_context(serving(machine.out, address, port))
        for address in (NAMES, FOREIGN):
            await stack.enter_async_context(naming(machine.out, address))
        await stack.enter_async_context(serving(machine.host, "0.0.0.0", 8080))
        site = await stack.enter_async_context(
            open_site(broker=broker.url, engine=machine.engine.url, image=machine.image, folder=folder, ns=ns)
        )
        site.write_stack("reaching", 'network = "egress"\n')
        site.write_stack("listed", f'network = "egress"\nallow = ["{LISTED}:80"]\n')
        async with aiodocker.Docker(url=site.engine) as docker:
            for name in ("reaching", "listed"):
                await docker.images.tag(machine.image, repo=f"runner/{name}", tag="current")
        operator = Operator(machine=machine, site=site, plain=_OURS)
        await operator.apply()
        async with site.daemon(**_OURS) as daemon:
            await daemon.ready()
            await eventually(partial(is_proven, daemon), "the networks are proven")
            async with open_submitter(site.broker, site.ns) as submitter:
                yield Reach(operator=operator, daemon=daemon, submitter=submitter)
            daemon.terminate()
            assert await daemon.exited() == 0
            assert await site.containers() == []
            assert all("egress network is not proven any more" in line for line in daemon.faults()), daemon.faults()
        await operator.remove()
        assert await operator.left() == (set(), set(), [])


@pytest.fixture
async def operator(machine: Machine, tmp_path: Path, namespace: str) -> AsyncIterator[Operator]:
    """An operator with one stack that has a list; nothing is left afterwards, whatever the test did."""
    site = Site(broker="amqp://127.0.0.1:1/", engine=machine.engine.url, folder=tmp_path, ns=namespace)
    site.state_dir.mkdir()
    site.write_stack("listed", f'network = "egress"\nallow = ["{LISTED}:80"]\n')
    operator = Operator(machine=machine, site=site, plain=_PLAIN)
    yield operator
    await operator.remove()
    assert await operator.left() == (set(), set(), [])


def good(findings: dict[str, Finding]) -> bool:
    return bool(findings) and all(finding.ok for finding in findings.values())


async def test_networks_and_rules_are_made_once(operator: Operator) -> None:
    made = await operator.apply()
    again = await operator.apply()

    assert [network.name for network in made.record.networks] == [WIDE, NARROW]
    assert len(made.did) == 3
    assert again == Applied(did=(), record=made.record)
    assert good(await operator.check())
    assert look_at_egress(operator.settings()).ok


async def test_the_commands_tell_what_they_did_and_what_is_to_do(operator: Operator) -> None:
    unset = (await operator.check())["egress"]
    asked_for = look_at_egress(operator.settings())
    made = await operator.command("network", "apply", "--json")
    checked = await operator.command("network", "check", "--json")

    assert asked_for.detail == "is not set up, but asked for by listed; run: runner network apply"
    assert (unset.detail, unset.remedy) == ("is not set up; run: runner network apply", Remedy.CONFIG)
    assert [network["name"] for network in json.loads(made.out)["networks"]] == [WIDE, NARROW]
    assert checked.code == made.code == 0
    assert all(json.loads(line)["ok"] for line in checked.out.splitlines())


async def test_rules_that_vanished_or_were_changed_are_told_and_made_again(operator: Operator) -> None:
    await operator.apply()
    operator.machine.run("nft", "insert", "rule", "inet", "runner_runner0", "out", "accept")
    changed = await operator.check()
    operator.lose_rules("runner_runner0")
    lost = await operator.check()

    assert changed["rules"].remedy is lost["rules"].remedy is Remedy.MACHINE
    assert "changed by somebody else" in changed["rules"].detail
    assert "not loaded" in lost["rules"].detail
    assert (await operator.apply()).did == ("loaded the rules of runner_runner0",)
    assert good(await operator.check())


async def test_a_changed_setting_or_list_counts_once_it_is_applied(operator: Operator) -> None:
    await operator.apply()
    operator.site.write_stack("more", 'allow = ["192.168.7.0/24"]\n')

    assert "runner0-more" in (await operator.check())["settings"].detail
    assert "network.connections" in (await operator.check(network__connections="70"))["settings"].detail
    assert "made the network runner0-more" in " ".join((await operator.apply()).did)
    findings = await operator.check()
    assert findings["settings"].ok
    assert "network.private does not open it" in findings["stack more"].detail
    (operator.site.stacks / "more" / "stack.toml").unlink()
    assert (await operator.apply()).did[0] == "removed the network runner0-more"


async def test_a_subnet_of_the_operators_counts(operator: Operator) -> None:
    await operator.apply()
    moved = await operator.apply(network__subnet="10.99.0.0/20")

    assert [str(network.segment.subnet) for network in moved.record.networks] == ["10.99.0.0/22", "10.99.4.0/22"]
    with pytest.raises(ConfigError, match=r"network.subnet: 10.99.0.0/24 has no room for the network runner0-listed"):
        await operator.apply(network__subnet="10.99.0.0/24")


async def test_what_is_in_use_is_neither_removed_nor_left_open(operator: Operator) -> None:
    await operator.apply()
    async with aiodocker.Docker(url=operator.site.engine) as docker:
        body: dict[str, Any] = {
            "Image": "runner-tests/busybox",
            "Cmd": ["sleep", "60"],
            "HostConfig": {"NetworkMode": NARROW},
        }
        container = await docker.containers.run(body, name=f"user-{operator.site.ns}")
        try:
            with pytest.raises(HostError, match=f"the network {NARROW} is used by user-{operator.site.ns}"):
                await operator.remove()
            (operator.site.stacks / "listed" / "stack.toml").unlink()
            did = (await operator.apply()).did
            rules = operator.machine.run("nft", "list", "table", "inet", "runner_runner0")
        finally:
            await container.delete(force=True)

    assert "nobody wants it any more" in did[0]
    assert LISTED not in rules
    assert (await operator.apply()).did[0] == f"removed the network {NARROW}"


async def test_a_network_of_somebody_elses_is_left_alone(operator: Operator) -> None:
    await operator.apply()
    folder = operator.site.folder / "2"
    other = replace(operator, site=replace(operator.site, ns=f"{operator.site.ns}-2", folder=folder))

    with pytest.raises(ConfigError, match=f"has a network {WIDE}, that of the worker {operator.site.ns}"):
        await other.apply()
    assert await other.remove(network__bridge="other0") == ()
    assert good(await operator.check())


async def test_without_an_engine_it_says_so(operator: Operator) -> None:
    with pytest.raises(EngineGone, match="no connection to the engine"):
        await operator.apply(engine__url="unix:///nowhere/docker.sock")


async def is_proven(daemon: Daemon) -> bool:
    return (await daemon.metrics())["runner_egress_proven"] == 1


async def test_a_job_reaches_what_is_public_and_nothing_else(reach: Reach) -> None:
    gateway = "198.18.0.1:8080"
    shut = (gateway, f"{OUTSIDE}:8080", f"{METADATA}:80", f"{PRIVATE}:80", f"{FOREIGN}:53")

    assert await reach.tried(f"{PUBLIC}:80", f"{LISTED}:81", "a.example:80", *shut) == [
        f"{PUBLIC}:80",
        f"{LISTED}:81",
        "a.example:80",
    ]


async def test_a_job_that_runs_without_a_broker_reaches_the_same(reach: Reach) -> None:
    words = ("exec", "--stack", "reaching", "--", "sh", "-c", _TRY, "sh", f"{PUBLIC}:80", f"{PRIVATE}:80")
    said = await reach.operator.command(*words)
    assert (said.code, said.out) == (0, f"{PUBLIC}:80\n"), said.err


async def test_jobs_do_not_reach_each_other(reach: Reach) -> None:
    script = "hostname -i; while :; do echo hello | nc -l -p 8080; done"
    neighbour = await reach.submitter.submit(["sh", "-c", script], stack="reaching")
    await neighbour.wrote("198.18.")
    address = neighbour.text().split()[0]
    try:
        found = await reach.tried(f"{address}:8080", f"{PUBLIC}:80")
        listed = await reach.tried(f"{address}:8080", f"{LISTED}:80", stack="listed")
    finally:
        await reach.submitter.cancel(neighbour)
        await neighbour.finished()

    assert found == [f"{PUBLIC}:80"]
    assert listed == [f"{LISTED}:80"]


async def test_a_job_of_a_stack_with_a_list_reaches_that_alone(reach: Reach) -> None:
    tried = (f"{LISTED}:80", f"{LISTED}:81", f"{PUBLIC}:80", "198.18.0.1:8080", f"{METADATA}:80")

    assert await reach.tried(*tried, stack="listed") == [f"{LISTED}:80"]


async def test_a_job_chooses_for_itself(reach: Reach) -> None:
    assert await reach.tried(f"{PUBLIC}:80", network="none") == []
    assert await reach.tried(f"{PUBLIC}:80", network="egress", stack=STACK) == [f"{PUBLIC}:80"]


async def test_a_job_asks_the_name_servers_that_were_applied(reach: Reach) -> None:
    script = "cat /etc/resolv.conf; nslookup a.example 127.0.0.11; nslookup a.example " + FOREIGN
    job = await reach.submitter.run(["sh", "-c", script], stack="reaching", limits={"timeout": "60s"})

    assert job.text().startswith(f"nameserver {NAMES}\n")
    assert job.text().count(f"Address: {PUBLIC}") == 1


async def test_without_rules_no_job_reaches_out_until_they_are_back(reach: Reach) -> None:
    operator, daemon = reach.operator, reach.daemon
    operator.lose_rules("runner_jobs0")
    assert "not loaded" in (await operator.check())["rules"].detail
    os.utime(operator.site.state_dir / "egress.json")  # as if applied again: it is probed now and not in a minute

    async def is_noticed() -> bool:
        return not await is_proven(daemon)

    await eventually(is_noticed, "the daemon notices that the rules are gone")
    job = await reach.submitter.submit(["true"], stack="reaching")
    deferred = await job.event("deferred")
    await reach.submitter.cancel(job)
    unaffected = await reach.submitter.run(["true"])
    await operator.apply()
    await eventually(partial(is_proven, daemon), "the daemon notices that the rules are back")

    assert "this worker's egress network is not proven: jobs0: this host (198.18.0.1:9)" in deferred["reason"]
    assert "can be reached" in deferred["reason"]
    assert deferred["reason"].endswith("run: runner network apply")
    unaffected.ended("succeeded", exit_code=0)
    (await job.finished()).ended("cancelled")
    (await reach.submitter.run(["true"], stack="reaching")).ended("succeeded", exit_code=0)


@pytest.mark.parametrize("door", ["another network", "over IPv6"])
async def test_a_single_door_that_is_open_is_found(reach: Reach, door: str) -> None:
    operator, daemon, record = reach.operator, reach.daemon, reach.operator.site.state_dir / "egress.json"
    made = RecordFile(operator.site.state_dir).read()
    assert made is not None
    async with opened_between(operator, made) if door == "another network" else opened_to_ipv6(operator, made):
        os.utime(record)

        async def is_found() -> bool:
            return any(door in why for why in whys(daemon))

        async def is_shut() -> bool:
            return not await is_proven(daemon)

        await eventually(is_found, f"the probe finds the open door: {door}")
        await eventually(is_shut, "no job reaches out any more")
        for found in (why for why in whys(daemon) if door in why):
            assert found.endswith("can be reached")
            assert "," not in found.removesuffix(", can be reached").replace("link, over", "link over")  # nothing else
    await operator.apply()
    os.utime(record)
    await eventually(partial(is_proven, daemon), "the networks are proven again")


def whys(daemon: Daemon) -> list[str]:
    """Why networks were not proven any more."""
    return [json.loads(line).get("why", "") for line in daemon.faults()]


@asynccontextmanager
async def opened_between(operator: Operator, made: Record) -> AsyncIterator[None]:
    """Let packets pass between the networks of jobs, by our rules and by the engine's."""
    bridges = "{ " + ", ".join(f'"{each.segment.bridge}"' for each in made.networks) + " }"
    rule = f"insert rule inet {made.table} forward iifname {bridges} oifname {bridges} accept"
    operator.machine.run("nft", "-f", "-", stdin=rule)
    operator.machine.run("iptables", "-w", "-I", "FORWARD", "-j", "ACCEPT")
    try:
        yield
    finally:
        operator.machine.run("iptables", "-w", "-D", "FORWARD", "-j", "ACCEPT")


@asynccontextmanager
async def opened_to_ipv6(operator: Operator, made: Record) -> AsyncIterator[None]:
    """Make a network anew whose containers have IPv6 addresses; `apply` replaces it."""
    wide = next(each for each in made.networks if each.segment.allow is None)
    async with aiodocker.Docker(url=operator.site.engine) as docker:
        network = await docker.networks.get(wide.name)
        said = await network.show()

        async def is_gone() -> bool:
            with suppress(aiodocker.DockerError):  # a probe may be there just now
                await network.delete()
                return True
            return False

        await eventually(is_gone, "the network is removed")
        ipam = {**said["IPAM"], "Config": [*said["IPAM"]["Config"], {"Subnet": "fd00:7::/64"}]}
        body = {name: said[name] for name in ("Name", "Driver", "Options", "Labels")}
        await docker.networks.create({**body, "EnableIPv6": True, "IPAM": ipam})
    yield

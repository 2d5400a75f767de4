"""Jobs that reach out, on a machine of the test's own: its engine, its packet filter, and an internet behind it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from tests.e2e.daemon import Site
from tests.egress_site import LISTED, NAMES, Machine, open_machine
from tests.netns import entered, path_of
from tests.services import build_busybox

from runner.app.finding import Finding, Remedy
from runner.app.network import Applied, apply_network, check_network, remove_network
from runner.errors import ConfigError, EngineGone, HostError
from runner.settings import Settings, load_settings

WIDE, NARROW = "runner0", "runner0-listed"
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

    async def command(self, *words: str, **settings: str) -> Said:
        """A command on the machine."""
        command = ("nsenter", f"--net={path_of(self.machine.host)}", sys.executable, "-m", "runner", *words)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.site.environment(_PLAIN | settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Said(code=process.returncode or 0, out=out.decode(), err=err.decode())

    def settings(self, **settings: str) -> Settings:
        return load_settings(self.site.environment(_PLAIN | settings))

    async def apply(self, **settings: str) -> Applied:
        with entered(self.machine.host):
            return await apply_network(self.settings(**settings))

    async def check(self, **settings: str) -> dict[str, Finding]:
        with entered(self.machine.host):
            return {finding.name: finding async for finding in check_network(self.settings(**settings))}

    async def remove(self, **settings: str) -> tuple[str, ...]:
        with entered(self.machine.host):
            return await remove_network(self.settings(**settings))

    def lose_rules(self) -> None:
        """What `nft flush ruleset` does to us; the engine's own chains stay."""
        for family in ("inet", "bridge"):
            self.machine.run("nft", "delete", "table", family, "runner_runner0")

    async def left(self) -> tuple[set[str], set[str], list[str]]:
        """The engine's networks, the tables and the files that are ours."""
        async with aiodocker.Docker(url=self.site.engine) as docker:
            networks = {network["Name"] for network in await docker.networks.list()}
        tables = {line for line in self.machine.run("nft", "list", "tables").splitlines() if "runner" in line}
        return networks - {"host", "none"}, tables, [path.name for path in self.site.state_dir.glob("[er]*")]


@pytest.fixture(scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    async with open_machine(tmp_path_factory.mktemp("machine")) as machine:
        await build_busybox(machine.engine.url)
        yield machine


@pytest.fixture
async def operator(machine: Machine, tmp_path: Path, namespace: str) -> AsyncIterator[Operator]:
    """An operator with one stack that has a list; nothing is left afterwards, whatever the test did."""
    site = Site(broker="amqp://127.0.0.1:1/", engine=machine.engine.url, folder=tmp_path, ns=namespace)
    site.state_dir.mkdir()
    site.write_stack("listed", f'network = "egress"\nallow = ["{LISTED}:80"]\n')
    operator = Operator(machine=machine, site=site)
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


async def test_the_commands_tell_what_they_did_and_what_is_to_do(operator: Operator) -> None:
    unset = await operator.command("network", "check")
    made = await operator.command("network", "apply", "--json")
    checked = await operator.command("network", "check", "--json")
    removed = await operator.command("network", "remove")

    assert (unset.code, unset.out) == (78, "mend  egress         is not set up; run: runner network apply\n")
    assert [network["name"] for network in json.loads(made.out)["networks"]] == [WIDE, NARROW]
    assert checked.code == made.code == removed.code == 0
    assert all(json.loads(line)["ok"] for line in checked.out.splitlines())
    assert f"removed the network {WIDE}\n" in removed.err


async def test_rules_that_vanished_or_were_changed_are_told_and_made_again(operator: Operator) -> None:
    await operator.apply()
    operator.machine.run("nft", "insert", "rule", "inet", "runner_runner0", "out", "accept")
    changed = await operator.check()
    operator.lose_rules()
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
    assert "network.connections" in (await operator.check(network__connections="7"))["settings"].detail
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

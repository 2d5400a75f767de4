"""The private engine's own network bridge, beside whatever another engine on the machine has."""

import hashlib
import ipaddress
import json
import shlex
import subprocess
from pathlib import Path

from scripts.devservices.process import ServiceError, as_root, find_program

_CANDIDATES = ipaddress.IPv4Network("10.192.0.0/11")


class Bridge:
    """A bridge with a free subnet and the rules that let it reach out, named after the folder it belongs to.

    The rules are ours, marked with the bridge's name, because an engine that manages the packet filter starts with
    deleting the chains of every other engine in the same network namespace.
    """

    def __init__(self, folder: Path) -> None:
        self._digest = hashlib.sha256(str(folder).encode()).hexdigest()
        self.name = f"rnr-{self._digest[:10]}"

    def add(self) -> None:
        """Make the bridge and its rules; what is there already is kept. Raises `ServiceError`."""
        address = self._address()
        if address is None:
            address = self._free_address()
            _run("ip", "link", "add", self.name, "type", "bridge")
            _run("ip", "address", "add", str(address), "dev", self.name)
        _run("ip", "link", "set", self.name, "up")
        self._remove_rules()
        for rule in self._rules(address.network):
            _run("iptables", *rule)

    def remove(self) -> None:
        """Remove the bridge and its rules, whichever of them are there."""
        self._remove_rules()
        if Path("/sys/class/net", self.name).exists():
            _run("ip", "link", "delete", self.name)

    def _rules(self, subnet: ipaddress.IPv4Network) -> list[list[str]]:
        mark = ["-m", "comment", "--comment", self.name]
        reply = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        masquerade = ["-s", str(subnet), "!", "-o", self.name, *mark, "-j", "MASQUERADE"]
        return [
            ["-w", "-t", "nat", "-A", "POSTROUTING", *masquerade],
            ["-w", "-t", "filter", "-I", "FORWARD", "-i", self.name, *mark, "-j", "ACCEPT"],
            ["-w", "-t", "filter", "-I", "FORWARD", "-o", self.name, *reply, *mark, "-j", "ACCEPT"],
        ]

    def _remove_rules(self) -> None:
        for table, chain in (("nat", "POSTROUTING"), ("filter", "FORWARD")):
            for line in _run("iptables", "-w", "-t", table, "-S", chain).splitlines():
                words = shlex.split(line)
                if self.name in words:
                    _run("iptables", "-w", "-t", table, "-D", *words[1:])

    def _address(self) -> ipaddress.IPv4Interface | None:
        if not Path("/sys/class/net", self.name).exists():
            return None
        for link in json.loads(_run("ip", "-json", "-4", "address", "show", "dev", self.name)):
            for info in link.get("addr_info", []):
                return ipaddress.IPv4Interface(f"{info['local']}/{info['prefixlen']}")
        self.remove()
        return None

    def _free_address(self) -> ipaddress.IPv4Interface:
        """The first address of a /24 that no route of this machine touches."""
        routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all"))
        words = {route["dst"] for route in routes if route["dst"] != "default"}
        taken = [ipaddress.IPv4Network(word, strict=False) for word in words]
        subnets = list(_CANDIDATES.subnets(new_prefix=24))
        first = int(self._digest[:8], 16) % len(subnets)
        for subnet in (*subnets[first:], *subnets[:first]):
            if not any(subnet.overlaps(other) for other in taken):
                return ipaddress.IPv4Interface(f"{subnet[1]}/24")
        raise ServiceError(f"no free subnet in {_CANDIDATES}")


def _run(program: str, *arguments: str) -> str:
    command = as_root(find_program(program), *arguments)
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise ServiceError(f"{shlex.join(command)}: {result.stderr.strip()}")
    return result.stdout

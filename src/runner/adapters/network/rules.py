"""The packet filter's rules for jobs that reach out, as a script for `nft -f -`. Pure; why: docs/decisions/0005."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from runner.destination import NEVER, PRIVATE, Destination

_DNS = 53
_BEFORE_THE_ENGINE = -10
"""The priority of our chains. A drop is final here, whatever the engine's chains, which come at 0, say later."""


class Isolation(StrEnum):
    """How frames between two ports of a bridge are told from those of other bridges.

    `BRIDGE` needs a kernel with CONFIG_NFT_BRIDGE_META. `ADDRESS` does without, and leaves frames that are neither
    IPv4 nor ARP of the subnet to br_netfilter and the chains of the family inet.
    """

    BRIDGE = "bridge"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A bridge with its subnet. Its jobs may go wherever `allow` says; None is everywhere that is not shut."""

    bridge: str
    subnet: IPv4Network
    allow: tuple[Destination, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All that the rules depend on. `segments` is never empty; `connections` is the most that one job may have open."""

    table: str
    segments: tuple[Segment, ...]
    nameservers: tuple[IPv4Address, ...] = ()
    private: tuple[IPv4Network, ...] = ()
    connections: int = 4096
    isolation: Isolation = Isolation.BRIDGE

    def script(self) -> str:
        """Replaces both of our tables in one transaction, or makes them."""
        return f"{_replace('inet', self.table, self._inet())}{_replace('bridge', self.table, self._bridge())}"

    def _inet(self) -> list[str]:
        return [
            "set open { type ipv4_addr; size 65535; flags dynamic; }",
            *_chain("input", "filter hook input", [f"iifname {self._bridges} jump host"]),
            *_chain("forward", "filter hook forward", self._forward()),
            *_chain("postrouting", "nat hook postrouting", self._masquerade()),
            *_chain("host", None, [_NO_IPV6, *self._names("accept"), _SHUT]),
            *_chain("out", None, self._out()),
        ]

    def _forward(self) -> list[str]:
        return [
            f"iifname {self._bridges} oifname {self._bridges} drop",
            f"iifname {self._bridges} jump out",
            f"oifname {self._bridges} ct state established,related accept",
            f"oifname {self._bridges} drop",
        ]

    def _out(self) -> list[str]:
        """What a job sends that is not for this host. Each packet is judged: new rules end old connections."""
        subnets = _set(segment.subnet for segment in self.segments)
        return [
            _NO_IPV6,
            *(f'iifname "{each.bridge}" ip saddr != {each.subnet} drop' for each in self.segments),
            "ct state invalid drop",
            f"ct state new add @open {{ ip saddr ct count over {self.connections} }} drop",
            *self._names("accept"),
            f"meta l4proto {{ tcp, udp }} th dport {_DNS} {_SHUT}",
            f"ip daddr {_set(NEVER)} {_SHUT}",
            f"ip daddr {subnets} {_SHUT}",
            *self._private(),
            *(line for segment in self.segments for line in _allowed(segment)),
        ]

    def _private(self) -> list[str]:
        opened = f"ip daddr != {_set(self.private)} " if self.private else ""
        return [f"ip daddr {_set(PRIVATE)} {opened}{_SHUT}"]

    def _names(self, verdict: str) -> list[str]:
        if not self.nameservers:
            return []
        return [f"ip daddr {_set(self.nameservers)} meta l4proto {{ tcp, udp }} th dport {_DNS} {verdict}"]

    def _masquerade(self) -> list[str]:
        return [f"ip saddr {each.subnet} oifname != {self._bridges} masquerade" for each in self.segments]

    def _bridge(self) -> list[str]:
        return _chain("forward", "filter hook forward", [line for each in self.segments for line in self._apart(each)])

    def _apart(self, segment: Segment) -> list[str]:
        if self.isolation is Isolation.BRIDGE:
            return [f'meta ibrname "{segment.bridge}" drop']
        fields = ("ip saddr", "ip daddr", "arp saddr ip", "arp daddr ip")
        return [f"{field} {segment.subnet} drop" for field in fields]

    @property
    def _bridges(self) -> str:
        return _set(f'"{segment.bridge}"' for segment in self.segments)


_NO_IPV6 = "meta nfproto ipv6 drop"
"""Stands first, for the refusal below is one of IPv4 alone and lets the rest pass."""
_SHUT = "reject with icmp type admin-prohibited"
"""The job hears at once that it may not. The kernel bounds how many such answers it sends."""


def _allowed(segment: Segment) -> Iterator[str]:
    if segment.allow is None:
        return
    for destination in segment.allow:
        port = "" if destination.port is None else f" meta l4proto {{ tcp, udp }} th dport {destination.port}"
        yield f'iifname "{segment.bridge}" ip daddr {destination.range}{port} accept'
    yield f'iifname "{segment.bridge}" {_SHUT}'


def _set(members: Iterator[object] | Sequence[object]) -> str:
    return f"{{ {', '.join(str(member) for member in members)} }}"


def _chain(name: str, hook: str | None, rules: Sequence[str]) -> list[str]:
    head = [] if hook is None else [f"type {hook} priority {_BEFORE_THE_ENGINE}; policy accept;"]
    return [f"chain {name} {{", *(f"  {line}" for line in [*head, *rules]), "}"]


def _replace(family: str, table: str, lines: Sequence[str]) -> str:
    """`add` first, since only a table that exists can be deleted."""
    body = "".join(f"  {line}\n" for line in lines)
    return f"add table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n{body}}}\n"

"""What a probe has to find shut on an egress network, and what its answers prove. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from runner.adapters.network.bridges import gateway_of
from runner.adapters.network.record import Record
from runner.adapters.network.rules import Segment
from runner.destination import PRIVATE

IMAGE = "runner-network-probe:1"
"""An image in which nothing is: the init is all that a probe needs."""
CONTAINER = "probe-"
"""How the names of a probe's containers begin."""

_METADATA = IPv4Address("169.254.169.254")
_METADATA_6 = IPv6Address("fd00:ec2::254")
"""One cloud has it over IPv6, too."""
_ANYWHERE = tuple(IPv4Address(text) for text in ("192.0.2.77", "198.51.100.77", "203.0.113.77"))
"""Public addresses that nobody has (RFC 5737)."""
_HAS_IPV6, _NO_IPV6 = "ipv6 here", "ipv6 none"
_LINK_6 = "whoever is on the same link, over IPv6,"
"""Its addresses need not be tried: a container that has none of its own cannot send there."""
_DNS, _HTTP, _HTTPS, _DISCARD = 53, 80, 443, 9


class Answer(StrEnum):
    """What the probe heard; `init/probe.c` tells how."""

    SILENT = "silent"
    FILTERED = "filtered"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address to try. `refused`: our rules have to say no to it. `wanted`: they must not; else it is only shut."""

    what: str
    address: IPv4Address | IPv6Address
    port: int
    refused: bool = False
    wanted: bool = False

    @property
    def word(self) -> str:
        """As the probe takes it."""
        where = str(self.address) if isinstance(self.address, IPv4Address) else f"[{self.address.exploded}]"
        return f"{'+' if self.refused else ''}{where}:{self.port}"

    def __str__(self) -> str:
        where = str(self.address) if isinstance(self.address, IPv4Address) else f"[{self.address}]"
        return f"{self.what} ({where}:{self.port})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found: what is `open` and should not be, and what remains `unproven`. Neither: the network is proven."""

    open: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that has to be shut is."""
        return not (self.open or self.unproven)

    def __str__(self) -> str:
        parts = [f"{', '.join(self.open)} can be reached"] if self.open else []
        parts += [f"{', '.join(self.unproven)}: no refusal came from our rules"] if self.unproven else []
        return "; ".join(parts)


def targets_on(
    segment: Segment,
    record: Record,
    *,
    neighbour: IPv4Address,
    beside: IPv4Address | None,
    host: IPv4Address | None,
    host_6: IPv6Address | None,
    engine_port: int | None,
) -> tuple[Target, ...]:
    """What to try from a container on that network.

    `neighbour` is another container there, `beside` one on another network of ours, `host` and `host_6` this machine's
    addresses towards the internet, `engine_port` where the engine listens for TCP.
    """
    others = () if beside is None else (Target(what="a container on another network", address=beside, port=_DISCARD),)
    return (*_targets(segment, record, neighbour, host, engine_port), *others, *_targets_6(host_6))


def _targets(
    segment: Segment, record: Record, neighbour: IPv4Address, host: IPv4Address | None, engine_port: int | None
) -> Iterator[Target]:
    gateway = gateway_of(segment.subnet)
    yield Target(what="this host", address=gateway, port=_DISCARD, refused=True)
    if host is not None:
        yield Target(what="this host's outward address", address=host, port=_DISCARD)
    if engine_port is not None:
        yield Target(what="the engine", address=gateway, port=engine_port)
    yield Target(what="a neighbour", address=neighbour, port=_DISCARD)
    yield Target(what="the metadata address", address=_METADATA, port=_HTTP, refused=True)
    for address in _private(record.private):
        yield Target(what="a private address", address=address, port=_DISCARD, refused=True)
    for address in _strangers(record.nameservers):
        yield Target(what="another name server", address=address, port=_DNS, refused=True)
    for address in _unlisted(segment):
        yield Target(what="an address that is not on the list", address=address, port=_HTTPS, refused=True)
    yield Target(what="the name server", address=record.nameservers[0], port=_DNS, wanted=True)


def _targets_6(host: IPv6Address | None) -> Iterator[Target]:
    """Whatever answers over IPv6 is open. Nothing has to be refused: most networks have no way there at all."""
    if host is not None:
        yield Target(what="this host over IPv6", address=host, port=_DISCARD)
    yield Target(what="the IPv6 metadata address", address=_METADATA_6, port=_HTTP)


def judge(targets: Sequence[Target], told: str) -> Proof:
    """What the probe's lines prove. A target that no line tells of is unproven."""
    lines = told.splitlines()
    heard = {words[0]: (words[1], words[2]) for line in lines if len(words := line.split()) == 3}  # noqa: PLR2004
    reached = [_LINK_6] if _HAS_IPV6 in lines else []
    unproven = [] if reached or _NO_IPV6 in lines else [_LINK_6]
    for target in targets:
        datagram, connection = heard.get(target.word.lstrip("+"), (None, None))
        name = str(target)
        if target.wanted:
            unproven += [f"{target.what} is refused"] if datagram == Answer.FILTERED else []
        elif Answer.OPEN in (datagram, connection):
            reached.append(name)
        elif datagram is None or (target.refused and datagram != Answer.FILTERED):
            unproven.append(name)
    return Proof(open=tuple(reached), unproven=tuple(unproven))


def _private(opened: Sequence[IPv4Network]) -> list[IPv4Address]:
    """One that is shut, if any is."""
    candidates = (place[-2] for place in PRIVATE)
    return [address for address in candidates if not any(address in place for place in opened)][:1]


def _strangers(nameservers: Sequence[IPv4Address]) -> list[IPv4Address]:
    return [address for address in _ANYWHERE if address not in nameservers][:1]


def _unlisted(segment: Segment) -> list[IPv4Address]:
    if segment.allow is None:
        return []
    listed = [each.range for each in segment.allow if each.port in (None, _HTTPS)]
    return [address for address in _ANYWHERE if not any(address in place for place in listed)][:1]

"""Which egress networks a worker has: one for all, and one for each stack with a list of destinations. Pure."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from runner.adapters.network.rules import Segment
from runner.destination import Destination

DEFAULT_RANGE = IPv4Network("198.18.0.0/15")
"""Where subnets are taken from: set aside for measurements (RFC 2544), so that hardly any site has routes there."""
PART = 22
"""The prefix of one network's part of the range: 1021 jobs."""

_INTERFACE_MAX = 15
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An egress network as settings and stacks ask for it. `allow` of None is everywhere that is not shut."""

    name: str
    bridge: str
    allow: tuple[Destination, ...] | None = None

    def on(self, subnet: IPv4Network) -> Segment:
        """The same, with its subnet."""
        return Segment(bridge=self.bridge, subnet=subnet, allow=self.allow)


def wanted_networks(bridge: str, lists: Mapping[str, tuple[Destination, ...]]) -> tuple[Wanted, ...]:
    """The networks for the setting `network.bridge` and each stack's `allow`; the one for all comes first."""
    narrow = [network_of(bridge, stack, allow) for stack, allow in sorted(lists.items()) if allow]
    return (Wanted(name=bridge, bridge=bridge), *narrow)


def network_of(bridge: str, stack: str, allow: tuple[Destination, ...]) -> Wanted:
    """The network of a stack's jobs."""
    if not allow:
        return Wanted(name=bridge, bridge=bridge)
    return Wanted(name=f"{bridge}-{stack}", bridge=_interface(bridge, stack), allow=allow)


def free_subnet(within: IPv4Network, taken: Iterable[IPv4Network]) -> IPv4Network | None:
    """The first part of a range that overlaps nothing; None if there is none."""
    others = tuple(taken)
    parts = within.subnets(new_prefix=PART) if within.prefixlen < PART else iter((within,))
    return next((part for part in parts if not any(part.overlaps(other) for other in others)), None)


def table_name(bridge: str) -> str:
    """What our tables in the packet filter are called."""
    return f"runner_{bridge.replace('-', '_')}"


def _interface(bridge: str, stack: str) -> str:
    """A name that is short enough for the kernel and the same each time."""
    digest = hashlib.sha256(f"{bridge}/{stack}".encode()).hexdigest()[:_DIGITS]
    return f"{bridge[: _INTERFACE_MAX - _DIGITS - 1]}-{digest}"

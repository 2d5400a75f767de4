"""Where jobs that reach out may go: addresses, and what no list can open. Pure; the rules are made of it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

NEVER = tuple(
    IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)
"""What no setting opens: this host, link-local, metadata (one has a public address), multicast, broadcast."""
PRIVATE = tuple(
    IPv4Network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15")
)
"""What is shut unless the operator opens a part of it (RFC 6890)."""

_PORT_MAX = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the jobs of one stack may go; every port unless one is named."""

    range: IPv4Network
    port: int | None = None

    def __str__(self) -> str:
        where = str(self.range.network_address) if self.range.prefixlen == self.range.max_prefixlen else str(self.range)
        return where if self.port is None else f"{where}:{self.port}"


def parse_destination(text: str) -> Destination:
    """`203.0.113.7`, `203.0.113.0/24`, either with `:port`. Raises `ValueError`: what it is not, and the remedy."""
    where, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _PORT_MAX):
        raise ValueError(f"is not a destination; {_why(text)}")
    try:
        place = IPv4Network(where)
    except ValueError:
        raise ValueError(f"is not a destination; {_why(text)}") from None
    if shut := never_open(place):
        raise ValueError(f"cannot be opened: {shut} is shut for every job")
    return Destination(range=place, port=int(port) if colon else None)


def never_open(place: IPv4Network) -> IPv4Network | None:
    """The part of `NEVER` that the range has in common with it."""
    return next((shut for shut in NEVER if shut.overlaps(place)), None)


def _why(text: str) -> str:
    """What would be right, for what is none."""
    remedy = 'write an IPv4 address or range, such as "203.0.113.7:443" or "203.0.113.0/24"'
    try:
        address: IPv4Address | IPv6Address | None = ip_address(text.partition("/")[0].partition("]")[0].lstrip("["))
    except ValueError:
        address = None
    if isinstance(address, IPv6Address):
        return f"jobs reach out over IPv4 alone: {remedy}"
    if any(letter.isalpha() for letter in text):
        return f"{remedy}; not a name, whose addresses change"
    return remedy

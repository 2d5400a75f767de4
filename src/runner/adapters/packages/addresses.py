"""Which machines we fetch from: none that a name leads to and the operator did not mean."""

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from runner.errors import RejectedError

_NAT64 = IPv6Network("64:ff9b::/96")
_INSIDE = (IPv6Network("::/96"), IPv6Network("fec0::/10"), IPv6Network("64:ff9b:1::/48"))
"""Ranges that `ipaddress` takes for public: IPv4-compatible and site-local addresses (RFC 4291), and a site's own NAT64
(RFC 8215)."""


class CheckedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to a machine of the inside.

    The connection is made to the very addresses that were checked, so that no second answer of a name server counts.
    """

    def __init__(self, private: Collection[IPv4Network]) -> None:
        """`private` has the private ranges that may be reached all the same."""
        self._private = tuple(private)
        self._names = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of a host. Raises `RejectedError` when one of them may not be reached."""
        found = await self._names.resolve(host, port, family)
        for result in found:
            if not is_reachable(result["host"], self._private):
                raise RejectedError(
                    f"code.url: {host} has the address {result['host']}, which is not public; an operator can allow a "
                    "private range (network.private) or name the address itself (code.allow)"
                )
        return found

    async def close(self) -> None:
        """Let go of everything."""
        await self._names.close()


def is_address(host: str) -> bool:
    """Whether this is no name, but an address itself: what the operator has written is meant."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_reachable(address: str, private: Collection[IPv4Network]) -> bool:
    """Whether a name may lead there: a public address, or a private one in one of the ranges."""
    ip = _behind(ip_address(address))
    if ip.is_global and not ip.is_multicast and not any(ip in range_ for range_ in _INSIDE):
        return True
    special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    return not special and any(ip in range_ for range_ in private)


def _behind(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip

"""What this machine's kernel and configuration say about the network, and what has to be switched on in it."""

import os
import socket
import subprocess
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, NetmaskValueError
from pathlib import Path

from runner.errors import HostError

RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""Where name servers stand: the second has those behind systemd-resolved, which itself listens on loopback."""

_ROUTES = Path("/proc/net/route")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_BRIDGED = tuple(Path(f"/proc/sys/net/bridge/bridge-nf-call-{kind}") for kind in ("iptables", "ip6tables"))
_SOMEWHERE, _SOMEWHERE_6 = ("192.0.2.1", 9), ("2001:db8::1", 9)
"""Nothing is sent there: it only makes the kernel choose our own address towards the internet."""


def require_root() -> None:
    """Raises `HostError` for any other user: the kernel shows and changes the packet filter for nobody else."""
    if os.geteuid() != 0:
        raise HostError("the packet filter is the superuser's; run this as root")


def name_servers(files: tuple[Path, ...] = RESOLV_CONFS) -> tuple[IPv4Address, ...]:
    """The IPv4 name servers of this machine that a job could reach: those of the first file that names any."""
    for path in files:
        if found := _name_servers(path):
            return found
    return ()


def _name_servers(path: Path) -> tuple[IPv4Address, ...]:
    found = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                address = IPv4Address(words[1])
            except AddressValueError:
                continue
            if not (address.is_loopback or address.is_unspecified):
                found.append(address)
    return tuple(dict.fromkeys(found))


def routed(path: Path = _ROUTES) -> tuple[IPv4Network, ...]:
    """The ranges that this machine has routes to, but for the default one."""
    found = []
    for line in path.read_text().splitlines()[1:]:
        words = line.split()
        try:
            place = IPv4Network((_little_endian(words[1]), str(IPv4Address(_little_endian(words[7])))))
        except (ValueError, IndexError, NetmaskValueError):
            continue
        if place.prefixlen:
            found.append(place)
    return tuple(found)


def _little_endian(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text)[::-1], "big")


def outward_address() -> IPv4Address | None:
    """This machine's own address towards the internet; None without a route there."""
    found = _outward(socket.AF_INET, _SOMEWHERE)
    return None if found is None else IPv4Address(found)


def outward_address_6() -> IPv6Address | None:
    """The same for IPv6; None as well where it would be one that counts on a link alone."""
    found = _outward(socket.AF_INET6, _SOMEWHERE_6)
    address = None if found is None else IPv6Address(found)
    return None if address is None or address.is_link_local else address


def _outward(family: socket.AddressFamily, towards: tuple[str, int]) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect(towards)
            return str(asked.getsockname()[0])
    except OSError:
        return None


def has_interface(name: str) -> bool:
    """Whether there is a network interface of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def forwards() -> bool:
    """Whether this machine hands packets on."""
    return _FORWARDING.read_text().strip() == "1"


def forward() -> bool:
    """Have it hand packets on; whether that had to be switched on. Raises `HostError`."""
    return _switch_on(_FORWARDING)


def sees_bridged() -> bool:
    """Whether the rules for addresses, IPv4 and IPv6, see what passes between two ports of a bridge (br_netfilter)."""
    return all(path.exists() and path.read_text().strip() == "1" for path in _BRIDGED)


def see_bridged() -> bool:
    """Have it shown to them; whether that had to be switched on. Raises `HostError`."""
    if not all(path.exists() for path in _BRIDGED):
        subprocess.run(["modprobe", "br_netfilter"], check=False, capture_output=True)
    switched = [path for path in _BRIDGED if _switch_on(path)]
    return bool(switched)


def _switch_on(path: Path) -> bool:
    try:
        if path.read_text().strip() == "1":
            return False
        path.write_text("1")
    except OSError as error:
        raise HostError(f"{path} cannot be set to 1: {error.strerror}") from error
    return True

"""The rules in a kernel: jobs, host and "the internet" are network namespaces of the test's own."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET, AF_INET6, SO_ERROR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, AddressFamily, SocketKind, socket

import pytest

from runner.adapters.network import nft
from runner.adapters.network.rules import Isolation, Rules, Segment
from runner.destination import Destination
from runner.errors import HostError

BRIDGE, LISTED = "runner0", "runner0-1"
PUBLIC, OTHER, NAMES, FOREIGN = "203.0.113.9", "203.0.113.10", "198.51.100.53", "198.51.100.54"
LONG, BRIEFLY = 30.0, 0.8
"""Seconds to wait for what is to arrive, and for what is not."""
METADATA, PRIVATE, HOST = "169.254.169.254", "192.168.7.7", "10.77.0.1"
WIDE = Segment(bridge=BRIDGE, subnet=IPv4Network("10.77.0.0/24"))
NARROW = Segment(
    bridge=LISTED,
    subnet=IPv4Network("10.77.1.0/24"),
    allow=(Destination(range=IPv4Network(PUBLIC), port=80),),
)
RULES = Rules(
    table="runner_runner0",
    segments=(WIDE, NARROW),
    nameservers=(IPv4Address(NAMES),),
    isolation=Isolation.ADDRESS,
)


def run(*words: str, stdin: str = "") -> None:
    subprocess.run(words, check=True, input=stdin, text=True, capture_output=True, timeout=20)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


def inside(name: str, *words: str) -> None:
    run("ip", "netns", "exec", name, *words)


class Site:
    """Host, jobs `a` and `b` on one bridge, `c` on that of a stack with a list, and all else played by `out`."""

    def __init__(self, stack: ExitStack) -> None:
        self.names = {
            who: stack.enter_context(namespace(f"rnt{os.getpid()}{who}")) for who in ("host", "out", "a", "b", "c")
        }
        host = self.names["host"]
        inside(host, "sysctl", "-q", "net.ipv4.ip_forward=1")
        for bridge, address in ((BRIDGE, f"{HOST}/24"), (LISTED, "10.77.1.1/24")):
            run("ip", "-n", host, "link", "add", bridge, "type", "bridge")
            run("ip", "-n", host, "address", "add", address, "dev", bridge)
            run("ip", "-n", host, "link", "set", bridge, "up")
        self._job("a", "10.77.0.2/24", HOST, BRIDGE)
        self._job("b", "10.77.0.3/24", HOST, BRIDGE)
        self._job("c", "10.77.1.2/24", "10.77.1.1", LISTED)
        run("ip", "-n", host, "address", "add", "fd77::1/64", "dev", BRIDGE, "nodad")
        for who, address in (("a", "fd77::2/64"), ("b", "fd77::3/64")):
            run("ip", "-n", self.names[who], "address", "add", address, "dev", "eth0", "nodad")
        self._cable("out")
        run("ip", "-n", host, "address", "add", "192.0.2.1/24", "dev", "v-out")
        run("ip", "-n", host, "route", "add", "default", "via", "192.0.2.2")
        run("ip", "-n", self.names["out"], "address", "add", "192.0.2.2/24", "dev", "eth0")
        for address in (PUBLIC, OTHER, NAMES, FOREIGN, METADATA, PRIVATE):
            run("ip", "-n", self.names["out"], "address", "add", f"{address}/32", "dev", "lo")

        run("ip", "-n", self.names["out"], "route", "add", "10.77.0.0/16", "via", "192.0.2.1")

    def hardware_address(self, who: str) -> str:
        shown = subprocess.run(
            ["ip", "-json", "-n", self.names[who], "link", "show", "eth0"], check=True, capture_output=True, timeout=20
        )
        return str(json.loads(shown.stdout)[0]["address"])

    def neighbour(self, who: str, address: str) -> str:
        words = ["ip", "-n", self.names[who], "neighbour", "show", "to", address]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout

    def forget_neighbours(self, who: str) -> None:
        run("ip", "-n", self.names[who], "neighbour", "flush", "all")

    def remove(self, rules: Rules) -> None:
        self.apply(rules)
        for family in ("inet", "bridge"):
            inside(self.names["host"], "nft", "delete", "table", family, rules.table)

    def apply(self, rules: Rules) -> None:
        run("ip", "netns", "exec", self.names["host"], "nft", "-f", "-", stdin=rules.script())

    def reaches(self, who: str, address: str, port: int, listens: str, *, wait: float = LONG) -> bool:
        """Whether a TCP connection of `who` is made to somebody who listens there."""
        with closing(self._socket(listens)) as server, closing(self._socket(who)) as client:
            server.bind(("0.0.0.0", port))
            server.listen()
            client.settimeout(wait)
            try:
                client.connect((address, port))
            except OSError:
                return False
            return client.getsockopt(SOL_SOCKET, SO_ERROR) == 0

    def hears(self, who: str, address: str, listens: str, *, wait: float = LONG) -> bool:
        """Whether a datagram of `who` arrives."""
        family, everywhere = (AF_INET6, "::") if ":" in address else (AF_INET, "0.0.0.0")
        with (
            closing(self._socket(listens, family, SOCK_DGRAM)) as server,
            closing(self._socket(who, family, SOCK_DGRAM)) as client,
        ):
            server.bind((everywhere, 9999))
            server.settimeout(wait)
            try:
                client.sendto(b"hello", (address, 9999))
                return server.recv(64) == b"hello"
            except OSError:
                return False

    def _socket(self, who: str, family: AddressFamily = AF_INET, kind: SocketKind = SOCK_STREAM) -> socket:
        """A socket belongs for good to the namespace that it was made in."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.names[who]}", os.O_RDONLY)
        try:
            _setns(there)
            return socket(family, kind)
        finally:
            _setns(here)
            os.close(here)
            os.close(there)

    def _job(self, who: str, address: str, gateway: str, bridge: str) -> None:
        self._cable(who)
        run("ip", "-n", self.names["host"], "link", "set", f"v-{who}", "master", bridge)
        run("ip", "-n", self.names[who], "address", "add", address, "dev", "eth0")
        run("ip", "-n", self.names[who], "route", "add", "default", "via", gateway)

    def _cable(self, who: str) -> None:
        host, name = self.names["host"], self.names[who]
        run("ip", "-n", host, "link", "add", f"v-{who}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", host, "link", "set", f"v-{who}", "up")
        run("ip", "-n", name, "link", "set", "eth0", "up")


def _setns(descriptor: int) -> None:
    import ctypes  # noqa: PLC0415 - Python 3.11 has no os.setns

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


CASES = [
    ("a", PUBLIC, 80, "out", True),
    ("a", OTHER, 80, "out", True),
    ("a", NAMES, 53, "out", True),
    ("a", FOREIGN, 53, "out", False),
    ("a", METADATA, 80, "out", False),
    ("a", PRIVATE, 80, "out", False),
    ("a", HOST, 80, "host", False),
    ("a", "192.0.2.1", 80, "host", False),
    ("a", "10.77.0.3", 80, "b", False),
    ("b", "10.77.0.2", 80, "a", False),
    ("a", "10.77.1.2", 80, "c", False),
    ("out", "10.77.0.2", 80, "a", False),
    ("c", PUBLIC, 80, "out", True),
    ("c", PUBLIC, 81, "out", False),
    ("c", OTHER, 80, "out", False),
    ("c", NAMES, 53, "out", True),
    ("c", PRIVATE, 80, "out", False),
]


@pytest.mark.parametrize("case", CASES)
def test_a_job_reaches_what_it_may_and_nothing_else(site: Site, case: tuple[str, str, int, str, bool]) -> None:
    who, address, port, listens, reached = case
    site.apply(RULES)

    assert site.reaches(who, address, port, listens, wait=LONG if reached else BRIEFLY) is reached


@pytest.mark.parametrize(
    ("who", "address", "listens"),
    [("a", "10.77.0.3", "b"), ("a", HOST, "host"), ("a", "10.77.1.2", "c"), ("out", "10.77.0.2", "a")]
    + [("a", address, "out") for address in (METADATA, PRIVATE, OTHER, FOREIGN)],
)
def test_without_the_rules_everything_that_is_shut_would_answer(
    site: Site, who: str, address: str, listens: str
) -> None:
    site.remove(RULES)

    assert site.reaches(who, address, 53, listens)


@pytest.mark.parametrize(
    ("address", "listens"),
    [("10.77.0.3", "b"), (HOST, "host"), (METADATA, "out"), (PRIVATE, "out"), ("fd77::3", "b"), ("fd77::1", "host")],
)
def test_no_datagram_passes_either(site: Site, address: str, listens: str) -> None:
    site.remove(RULES)
    assert site.hears("a", address, listens)

    site.apply(RULES)

    assert not site.hears("a", address, listens, wait=BRIEFLY)


def test_a_datagram_to_a_public_address_passes(site: Site) -> None:
    site.apply(RULES)

    assert site.hears("a", PUBLIC, "out")


def test_a_job_does_not_even_learn_that_a_neighbour_is_there(site: Site) -> None:
    site.remove(RULES)
    site.reaches("a", "10.77.0.3", 80, "b")
    assert "lladdr" in site.neighbour("a", "10.77.0.3")

    site.apply(RULES)
    site.forget_neighbours("a")

    assert not site.reaches("a", "10.77.0.3", 80, "b", wait=BRIEFLY)
    assert "lladdr" not in site.neighbour("a", "10.77.0.3")


def test_a_neighbour_whose_hardware_address_is_known_is_not_reached(site: Site) -> None:
    known = ("lladdr", site.hardware_address("b"), "dev", "eth0", "nud", "permanent")
    run("ip", "-n", site.names["a"], "neighbour", "replace", "10.77.0.3", *known)
    try:
        site.remove(RULES)
        assert site.reaches("a", "10.77.0.3", 80, "b")

        site.apply(RULES)

        assert not site.reaches("a", "10.77.0.3", 80, "b", wait=BRIEFLY)
    finally:
        run("ip", "-n", site.names["a"], "neighbour", "delete", "10.77.0.3", "dev", "eth0")


def test_an_opened_private_range_is_reached_and_another_one_is_not(site: Site) -> None:
    opened = Rules(table=RULES.table, segments=(WIDE,), private=(IPv4Network(f"{PRIVATE}/32"),))
    site.apply(Rules(table=opened.table, segments=(WIDE,), private=opened.private, isolation=Isolation.ADDRESS))

    assert site.reaches("a", PRIVATE, 80, "out")
    assert not site.reaches("a", "10.77.1.2", 80, "c", wait=BRIEFLY)


def test_a_job_cannot_fill_the_table_of_connections(site: Site) -> None:
    site.apply(Rules(table=RULES.table, segments=(WIDE,), connections=1, isolation=Isolation.ADDRESS))
    try:
        assert site.hears("a", PUBLIC, "out")
        assert not site.hears("a", OTHER, "out", wait=BRIEFLY)
        assert site.hears("b", OTHER, "out")
    finally:
        site.remove(RULES)


def test_the_kernel_is_asked_in_words_that_nft_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    nft.knows_bridge_names()  # raises when it is not

    monkeypatch.setattr(nft, "_BRIDGE_NAME", nft._BRIDGE_NAME.replace('meta ibrname "runner0"', "ip saddr 192.0.2.1"))
    assert nft.knows_bridge_names()
    monkeypatch.setattr(nft, "_BRIDGE_NAME", "nonsense")
    with pytest.raises(HostError, match="nft cannot be asked"):
        nft.knows_bridge_names()

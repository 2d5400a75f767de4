"""A worker's machine of a test's own: a network namespace with an engine in it, and an "internet" behind it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from scripts.devservices.process import find_program
from tests.netns import inside, namespace, path_of, run
from tests.services import Engine, build_busybox

PUBLIC, LISTED, NAMES, FOREIGN = "203.0.113.9", "203.0.113.10", "203.0.113.53", "203.0.113.54"
METADATA, PRIVATE, OUTSIDE = "169.254.169.254", "192.168.7.7", "198.51.100.1"
"""Addresses of "the internet"; the last one is the machine's own on that side."""


class NamespacedEngine(Engine):
    """An engine whose networks lie in a namespace of the test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        # The packet filter is on, as on any machine: the engine's chains come after ours.
        super().__init__(folder, flags=["--iptables=true", "--bridge=none"])
        self._name = name

    async def _network(self) -> list[str]:
        return [find_program("nsenter"), f"--net={path_of(self._name)}", find_program("dockerd")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The namespaces of the machine and of all else, the machine's engine, and busybox on it."""

    host: str
    out: str
    engine: Engine
    image: str

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a program on the machine."""
        return inside(self.host, *words, stdin=stdin)


@contextmanager
def cabled() -> Iterator[tuple[str, str]]:
    """The names of two namespaces: a machine, and an internet with some addresses that it reaches."""
    mark = f"rne{os.getpid()}{token_hex(2)}"
    with namespace(f"{mark}h") as host, namespace(f"{mark}o") as out:
        run("ip", "-n", host, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", out)
        for name, link, address in ((host, "up0", f"{OUTSIDE}/24"), (out, "eth0", "198.51.100.2/24")):
            run("ip", "-n", name, "address", "add", address, "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")
        run("ip", "-n", host, "route", "add", "default", "via", "198.51.100.2")
        for address in (PUBLIC, LISTED, NAMES, FOREIGN, METADATA, PRIVATE):
            run("ip", "-n", out, "address", "add", f"{address}/32", "dev", "lo")
        # Answers find their way whether or not an address was translated: only the rules can keep a job from them.
        run("ip", "-n", out, "route", "add", "default", "via", OUTSIDE)
        yield host, out


@asynccontextmanager
async def open_machine(folder: Path) -> AsyncIterator[Machine]:
    """A machine with a running engine; nothing is left of it."""
    with cabled() as (host, out):
        async with NamespacedEngine(folder, host) as engine:
            yield Machine(host=host, out=out, engine=engine, image=await build_busybox(engine.url))

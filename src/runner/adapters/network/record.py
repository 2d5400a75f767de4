"""What `network apply` made, kept in the state folder: the daemon, which is not root, reads there what it may use."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from runner.adapters.network.rules import Isolation, Rules, Segment
from runner.errors import HostError

_RECORD = "egress.json"
_RESOLV_CONF = "resolv.conf"
_TABLE = re.compile(r"runner_[a-z][a-z0-9_]{0,14}", re.ASCII)
_BRIDGE = re.compile(r"[a-z][a-z0-9_-]{0,14}", re.ASCII)
_NETWORK = re.compile(r"[a-z][a-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A network that was made: its name in the engine, and what the rules say of it."""

    name: str
    segment: Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that the rules were made of."""

    table: str
    networks: tuple[Made, ...]
    nameservers: tuple[IPv4Address, ...]
    private: tuple[IPv4Network, ...]
    connections: int
    isolation: Isolation

    @property
    def rules(self) -> Rules:
        """The rules that have to be loaded."""
        return Rules(
            table=self.table,
            segments=tuple(made.segment for made in self.networks),
            nameservers=self.nameservers,
            private=self.private,
            connections=self.connections,
            isolation=self.isolation,
        )

    def network(self, name: str) -> Made | None:
        """The network of that name."""
        return next((made for made in self.networks if made.name == name), None)


_ADAPTER = TypeAdapter(Record)


class RecordFile:
    """The record, and beside it the `resolv.conf` that jobs get."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _RECORD
        self.resolv_conf = state_dir.absolute() / _RESOLV_CONF

    def read(self) -> Record | None:
        """What was made; None if nothing was. Raises `HostError` when it cannot be read, or bears names of nobody's."""
        try:
            record = _ADAPTER.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise HostError(f"{self._path} cannot be read; run: runner network apply") from error
        if not _has_our_names(record):
            raise HostError(f"{self._path} names what we never make; run: runner network apply")
        return record

    def written(self) -> int | None:
        """When it was written, in nanoseconds; None if there is none. Another value means another record."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def write(self, record: Record) -> None:
        """Replace what was there. Raises `HostError`."""
        servers = "".join(f"nameserver {address}\n" for address in record.nameservers)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self.resolv_conf, servers.encode())
            _replace(self._path, _ADAPTER.dump_json(record, indent=1))
        except OSError as error:
            raise HostError(f"{self._path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Nothing is made any more."""
        self._path.unlink(missing_ok=True)
        self.resolv_conf.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    """In one step, readable for all: jobs of any user read the one, the daemon, whoever it is, the other."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    # The folder is the daemon's, and we are root: nothing that somebody put there is written to.
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
    fresh.replace(path)


def _has_our_names(record: Record) -> bool:
    """The folder is the daemon's, and the names become words of root's commands."""
    names = [made.name for made in record.networks]
    bridges = [made.segment.bridge for made in record.networks]
    return (
        bool(names)
        and bool(_TABLE.fullmatch(record.table))
        and all(map(_NETWORK.fullmatch, names))
        and all(map(_BRIDGE.fullmatch, bridges))
    )

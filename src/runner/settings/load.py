"""Reads the settings from where they stand: environment, credentials, file, the host's own facts."""

import json
import math
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runner.errors import ConfigError
from runner.job import Bytes
from runner.settings.faults import describe
from runner.settings.tree import Settings

DEFAULT_FILE = Path("/etc/runner/runner.toml")

_PREFIX = "RUNNER_"
_MEMORY_SHARE = 0.9
_NOT_IN_A_WORD = re.compile(r"[^a-z0-9_-]")

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the defaults depend on: the host's name, CPUs and memory."""

    name: str
    cpus: int
    memory: Bytes

    @classmethod
    def here(cls) -> "Host":
        """The host that we run on."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(name=socket.gethostname(), cpus=os.cpu_count() or 1, memory=Bytes(memory))


def load_settings(environ: Mapping[str, str], host: Host | None = None, default_file: Path = DEFAULT_FILE) -> Settings:
    """The settings: environment over credentials over file over defaults.

    `host` is the one that we run on unless a test says otherwise. Raises `ConfigError` with all faults at once.
    """
    faults: list[str] = []
    environment = _from_environment(environ, faults)
    credentials = _from_credentials(environ, faults)
    file = _from_file(environ, default_file, faults)
    defaults = _from_host(host or Host.here(), environment, file)
    try:
        settings = Settings.model_validate(reduce(_over, (environment, credentials, file, defaults)))
    except ValidationError as error:
        raise ConfigError(*faults, *describe(error, Settings)) from None
    if faults:
        raise ConfigError(*faults)
    return settings


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Tree:
    """`RUNNER_<SECTION>__<FIELD>`. An empty value is as good as none; a name without `__` is not a setting's."""
    tree: Tree = {}
    for variable, text in sorted(environ.items()):
        path = variable.removeprefix(_PREFIX).lower().split("__")
        if not variable.startswith(_PREFIX) or len(path) == 1 or not text:
            continue
        try:
            _put(tree, path, json.loads(text) if text[0] in "[{" else text)
        except ValueError:
            faults.append(f'{".".join(path)}: {variable} is not JSON; write a list as ["a", "b"]')
    return tree


def _put(tree: Tree, path: list[str], value: object) -> None:
    """Put the value where the path leads; a text that stands in the way gives way, and is refused with its table."""
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value


def _over(upper: Tree, lower: Tree) -> Tree:
    """Both together. Where both have a value, that of the upper one counts; tables are put together."""
    tree = lower | upper
    for name in lower.keys() & upper.keys():
        if isinstance(lower[name], dict) and isinstance(upper[name], dict):
            tree[name] = _over(upper[name], lower[name])
    return tree


def _from_credentials(environ: Mapping[str, str], faults: list[str]) -> Tree:
    """The files `amqp_url` (an address a line) and `registry_auth` (only its path) in `$CREDENTIALS_DIRECTORY`."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}
    auth = Path(folder) / "registry_auth"
    stacks = {"stacks": {"registry_auth": str(auth.absolute())}} if auth.exists() else {}
    try:
        urls = (Path(folder) / "amqp_url").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return stacks
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"amqp.url: the credential amqp_url cannot be read: {_why(error)}")
        return stacks
    return {"amqp": {"url": urls}, **stacks}


def _from_file(environ: Mapping[str, str], default_file: Path, faults: list[str]) -> Tree:
    """`$RUNNER_CONFIG`, which has to exist, or the default file, which need not."""
    named = environ.get("RUNNER_CONFIG")
    path = Path(named) if named else default_file
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            faults.append(f"{path}: there is no such file; create it or change RUNNER_CONFIG")
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{path}: {error}; this is not TOML")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: cannot be read: {_why(error)}")
    return {}


def _from_host(host: Host, *trees: Tree) -> Tree:
    """The defaults that depend on the host."""
    return {
        "worker": {"name": _as_word(host.name)},
        "capacity": {"cpus": host.cpus * _overcommit(trees), "memory": int(host.memory * _MEMORY_SHARE)},
        "engine": {"start_parallelism": 2 * host.cpus},
    }


def _overcommit(trees: tuple[Tree, ...]) -> float:
    """The factor that was set, in the first tree that has one. A wrong one is left for the tree's types to refuse."""
    for tree in trees:
        capacity = tree.get("capacity")
        if isinstance(capacity, dict) and "cpu_overcommit" in capacity:
            try:
                factor = float(capacity["cpu_overcommit"])
            except (TypeError, ValueError, OverflowError):
                return 1.0
            return factor if 0 < factor < math.inf else 1.0
    return 1.0


def _as_word(name: str) -> str:
    """The host's short name as a worker may be called."""
    return _NOT_IN_A_WORD.sub("-", name.partition(".")[0].lower()).lstrip("_-")[:40] or "worker"


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"

"""The kernel's packet filter, through the program nft. Needs root. Raises `HostError` when nft refuses."""

import json
import subprocess
from typing import Any

from runner.errors import HostError

FAMILIES = ("inet", "bridge")
"""Those of our tables; both have one name."""

_LIMIT = 30
_VOLATILE = ("handle", "elem")
"""What the parts of a table have that no script says: the kernel's numbers, and the members of dynamic sets."""
_BRIDGE_NAME = """
table bridge runner_asks {
  chain forward {
    type filter hook forward priority 0
    meta ibrname "runner0" drop
  }
}
"""
_TRIAL = " && ".join(("nft -f -", *(f'nft -j list table {family} "$1"' for family in FAMILIES)))
"""A program of the shell's that is always the same; the table is its first word."""
_THE_KERNEL = "Could not process rule"
"""How nft begins when it understands a script, and the kernel does not."""

Tables = list[Any]
"""Our two tables as the kernel has them, less what is volatile."""


def knows_bridge_names() -> bool:
    """Whether the kernel can tell frames by their bridge (CONFIG_NFT_BRIDGE_META). Changes nothing."""
    done = _nft("-c", "-f", "-", stdin=_BRIDGE_NAME)
    if done.returncode != 0 and _THE_KERNEL not in done.stderr:
        raise HostError(f"nft cannot be asked what the kernel knows: {_first_line(done.stderr)}")
    return done.returncode == 0


def load(script: str) -> None:
    """Carry out a script, as a whole or not at all."""
    done = _nft("-f", "-", stdin=script)
    if done.returncode != 0:
        raise HostError(f"nft refuses the rules: {_first_line(done.stderr)}")


def loaded(table: str) -> Tables | None:
    """The tables as they are; None unless both are there."""
    listings = []
    for family in FAMILIES:
        done = _nft("-j", "list", "table", family, table)
        if done.returncode != 0:
            if "No such file" in done.stderr:
                return None
            raise HostError(f"nft cannot list the rules: {_first_line(done.stderr)}")
        listings.append(done.stdout)
    return _tables(listings)


def would_load(script: str, table: str) -> Tables:
    """The tables as the script would make them: made and listed in a network namespace that ends at once."""
    done = _run("unshare", "--net", "sh", "-c", _TRIAL, "sh", table, stdin=script)
    if done.returncode != 0:
        raise HostError(f"the rules cannot be tried out: {_first_line(done.stderr)}")
    return _tables(done.stdout.splitlines())


def delete(table: str) -> bool:
    """Delete both tables; whether there were any."""
    there = [family for family in FAMILIES if _nft("list", "table", family, table).returncode == 0]
    load("".join(f"delete table {family} {table}\n" for family in there))
    return bool(there)


def _tables(listings: list[str]) -> Tables:
    parts = [part for text in listings if text.strip() for part in json.loads(text)["nftables"]]
    return [(kind, _lasting(what)) for part in parts for kind, what in part.items() if kind != "metainfo"]


def _lasting(what: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in what.items() if key not in _VOLATILE}


def _nft(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return _run("nft", *words, stdin=stdin)


def _run(*words: str, stdin: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, input=stdin, text=True, capture_output=True, check=False, timeout=_LIMIT)
    except FileNotFoundError as error:
        raise HostError(f"{words[0]} is not installed; Debian, Ubuntu: apt-get install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{words[0]} did not end within {_LIMIT} s") from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it does not say why"])[0]

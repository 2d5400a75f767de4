"""Where code packages may come from: addresses, parsed once and compared by their parts. Pure."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

_PLAIN = re.compile(r"[!-~]{1,4096}", re.ASCII)
"""Printable ASCII without blanks: parsers differ about everything else."""
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An address of a package, or, where its path ends with a slash, of a folder of them.

    `path` is as it was written and holds no `.` or `..`, encoded or not. `query` may hold a secret, and is not shown.
    """

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def plain_path(self) -> str:
        """The path with nothing encoded."""
        return unquote(self.path, errors="strict")

    def holds(self, other: "Source") -> bool:
        """Whether the other address is in this folder: the same server, and a path under it, cut at a slash."""
        return (
            (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)
            and self.path.endswith("/")
            and other.plain_path.startswith(self.plain_path)
        )


def is_allowed(source: Source, folders: Collection[Source]) -> bool:
    """Whether the address is in one of the folders."""
    return any(folder.holds(source) for folder in folders)


def parse_source(url: str) -> Source:
    """An `https://` or `file:///` address, or an `http://` one of this machine itself.

    Raises `ValueError` that says what would be right.
    """
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise ValueError("is not an address in plain ASCII; write blanks and other characters in it as %20 and so on")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not an address: {error}") from error
    if "@" in parts.netloc:
        raise ValueError("has a user in it; leave out what stands before the @")
    if parts.fragment or url.endswith("#"):
        raise ValueError("has a fragment; leave out the # and what follows")
    _check_server(parts.scheme, parts.hostname, parts.netloc, query=parts.query)
    return Source(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=port if port is not None else _PORTS.get(parts.scheme),
        path=_path(parts.path),
        query=parts.query,
    )


def _check_server(scheme: str, host: str | None, netloc: str, *, query: str) -> None:
    if scheme == "file":
        if netloc or query:
            raise ValueError("is not a file; write file:///folder/name with three slashes and no query")
    elif scheme not in _PORTS or not host or netloc.endswith(":0"):
        raise ValueError("is neither https://host/path nor file:///path")
    elif scheme == "http" and not _is_this_machine(host):
        raise ValueError("is sent in the clear; write https:// (http:// is only for 127.0.0.1 and [::1])")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _path(path: str) -> str:
    try:
        plain = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("has a path that is not UTF-8") from None
    if not plain.startswith("/") or {".", ".."} & set(plain.split("/")):
        raise ValueError("has no plain path; write it from the first / on, without . and ..")
    if "%" in plain or "\\" in plain or not plain.isprintable() or plain.count("/") != path.count("/"):
        raise ValueError("has a path with an encoded slash, a percent sign, a backslash or a control character in it")
    return path

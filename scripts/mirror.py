"""Where this machine has its Debian packages from: the mirror and the proxy that its own apt uses."""

import os
import subprocess
from dataclasses import dataclass
from urllib.parse import urlsplit

VARIABLE = "RUNNER_DEBIAN_MIRROR"
"""Overrules what apt is set to: the mirror's URL and, after a space, that of its security updates."""

_INDEX = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
_PROXIES = ("Acquire::http::Proxy", "Acquire::https::Proxy")


class MirrorError(Exception):
    """There is no mirror that a base can be made from; says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A Debian mirror; `security` is empty where there is none. `proxy` is lines for apt.conf."""

    url: str
    security: str = ""
    proxy: str = ""

    def sources(self, release: str) -> str:
        """The sources.list of that release."""
        lines = [f"deb {self.url} {release} main", f"deb {self.url} {release}-updates main"]
        if self.security:
            lines.append(f"deb {self.security} {release}-security main")
        return "\n".join(lines) + "\n"


def find_mirror() -> Mirror:
    """The mirror of this machine. Raises `MirrorError`."""
    url, security = _named() or _of_apt()
    mirror = Mirror(url=url, security=security, proxy=_proxy())
    # What a base holds, every job in a container can read.
    for text in (url, security, *mirror.proxy.split('"')):
        if urlsplit(text).password:
            raise MirrorError(f"the mirror or its proxy needs a password, which every job could read; set {VARIABLE}")
    return mirror


def _named() -> tuple[str, str] | None:
    words = os.environ.get(VARIABLE, "").split()
    return (words[0], words[1] if len(words) > 1 else "") if words else None


def _of_apt() -> tuple[str, str]:
    targets = _said("apt-get", "indextargets", "--format", _INDEX, "Created-By: Packages").splitlines()
    found = dict.fromkeys(targets)
    main = [line.split("|")[2] for line in found if line.startswith("Debian|Debian|http")]
    security = [line.split("|")[2] for line in found if line.startswith("Debian|Debian-Security|http")]
    if not main:
        raise MirrorError(f"apt of this machine knows no Debian mirror; run apt-get update, or name one in {VARIABLE}")
    return main[0].rstrip("/"), security[0].rstrip("/") if security else ""


def _proxy() -> str:
    # As apt does: its own setting first, then the environment.
    lines = _said("apt-config", "dump", "--format", '%F "%v";%n', *_PROXIES).splitlines()
    set_here = {line.split(" ")[0]: line for line in lines if not line.endswith(' "";')}
    for name, variable in zip(_PROXIES, ("http_proxy", "https_proxy"), strict=True):
        if value := os.environ.get(variable):
            set_here.setdefault(name, f'{name} "{value}";')
    return "\n".join(set_here.values())


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MirrorError(f"{command[0]} does not tell the mirror of this machine ({error}); set {VARIABLE}") from None

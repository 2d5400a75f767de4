"""Network namespaces of a test's own, for hosts, jobs and "the internet"."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_INET, SOCK_STREAM, AddressFamily, SocketKind, socket


def run(*words: str, stdin: str = "") -> str:
    """Run a program that has to succeed; what it says."""
    done = subprocess.run(words, check=False, input=stdin, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def inside(name: str, *words: str, stdin: str = "") -> str:
    """Run a program in a namespace; `ip netns exec` would also take away /sys/fs/cgroup."""
    return run("nsenter", f"--net={path_of(name)}", *words, stdin=stdin)


def path_of(name: str) -> str:
    """The file that stands for a namespace."""
    return f"/run/netns/{name}"


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A new namespace, with its loopback up."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Within this, the thread makes its sockets in that namespace, where they stay."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(path_of(name), os.O_RDONLY)
    try:
        _setns(there)
        yield
    finally:
        _setns(here)
        os.close(here)
        os.close(there)


def socket_in(name: str, family: AddressFamily = AF_INET, kind: SocketKind = SOCK_STREAM) -> socket:
    """A socket that belongs for good to that namespace."""
    with entered(name):
        return socket(family, kind)


def _setns(descriptor: int) -> None:
    # Python 3.11 has no os.setns.
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")

"""The init's probe, as PID 1 of a network that has only itself and some rules."""

import subprocess

import pytest

from runner.init.binary import init_binary

_RULES = """
table inet asked {
  chain input {
    type filter hook input priority 0;
    ip daddr 127.0.0.3 reject with icmp type admin-prohibited
    ip daddr 127.0.0.4 drop
    ip daddr 127.0.0.5 reject with icmp type host-unreachable
  }
}
"""
_SETUP = 'ip link set lo up; nft -f -; exec "$@"'
_NO_IPV6 = (
    "[",
    "[::1]:9",
    f"[{'0000:' * 7}0001]9",
    f"[{'0000:' * 7}000g]:9",
    f"[{'0000:' * 7}0001",
    f"[{'0000:' * 8}]:9",
)
_ALONE = ("unshare", "--pid", "--fork", "--net", "--kill-child", "sh", "-ec")


def probe(*words: str, first: str = "") -> subprocess.CompletedProcess[str]:
    command = [*_ALONE, f"{first}{_SETUP}", "sh", str(init_binary()), "probe", *words]
    return subprocess.run(command, input=_RULES, check=False, capture_output=True, text=True, timeout=30)


def test_it_tells_who_answers_who_refuses_and_who_is_silent() -> None:
    done = probe("127.0.0.2:9", "+127.0.0.3:65535", "127.0.0.4:53", "127.0.0.5:1")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "127.0.0.2:9 open open",
        "127.0.0.3:65535 filtered filtered",
        "127.0.0.4:53 silent silent",
        "127.0.0.5:1 silent filtered",  # a host that is away is no rule, as far as a datagram can tell
        "ipv6 none",
    ]


def test_it_does_so_over_ipv6_as_well() -> None:
    here, nowhere = f"[{'0000:' * 7}0001]", f"[fd00:0ec2:{'0000:' * 5}0254]"
    done = probe(f"{here}:9", f"{nowhere}:80", "127.0.0.2:9")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{here}:9 open open",
        f"{nowhere}:80 silent silent",
        "127.0.0.2:9 open open",
        "ipv6 none",
    ]


def test_it_tells_of_an_ipv6_address_on_any_link() -> None:
    link = "ip link add up0 type veth peer name up1; ip link set up0 up; ip -6 address add fd00::7/64 dev up0;"
    done = probe("127.0.0.2:9", first=link)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["127.0.0.2:9 open open", "ipv6 here"]


@pytest.mark.parametrize(
    "word",
    [
        "",
        "127.0.0.1",
        "127.0.0:1",
        "127.0.0.1:",
        "127.0.0.256:1",
        "127.0.0.1:65536",
        "127.0.0.1:1x",
        "a.b:1",
        *_NO_IPV6,
    ],
)
def test_what_is_no_address_is_refused(word: str) -> None:
    done = probe(word)

    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr == "runner-init: not an address to probe\n"

from ipaddress import IPv4Address, IPv4Network

from runner.adapters.network.rules import Isolation, Rules, Segment
from runner.destination import NEVER, PRIVATE, Destination

WIDE = Segment(bridge="runner0", subnet=IPv4Network("10.77.0.0/24"))
NARROW = Segment(
    bridge="runner0-1",
    subnet=IPv4Network("10.77.1.0/24"),
    allow=(Destination(range=IPv4Network("203.0.113.0/24")), Destination(range=IPv4Network("203.0.114.1/32"), port=80)),
)


def lines(rules: Rules) -> list[str]:
    return [line.strip() for line in rules.script().splitlines()]


def test_tables_are_replaced_whole_so_that_nothing_old_stays() -> None:
    told = lines(Rules(table="ours", segments=(WIDE,)))

    for family in ("inet", "bridge"):
        first = told.index(f"add table {family} ours")
        assert told[first + 1 : first + 3] == [f"delete table {family} ours", f"table {family} ours {{"]


def test_a_segment_without_a_list_has_no_last_word() -> None:
    assert not [
        line for line in lines(Rules(table="ours", segments=(WIDE,))) if line.startswith('iifname "runner0" ip d')
    ]


def test_a_list_ends_with_a_refusal_of_all_else() -> None:
    told = lines(Rules(table="ours", segments=(WIDE, NARROW)))

    first = told.index('iifname "runner0-1" ip daddr 203.0.113.0/24 accept')
    assert told[first + 1 : first + 3] == [
        'iifname "runner0-1" ip daddr 203.0.114.1/32 meta l4proto { tcp, udp } th dport 80 accept',
        'iifname "runner0-1" reject with icmp type admin-prohibited',
    ]


def test_what_is_never_open_is_refused_before_anything_is_opened() -> None:
    told = lines(Rules(table="ours", segments=(NARROW,), private=(IPv4Network("10.0.0.0/8"),)))

    never = next(n for n, line in enumerate(told) if str(NEVER[0]) in line)
    private = next(n for n, line in enumerate(told) if str(PRIVATE[-1]) in line)
    allowed = next(n for n, line in enumerate(told) if line.endswith("/24 accept"))
    assert never < private < allowed
    assert "ip daddr != { 10.0.0.0/8 } reject" in told[private]


def test_only_named_servers_are_asked_for_names() -> None:
    without = lines(Rules(table="ours", segments=(WIDE,)))
    named = lines(Rules(table="ours", segments=(WIDE,), nameservers=(IPv4Address("198.51.100.53"),)))

    accepted = "ip daddr { 198.51.100.53 } meta l4proto { tcp, udp } th dport 53 accept"
    assert accepted not in without
    assert named.count(accepted) == 2  # on the way out, and where this host itself is the server
    assert "meta l4proto { tcp, udp } th dport 53 reject with icmp type admin-prohibited" in without


def test_frames_are_told_by_their_bridge_where_the_kernel_can() -> None:
    assert 'meta ibrname "runner0" drop' in lines(Rules(table="ours", segments=(WIDE,)))
    assert "arp daddr ip 10.77.0.0/24 drop" in lines(Rules(table="ours", segments=(WIDE,), isolation=Isolation.ADDRESS))

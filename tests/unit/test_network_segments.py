from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from runner.adapters.network import host
from runner.adapters.network.host import name_servers, routed
from runner.adapters.network.record import Made, Record, RecordFile
from runner.adapters.network.rules import Isolation, Segment
from runner.adapters.network.segments import free_subnet, network_of, table_name, wanted_networks
from runner.destination import Destination
from runner.errors import HostError

LIST = (Destination(range=IPv4Network("203.0.113.0/24"), port=443),)


def test_there_is_one_network_for_all_and_one_for_each_list() -> None:
    wide, narrow = wanted_networks("runner0", {"python-3.11": LIST, "busybox": ()})

    assert (wide.name, wide.bridge, wide.allow) == ("runner0", "runner0", None)
    assert (narrow.name, narrow.allow) == ("runner0-python-3.11", LIST)
    assert narrow == network_of("runner0", "python-3.11", LIST)
    assert wide == network_of("runner0", "busybox", ())


def test_an_interface_has_a_name_that_the_kernel_takes_and_that_stays() -> None:
    names = {network_of("a-long-bridge-x", f"stack-{number}", LIST).bridge for number in range(100)}

    assert len(names) == 100
    assert all(len(name) <= 15 for name in names)
    assert network_of("runner0", "python-3.11", LIST).bridge == "runner0-b0eabe"


@pytest.mark.parametrize(
    ("within", "taken", "free"),
    [
        ("10.0.0.0/16", [], "10.0.0.0/22"),
        ("10.0.0.0/16", ["10.0.0.7/32", "10.0.4.0/22"], "10.0.8.0/22"),
        ("10.0.0.0/24", [], "10.0.0.0/24"),
        ("10.0.0.0/24", ["10.0.0.0/8"], None),
    ],
)
def test_a_subnet_is_the_first_free_part(within: str, taken: list[str], free: str | None) -> None:
    found = free_subnet(IPv4Network(within), [IPv4Network(text) for text in taken])

    assert found == (IPv4Network(free) if free else None)


def test_a_table_has_a_name_that_nft_takes() -> None:
    assert table_name("runner-0") == "runner_runner_0"


def test_name_servers_are_those_that_a_job_could_reach(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# ours\nnameserver 127.0.0.53\noptions edns0\n")
    real.write_text("nameserver 2001:db8::53\nnameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver broken\n")

    assert name_servers((stub, real)) == (IPv4Address("192.0.2.53"),)
    assert name_servers((stub, tmp_path / "none")) == ()


def test_routes_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )

    assert routed(table) == (IPv4Network("192.0.2.0/24"),)


def test_the_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record(
        table="runner_runner0",
        networks=(
            Made(name="runner0", segment=Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22"))),
            Made(name="a", segment=Segment(bridge="b", subnet=IPv4Network("198.18.4.0/22"), allow=LIST)),
        ),
        nameservers=(IPv4Address("192.0.2.53"),),
        private=(IPv4Network("10.0.0.0/24"),),
        connections=7,
        isolation=Isolation.ADDRESS,
    )
    file = RecordFile(tmp_path / "state")
    assert file.read() is None

    file.write(record)

    assert file.read() == record
    assert file.resolv_conf.read_text() == "nameserver 192.0.2.53\n"
    (tmp_path / "state/egress.json").write_text("{}")
    with pytest.raises(HostError, match="cannot be read; run: runner network apply"):
        file.read()
    (tmp_path / "state/egress.json.new").symlink_to(tmp_path / "elsewhere")
    file.write(record)
    assert file.read() == record
    assert not (tmp_path / "elsewhere").exists()
    file.remove()
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ('"runner_runner0"', '"runner_runner0; flush ruleset"'),
        ('"runner_runner0"', '"filter"'),
        ('"bridge":"runner0"', '"bridge":"runner0\\" drop"'),
        ('"name":"runner0"', '"name":"../runner0"'),
    ],
)
def test_a_record_with_names_that_we_never_make_is_not_believed(tmp_path: Path, ours: str, theirs: str) -> None:
    made = Made(name="runner0", segment=Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22")))
    file = RecordFile(tmp_path)
    file.write(
        Record(
            table="runner_runner0",
            networks=(made,),
            nameservers=(),
            private=(),
            connections=7,
            isolation=Isolation.ADDRESS,
        )
    )
    path = tmp_path / "egress.json"
    text = path.read_text().replace('": ', '":')
    assert text.count(ours) == 1
    path.write_text(text.replace(ours, theirs))

    with pytest.raises(HostError, match="names what we never make; run: runner network apply"):
        file.read()


def test_what_passes_between_ports_is_seen_only_where_both_families_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = (tmp_path / "4", tmp_path / "6")
    monkeypatch.setattr(host, "_BRIDGED", switches)
    switches[0].write_text("1\n")
    switches[1].write_text("0\n")

    assert not host.sees_bridged()
    assert host.see_bridged()
    assert host.sees_bridged()
    assert not host.see_bridged()

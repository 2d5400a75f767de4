"""Who may reach out, by what was applied and what was proven."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.fakes import STACK

from runner.adapters.network.record import Made, Record, RecordFile
from runner.adapters.network.rules import Isolation, Segment
from runner.adapters.network.segments import network_of
from runner.app.egress import Gate
from runner.destination import Destination
from runner.errors import DeferredError
from runner.settings import load_settings

LIST = (Destination(range=IPv4Network("203.0.113.0/24")),)
NARROW = network_of("runner0", STACK.name, LIST)
RECORD = Record(
    table="runner_runner0",
    networks=(
        Made(name="runner0", segment=Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22"))),
        Made(name=NARROW.name, segment=NARROW.on(IPv4Network("198.18.4.0/22"))),
    ),
    nameservers=(IPv4Address("192.0.2.53"),),
    private=(),
    connections=4096,
    isolation=Isolation.ADDRESS,
)


def gate(state_dir: Path, record: Record | None = RECORD, settings: Mapping[str, str] | None = None) -> Gate:
    if record is not None:
        RecordFile(state_dir).write(record)
    environ = {"RUNNER_CONFIG": str(state_dir / "none.toml"), "RUNNER_WORKER__STATE_DIR": str(state_dir)}
    (state_dir / "none.toml").touch()
    return Gate(load_settings(environ | dict(settings or {})))


def prove(gate: Gate) -> None:
    for made in gate.networks:
        gate.found(made.name, None)


def test_nobody_may_before_the_networks_are_made_and_proven(state_dir: Path) -> None:
    assert "not set up; run: runner network apply" in str(gate(state_dir, None).refusal(STACK))
    made = gate(state_dir)
    assert "is not proven: runner0: it was not probed yet" in str(made.refusal(STACK))

    prove(made)

    assert made.refusal(STACK) is None
    assert made.problem() is None
    assert made.status() == {"proven": True, "problem": None}
    access = made.access(STACK)
    assert (access.network, access.nameservers) == ("runner0", ("192.0.2.53",))
    assert access.resolv_conf.read_text() == "nameserver 192.0.2.53\n"


def test_a_stack_with_a_list_has_its_own_network_or_none(state_dir: Path) -> None:
    proven = gate(state_dir)
    prove(proven)

    assert proven.access(replace(STACK, allow=LIST)).network == NARROW.name
    with pytest.raises(DeferredError, match="has no network on this worker for its list; run: runner network apply"):
        proven.access(replace(STACK, allow=(*LIST, Destination(range=IPv4Network("192.0.2.9/32")))))


def test_one_network_that_is_not_proven_keeps_no_other_from_use(state_dir: Path) -> None:
    proven = gate(state_dir)
    prove(proven)
    proven.found(NARROW.name, "the metadata address (169.254.169.254:80) can be reached")

    assert proven.refusal(STACK) is None
    assert "can be reached" in str(proven.refusal(replace(STACK, allow=LIST)))
    assert "can be reached" in str(proven.problem())


def test_settings_that_changed_count_for_nobody_until_they_are_applied(state_dir: Path) -> None:
    changed = gate(state_dir, settings={"RUNNER_NETWORK__PRIVATE": '["10.0.0.0/24"]'})
    prove(changed)

    assert "changed since they were applied: network.private; run: runner network apply" in str(changed.refusal(STACK))


def test_what_is_applied_anew_is_noticed_and_what_it_changed_is_unproven(state_dir: Path) -> None:
    noticing = gate(state_dir)
    prove(noticing)
    assert not noticing.reread()

    RecordFile(state_dir).write(RECORD)
    assert noticing.reread()
    assert noticing.refusal(STACK) is None
    RecordFile(state_dir).write(replace(RECORD, connections=17))
    assert noticing.reread()
    assert noticing.refusal(STACK) is not None
    RecordFile(state_dir).remove()
    assert noticing.reread()
    assert "not set up" in str(noticing.refusal(STACK))

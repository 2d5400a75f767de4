from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from runner.adapters.network.proof import Proof, Target, judge, targets_on
from runner.adapters.network.record import Made, Record
from runner.adapters.network.rules import Isolation, Segment
from runner.destination import PRIVATE, Destination

WIDE = Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22"))


def record(segment: Segment, **fields: object) -> Record:
    plain: dict[str, object] = {
        "table": "runner_runner0",
        "networks": (Made(name="runner0", segment=segment),),
        "nameservers": (IPv4Address("192.0.2.77"),),
        "private": (),
        "connections": 4096,
        "isolation": Isolation.ADDRESS,
    }
    return Record(**(plain | fields))  # type: ignore[arg-type]


def targets(segment: Segment, engine_port: int | None = None, **fields: object) -> dict[str, Target]:
    found = targets_on(
        segment,
        record(segment, **fields),
        neighbour=IPv4Address("198.18.0.2"),
        beside=IPv4Address("198.18.4.2"),
        host=IPv4Address("203.0.113.1"),
        host_6=IPv6Address("2001:db8::7"),
        engine_port=engine_port,
    )
    return {target.what: target for target in found}


def told(found: dict[str, Target], **answers: str) -> str:
    """What a probe tells of a network that is as it should be, but for some answers by the target's first words."""
    lines = [f"ipv6 {answers.pop('ipv6', 'none')}\n"]
    for what, target in found.items():
        usual = "open open" if target.wanted else "filtered silent" if target.refused else "silent silent"
        answer = next((text for name, text in answers.items() if what.startswith(name.replace("_", " "))), usual)
        lines.append(f"{target.word.lstrip('+')} {answer}\n")
    return "".join(lines)


def judged(found: dict[str, Target], **answers: str) -> Proof:
    return judge(tuple(found.values()), told(found, **answers))


def test_everything_that_has_to_be_shut_is_tried() -> None:
    tried = {what: target.word for what, target in targets(WIDE, engine_port=2375).items()}

    assert tried == {
        "this host": "+198.18.0.1:9",
        "this host's outward address": "203.0.113.1:9",
        "the engine": "198.18.0.1:2375",
        "a neighbour": "198.18.0.2:9",
        "a container on another network": "198.18.4.2:9",
        "the metadata address": "+169.254.169.254:80",
        "a private address": "+10.255.255.254:9",
        "another name server": "+198.51.100.77:53",
        "the name server": "192.0.2.77:53",
        "this host over IPv6": "[2001:0db8:0000:0000:0000:0000:0000:0007]:9",
        "the IPv6 metadata address": "[fd00:0ec2:0000:0000:0000:0000:0000:0254]:80",
    }


def test_what_the_operator_opened_is_not_tried() -> None:
    opened = targets(WIDE, private=(PRIVATE[0],))
    everything = targets(WIDE, private=PRIVATE)

    assert opened["a private address"].address in PRIVATE[1]
    assert "a private address" not in everything


def test_on_a_network_with_a_list_an_address_that_is_not_on_it_is_tried() -> None:
    listed = (
        Destination(range=IPv4Network("192.0.2.0/24")),
        Destination(range=IPv4Network("198.51.100.0/24"), port=80),
    )
    narrow = Segment(bridge="b", subnet=IPv4Network("198.18.4.0/22"), allow=listed)

    assert targets(narrow)["an address that is not on the list"].word == "+198.51.100.77:443"


def test_a_network_is_proven_when_our_rules_say_no() -> None:
    assert judged(targets(WIDE)).holds
    assert judged(targets(WIDE), the_name="silent silent").holds  # it may be down
    assert judged(targets(WIDE), a_neighbour="filtered filtered").holds


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"a_neighbour": "silent open"}, "a neighbour (198.18.0.2:9) can be reached"),
        ({"a_container": "silent open"}, "a container on another network (198.18.4.2:9) can be reached"),
        ({"ipv6": "here"}, "whoever is on the same link, over IPv6, can be reached"),
        ({"ipv6": ""}, "whoever is on the same link, over IPv6,: no refusal came from our rules"),
        ({"the_metadata": "open silent"}, "the metadata address (169.254.169.254:80) can be reached"),
        ({"this_host_over": "open silent"}, "this host over IPv6 ([2001:db8::7]:9) can be reached"),
        ({"a_private": "silent silent"}, "a private address (10.255.255.254:9): no refusal came from our rules"),
        ({"the_name": "filtered filtered"}, "the name server is refused: no refusal came from our rules"),
    ],
)
def test_it_is_not_when_something_is_open_or_nobody_says_no(answers: dict[str, str], told: str) -> None:
    proof = judged(targets(WIDE), **answers)

    assert not proof.holds
    assert str(proof) == told


def test_a_probe_that_told_nothing_proves_nothing() -> None:
    proof = judge(tuple(targets(WIDE).values()), "runner-init: not an address to probe\n")

    assert not proof.holds
    assert len(proof.unproven) == 10

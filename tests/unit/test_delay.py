"""The way of a delayed job through the levels, followed as a topic exchange would."""

import re

from aio_pika import ExchangeType
from hypothesis import given
from hypothesis import strategies as st

from runner.adapters.amqp.names import DELAY_LEVELS, Names, delay_path
from runner.adapters.amqp.topology import Topology, describe_topology, job_queues
from runner.job import Priority, Route

NAMES = Names("ns")
ROUTE = Route(pool="default", priority=Priority.LOW, tenant="acme")
TOPOLOGY = describe_topology(NAMES, job_queues(["default"], ["named"]))
LONGEST = 2**DELAY_LEVELS - 1


def matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange takes the key for the pattern."""
    words = [{"*": r"[^.]*", "#": r".*"}.get(word, re.escape(word)) for word in pattern.split(".")]
    expression = r"\.".join(words).replace(r"\..*", r"(\..*)?").replace(r".*\.", r"(.*\.)?")
    return re.fullmatch(expression, key) is not None


def follow(topology: Topology, exchange: str, key: str) -> tuple[int, list[str]]:
    """Seconds spent in the queues of the levels, and the queues where the message arrives."""
    ttl = {queue.name: queue.arguments.get("x-message-ttl", 0) // 1000 for queue in topology.queues}
    onward = {queue.name: queue.arguments.get("x-dead-letter-exchange") for queue in topology.queues}
    alternate = {each.name: each.alternate for each in topology.exchanges}
    fanouts = {each.name for each in topology.exchanges if each.type is ExchangeType.FANOUT}
    targets = [
        each
        for each in topology.bindings
        if each.source == exchange and (exchange in fanouts or matches(each.key, key))
    ]
    if not targets:
        other = alternate[exchange]
        return follow(topology, other, key) if other is not None else (0, [])
    waited, arrived = 0, list[str]()
    for binding in targets:
        if binding.to_exchange:
            seconds, queues = follow(topology, binding.target, key)
        elif ttl[binding.target]:
            seconds, queues = follow(topology, str(onward[binding.target]), key)
            seconds += ttl[binding.target]
        else:
            seconds, queues = 0, [binding.target]
        waited, arrived = waited + seconds, arrived + queues
    return waited, arrived


@given(st.integers(1, LONGEST))
def test_a_job_waits_exactly_as_long_as_it_should_and_arrives_once(seconds: int) -> None:
    path = delay_path(seconds, ROUTE)
    assert path is not None
    level, key = path
    assert follow(TOPOLOGY, NAMES.delay(level), key) == (seconds, ["ns.q.default.low"])


@given(st.integers(1, LONGEST))
def test_a_job_enters_at_the_highest_level_that_it_needs(seconds: int) -> None:
    path = delay_path(seconds, ROUTE)
    assert path is not None
    assert 2 ** path[0] <= seconds < 2 ** (path[0] + 1)


def test_a_named_tenants_job_arrives_once_in_its_own_queue() -> None:
    route = Route(pool="default", priority=Priority.HIGH, tenant="named")
    path = delay_path(5, route)
    assert path is not None
    assert follow(TOPOLOGY, NAMES.delay(path[0]), path[1]) == (5, ["ns.q.default.high.named"])


def test_a_job_that_no_pool_takes_ends_with_the_dead_letters() -> None:
    path = delay_path(3, Route(pool="nowhere", priority=Priority.HIGH, tenant="acme"))
    assert path is not None
    assert follow(TOPOLOGY, NAMES.delay(path[0]), path[1]) == (3, ["ns.dead"])


def test_no_delay_is_no_way() -> None:
    assert delay_path(0, ROUTE) is None
    assert delay_path(-1, ROUTE) is None


def test_what_is_longer_than_all_levels_together_waits_as_long_as_they_can() -> None:
    assert delay_path(LONGEST + 1, ROUTE) == delay_path(LONGEST, ROUTE)


def test_a_fresh_job_goes_to_its_tenants_queue_else_to_the_shared_one() -> None:
    assert follow(TOPOLOGY, "ns", "default.low.acme") == (0, ["ns.q.default.low"])
    assert follow(TOPOLOGY, "ns", "default.low.named") == (0, ["ns.q.default.low.named"])
    assert follow(TOPOLOGY, "ns", "nowhere.low.acme") == (0, ["ns.unrouted"])
    assert follow(TOPOLOGY, "ns", "default.urgent.acme") == (0, ["ns.unrouted"])
    assert follow(TOPOLOGY, "ns", "low") == (0, ["ns.unrouted"])

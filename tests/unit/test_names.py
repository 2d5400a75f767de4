"""What exchanges and queues are called, as everybody outside relies on it."""

import pytest

from runner.adapters.amqp.names import Names, is_server_named
from runner.job import Priority
from runner.ports import QueueKey

NAMES = Names("jobs")


def test_the_names_are_those_of_the_contract() -> None:
    assert (NAMES.submit, NAMES.shared, NAMES.unrouted) == ("jobs", "jobs.shared", "jobs.unrouted")
    assert (NAMES.events, NAMES.logs, NAMES.reply) == ("jobs.events", "jobs.logs", "jobs.reply")
    assert (NAMES.control, NAMES.cancelled, NAMES.history) == ("jobs.control", "jobs.cancelled", "jobs.history")
    assert (NAMES.dead, NAMES.lost) == ("jobs.dead", "jobs.lost")
    assert (NAMES.delay_out, NAMES.delay_shared) == ("jobs.delay.out", "jobs.delay.shared")
    assert (NAMES.delay(0), NAMES.delay(19)) == ("jobs.delay.00", "jobs.delay.19")
    assert NAMES.worker_lease("w1") == "jobs.w.w1.lease"
    assert NAMES.worker_lock("w1") == "jobs.w.w1.lock"


def test_a_named_tenants_queue_has_the_tenant_in_its_name() -> None:
    assert NAMES.jobs(QueueKey(pool="gpu", priority=Priority.HIGH)) == "jobs.q.gpu.high"
    assert NAMES.jobs(QueueKey(pool="gpu", priority=Priority.LOW, tenant="acme")) == "jobs.q.gpu.low.acme"


def test_each_level_of_delay_leads_to_the_one_below() -> None:
    assert [NAMES.below(level) for level in (2, 1, 0)] == ["jobs.delay.01", "jobs.delay.00", "jobs.delay.out"]


@pytest.mark.parametrize(
    "exchange", ["jobs.lease", "jobs.lost", "jobs.delay.00", "jobs.delay.out", "jobs.delay.shared"]
)
def test_headers_of_ours_count_on_what_comes_by_our_own_ways(exchange: str) -> None:
    assert NAMES.is_internal(exchange)


@pytest.mark.parametrize(
    "exchange", ["", "jobs", "jobs.shared", "jobs.dead", "jobs.events", "jobs.unrouted", "jobs.delay", "other.lease"]
)
def test_they_do_not_count_on_anything_else(exchange: str) -> None:
    assert not NAMES.is_internal(exchange)


def test_a_cancel_names_tenant_and_job() -> None:
    assert NAMES.cancel_key("acme", "j1") == "job.acme.j1.cancel"


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("amq.rabbitmq.reply-to.g1h2", True),
        ("amq.gen-abc", True),
        ("amq.rabbitmq.reply-to.", False),
        ("amq.gen-", False),
        ("my.queue", False),
        ("x.amq.gen-abc", False),
        ("jobs.dead", False),
        ("", False),
    ],
)
def test_only_queues_that_the_server_named_are_reached_directly(queue: str, *, expected: bool) -> None:
    assert is_server_named(queue) is expected

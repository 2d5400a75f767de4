"""Which queues are listened to when there is not room for all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from runner.adapters.amqp.share import WEIGHTS, Shares
from runner.job import Priority
from runner.ports import QueueKey

HIGH, NORMAL, LOW = (QueueKey(pool="default", priority=priority) for priority in Priority)
ALL = [HIGH, NORMAL, LOW]


def choose(
    shares: Shares, backlog: Mapping[QueueKey, int], count: int, queues: Sequence[QueueKey] = ALL
) -> list[QueueKey]:
    return shares.choose(dict.fromkeys(queues, 0.0), backlog, count)


def serve(backlog: dict[QueueKey, int], turns: int, shares: Shares | None = None) -> Counter[QueueKey]:
    """Take one job at a time, as a worker with one slot does; who was served how often."""
    shares, served = shares or Shares(), Counter[QueueKey]()
    for _ in range(turns):
        [queue] = choose(shares, backlog, 1, list(backlog))
        if backlog[queue] == 0:
            break
        backlog[queue] -= 1
        served[queue] += 1
        shares.served(queue)
    return served


def test_jobs_are_taken_by_weight() -> None:
    served = serve(dict.fromkeys(ALL, 10_000), 1300)
    for queue in ALL:
        assert served[queue] == pytest.approx(100 * WEIGHTS[queue.priority], abs=2)


def test_a_lonely_low_job_starts_soon_beside_any_number_of_high_ones() -> None:
    shares, backlog = Shares(), {HIGH: 10_000, NORMAL: 0, LOW: 0}
    serve(backlog, 500, shares)
    backlog[LOW] = 1
    assert serve(backlog, 9, shares)[LOW] == 1


def test_a_high_job_starts_at_once_beside_any_number_of_low_ones() -> None:
    shares, backlog = Shares(), {HIGH: 0, NORMAL: 0, LOW: 10_000}
    serve(backlog, 500, shares)
    backlog[HIGH] = 5
    assert serve(backlog, 6, shares)[HIGH] >= 4


def test_who_was_idle_for_long_gets_no_credit_for_it() -> None:
    shares, backlog = Shares(), {HIGH: 0, NORMAL: 10_000, LOW: 0}
    serve(backlog, 5000, shares)
    backlog[LOW] = 10_000
    served = serve(backlog, 50, shares)
    assert served[LOW] == pytest.approx(10, abs=2)


def test_where_nothing_waits_all_are_listened_to() -> None:
    assert set(choose(Shares(), {}, 3)) == set(ALL)
    assert set(choose(Shares(), {}, 99)) == set(ALL)


def test_no_more_are_listened_to_than_there_is_room_for() -> None:
    for count in range(4):
        assert len(choose(Shares(), {HIGH: 1}, count)) == count


def test_the_most_urgent_goes_first_among_equals() -> None:
    assert choose(Shares(), {HIGH: 1, NORMAL: 1, LOW: 1}, 1) == [HIGH]


def test_a_queue_that_is_due_goes_before_one_where_nothing_waits() -> None:
    assert choose(Shares(), {LOW: 1}, 1) == [LOW]


def test_a_busy_queue_that_had_its_share_pauses_until_the_others_caught_up() -> None:
    shares = Shares()
    backlog = {HIGH: 100, LOW: 100}
    for _ in range(3):
        shares.served(LOW)
    assert LOW not in choose(shares, backlog, 3)
    for _ in range(8 * 3):
        shares.served(HIGH)
    assert LOW in choose(shares, backlog, 3)


def test_the_only_queue_with_work_is_listened_to_as_often_as_it_may_be() -> None:
    ranks = dict.fromkeys(ALL, 0.0)
    assert Counter(Shares().choose(ranks, {LOW: 9}, 99, {LOW: 4})) == {HIGH: 1, NORMAL: 1, LOW: 4}
    assert Counter(Shares().choose(ranks, {LOW: 9}, 4, {LOW: 4})) == {HIGH: 1, NORMAL: 1, LOW: 2}
    assert Shares().choose(ranks, {LOW: 9}, 1, {LOW: 4}) == [LOW]


def test_where_two_queues_have_work_each_is_listened_to_once() -> None:
    limits = {LOW: 4, HIGH: 4}
    chosen = Shares().choose(dict.fromkeys(ALL, 0.0), {LOW: 9, HIGH: 1}, 99, limits)
    assert Counter(chosen) == {HIGH: 1, NORMAL: 1, LOW: 1}
    # One that may not be listened to now has its work all the same.
    chosen = Shares().choose(dict.fromkeys(ALL, 0.0), {LOW: 9, HIGH: 1}, 99, {**limits, HIGH: 0})
    assert Counter(chosen) == {NORMAL: 1, LOW: 1}


def test_within_a_priority_the_tenant_that_spent_the_least_goes_first() -> None:
    queues = [QueueKey(pool="default", priority=Priority.NORMAL, tenant=tenant) for tenant in ("a", "b")]
    shares = Shares()
    for ranks, expected in (([1.0, 2.0], queues[0]), ([2.0, 1.0], queues[1])):
        assert shares.choose(dict(zip(queues, ranks, strict=True)), dict.fromkeys(queues, 1), 1) == [expected]


def test_pools_do_not_take_turns_from_each_other() -> None:
    other = QueueKey(pool="gpu", priority=Priority.HIGH)
    served = serve({HIGH: 1000, other: 1000}, 100)
    assert served[HIGH] == served[other] == 50

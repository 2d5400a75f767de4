"""Whose turn it is."""

from runner.fairness import Fairness, Share


def test_the_one_that_spent_least_by_its_weight_goes_first() -> None:
    fairness = Fairness({"acme": Share(weight=2)})
    for claim, tenant in (("1", "acme"), ("2", "globex")):
        fairness.started(claim, tenant, cpus=1, now=0)
        fairness.ended(claim, cpu_seconds=30, now=40)
    assert fairness.debt("acme", now=40) == 15
    assert fairness.debt("globex", now=40) == 30
    assert fairness.debt("nobody", now=40) == 0


def test_a_running_job_counts_for_what_it_claims() -> None:
    fairness = Fairness({})
    fairness.started("1", "acme", cpus=0.5, now=0)
    assert fairness.debt("acme", now=0) == 0.5, "a second at least, or a burst would be free"
    assert fairness.debt("acme", now=20) == 10
    fairness.ended("1", cpu_seconds=None, now=20)
    assert fairness.debt("acme", now=20) == 10


def test_what_was_spent_is_forgotten() -> None:
    fairness = Fairness({})
    fairness.started("1", "acme", cpus=1, now=0)
    fairness.ended("1", cpu_seconds=5, now=10)
    assert fairness.debt("acme", now=610) == 5
    assert fairness.debt("acme", now=611) == 0


def test_what_is_remembered_is_bounded_though_nobody_asks() -> None:
    fairness = Fairness({})
    for number in range(20_000):
        fairness.started("1", "acme", cpus=1, now=number / 10)
        fairness.ended("1", cpu_seconds=1, now=number / 10)
    assert len(fairness._ended) <= 601
    assert fairness._spent == {"acme": fairness.debt("acme", now=number / 10)}
    assert abs(fairness.debt("acme", now=number / 10) - 6000) <= 10


def test_a_cap_can_change_while_jobs_run() -> None:
    fairness = Fairness({"acme": Share(max_running=2)})
    fairness.started("1", "acme", cpus=1, now=0)
    assert not fairness.full("acme")
    fairness.started("2", "acme", cpus=1, now=0)
    assert fairness.full("acme")
    fairness.shares = {"acme": Share(max_running=3)}
    assert not fairness.full("acme")
    fairness.shares = {}
    assert not fairness.full("acme")
    fairness.ended("1", cpu_seconds=0, now=1)
    fairness.ended("1", cpu_seconds=0, now=1)
    assert fairness.running("acme") == 1

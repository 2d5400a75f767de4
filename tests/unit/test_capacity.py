"""Who starts next, and why not: single decisions, and simulated arrivals."""

import heapq
import random
from dataclasses import dataclass
from datetime import timedelta

import pytest

from runner.capacity import NOTHING, Budget, Capacity, Claim
from runner.job import Bytes, Limits

MIB = 2**20
SMALL = Claim(millicpus=500, memory=Bytes(320 * MIB))


def claim(cpus: float, mib: int = 64) -> Claim:
    return Claim(millicpus=round(cpus * 1000), memory=Bytes(mib * MIB))


def capacity(cpus: float = 4, mib: int = 8192, max_jobs: int = 64) -> Capacity:
    return Capacity(budget=Budget(total=claim(cpus, mib), max_jobs=max_jobs), typical=SMALL)


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def test_disk_counts_as_memory() -> None:
    limits = Limits(cpus=0.25, memory=Bytes(100), disk=Bytes(28))
    assert Claim.of(limits) == Claim(millicpus=250, memory=Bytes(128))


def on_disk(gib: int) -> Claim:
    return Claim(millicpus=100, memory=Bytes(MIB), disk=Bytes(gib * 2**30))


def test_scratch_is_claimed_of_what_the_disk_has_now() -> None:
    assert Claim.of(Limits(scratch=Bytes(7))).disk == 7
    ledger = capacity()
    ledger.resize(Bytes(10 * 2**30))
    ledger.offer("a", on_disk(6), hours(1), now=0)
    ledger.offer("b", on_disk(6), hours(1), now=0)
    assert ledger.admit(0) == ["a"]
    assert ledger.waits_for("b") == "needs 6 GiB of scratch disk, 4 GiB are free"
    ledger.resize(Bytes(12 * 2**30))
    assert ledger.admit(1) == ["b"]


def test_what_runs_is_wanted_while_anybody_waits_or_no_more_can_be_asked_for() -> None:
    ledger = capacity(cpus=2, max_jobs=2)
    assert not ledger.wanted()
    ledger.offer("small", claim(0.5), hours(1), now=0)
    ledger.admit(0)
    assert not ledger.wanted()
    ledger.offer("big", claim(2), hours(1), now=0)
    ledger.admit(0)
    assert ledger.room() > 0
    assert ledger.wanted()
    ledger.withdraw("big")
    assert not ledger.wanted()
    ledger.offer("other", claim(0.5), hours(1), now=0)
    ledger.admit(0)
    assert ledger.wanted()


def test_what_runs_is_wanted_by_who_waits_for_its_disk() -> None:
    ledger = capacity()
    ledger.resize(Bytes(10 * 2**30))
    for name in ("runs", "waits"):
        ledger.offer(name, on_disk(6), hours(1), now=0)
        ledger.admit(0)
    assert ledger.room() > 0
    assert ledger.wanted()


def test_who_waits_for_more_than_the_disk_could_hold_waits_in_vain() -> None:
    ledger = capacity()
    ledger.resize(Bytes(10 * 2**30))
    for name, size in (("runs", 8), ("big", 8), ("small", 4), ("none", 0)):
        ledger.offer(name, on_disk(size), hours(1), now=0)
    assert ledger.admit(0) == ["runs", "none"]
    assert ledger.hopeless() == []
    ledger.resize(Bytes(7 * 2**30))
    assert ledger.hopeless() == ["big"]


def test_a_disk_that_others_filled_keeps_nobody_waiting_who_wants_none() -> None:
    ledger = capacity()
    ledger.resize(Bytes(10 * 2**30))
    ledger.offer("a", on_disk(6), hours(1), now=0)
    assert ledger.admit(0) == ["a"]
    ledger.resize(Bytes(2**30))
    ledger.offer("none", on_disk(0), hours(1), now=1)
    ledger.offer("some", on_disk(1), hours(1), now=1)
    assert ledger.admit(1) == ["none"]
    assert ledger.waits_for("some") == "needs 1 GiB of scratch disk, 0 bytes are free"


@pytest.mark.parametrize(
    ("budget", "jobs", "started"),
    [
        (capacity(cpus=1), [claim(0.5), claim(0.5), claim(0.5)], 2),
        (capacity(mib=100), [claim(0.1, 50), claim(0.1, 51)], 1),
        (capacity(max_jobs=2), [claim(0.1), claim(0.1), claim(0.1)], 2),
        (capacity(cpus=0.3), [claim(0.1), claim(0.1), claim(0.1)], 3),
    ],
)
def test_nothing_starts_beyond_the_budget(budget: Capacity, jobs: list[Claim], started: int) -> None:
    for number, wanted in enumerate(jobs):
        budget.offer(str(number), wanted, hours(1), now=0)
    assert budget.admit(0) == [str(number) for number in range(started)]


def test_what_is_released_can_be_claimed_again() -> None:
    ledger = capacity(cpus=1)
    ledger.offer("a", claim(1), hours(1), now=0)
    ledger.offer("b", claim(1), hours(1), now=0)
    assert ledger.admit(0) == ["a"]
    assert ledger.admit(1) == []
    ledger.release("a")
    assert ledger.admit(2) == ["b"]
    ledger.release("b")
    assert ledger.claimed == NOTHING


def test_small_jobs_pass_a_big_one_until_its_patience_ends() -> None:
    ledger = capacity(cpus=4)
    ledger.offer("runs", claim(2), hours(1), now=0)
    assert ledger.admit(0) == ["runs"]
    ledger.offer("big", claim(4), hours(1), now=0)
    ledger.offer("small", claim(1), hours(1), now=1)
    assert ledger.admit(1) == ["small"]
    ledger.release("small")
    ledger.offer("late", claim(1), hours(2), now=31)
    assert ledger.admit(31) == [], "it would still run when the big one could start"
    assert ledger.waits_for("late") == "a bigger job that has waited longer comes first"
    assert ledger.waits_for("big") == "needs 4 CPUs, 2 are free"


def test_a_job_that_ends_in_time_uses_what_the_big_one_waits_for() -> None:
    ledger = capacity(cpus=4)
    ledger.offer("runs", claim(2), hours(1), now=0)
    ledger.admit(0)
    ledger.offer("big", claim(4), hours(1), now=0)
    ledger.offer("short", claim(2), timedelta(minutes=5), now=60)
    assert ledger.admit(60) == ["short"]


def test_a_job_that_fits_beside_the_big_one_need_not_wait() -> None:
    ledger = capacity(cpus=4)
    ledger.offer("runs", claim(2), hours(1), now=0)
    ledger.admit(0)
    ledger.offer("big", claim(3), hours(1), now=0)
    ledger.offer("beside", claim(1), hours(9), now=60)
    assert ledger.admit(60) == ["beside"]


def test_room_is_what_jobs_of_the_usual_size_leave() -> None:
    ledger = capacity(cpus=2)
    assert ledger.room() == 4
    for number in range(4):
        ledger.offer(str(number), SMALL, hours(1), now=0)
    assert len(ledger.admit(0)) == 4
    assert ledger.room() == 0


def test_room_follows_smaller_jobs() -> None:
    ledger = capacity(cpus=2)
    for number in range(7):
        ledger.offer(str(number), claim(0.25), hours(1), now=0)
        ledger.admit(0)
    assert ledger.room() == 1


def test_an_idle_worker_that_is_smaller_than_the_default_job_still_asks() -> None:
    assert capacity(cpus=0.3, mib=100).room() == 1


def test_no_more_wait_here_than_the_lookahead() -> None:
    ledger = capacity(cpus=4)
    ledger.offer("runs", claim(3), hours(1), now=0)
    ledger.admit(0)
    for number in range(ledger.lookahead):
        assert ledger.room() > 0
        ledger.offer(f"big{number}", claim(4), hours(1), now=0)
    assert ledger.admit(0) == []
    assert ledger.room() == 0
    ledger.withdraw("big0")
    assert ledger.room() > 0


@dataclass(frozen=True, slots=True)
class Arrival:
    name: str
    claim: Claim
    takes: float


def simulate(ledger: Capacity, arrivals: list[Arrival]) -> tuple[dict[str, float], dict[str, float]]:
    """Feed the queue through the ledger as a worker would; return when each job was taken, and when it started."""
    now, taken, started, ending = 0.0, dict[str, float](), dict[str, float](), list[tuple[float, str]]()
    queue, takes = list(reversed(arrivals)), {arrival.name: arrival.takes for arrival in arrivals}
    while len(started) < len(arrivals):
        while queue and ledger.room() > 0:
            arrival = queue.pop()
            taken[arrival.name] = now
            ledger.offer(arrival.name, arrival.claim, timedelta(minutes=10), now)
            for name in ledger.admit(now):
                started[name] = now
                heapq.heappush(ending, (now + takes[name], name))
        assert ledger.claimed.within(ledger.budget.total)
        if ending:
            now, done = heapq.heappop(ending)
            ledger.release(done)
        for name in ledger.admit(now):
            started[name] = now
            heapq.heappush(ending, (now + takes[name], name))
    return taken, started


@pytest.mark.parametrize("seed", range(20))
def test_neither_big_nor_small_jobs_starve(seed: int) -> None:
    """A flood of small jobs with big ones among them: everybody starts within a bound that the rule implies."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    arrivals = [
        Arrival(f"big{number}", claim(4, 2048), 60)
        if chance.random() < 0.05
        else Arrival(f"small{number}", claim(0.5, 256), chance.uniform(1, 600))
        for number in range(400)
    ]
    ledger = capacity(cpus=4)
    taken, order = simulate(ledger, arrivals)
    work = sum(arrival.takes * arrival.claim.millicpus for arrival in arrivals) / 4000
    assert max(order.values()) <= work * 1.6, "the machine was kept busy"
    for position, arrival in enumerate(arrivals):
        earlier = [order[other.name] for other in arrivals[:position]]
        first = max([taken[arrival.name], *earlier])
        assert order[arrival.name] <= first + 30 + 600, "patience, and one full time-out, after all that came before"


def test_nobody_waits_for_what_a_quarantined_job_holds() -> None:
    ledger = capacity(cpus=4)
    ledger.offer("stuck", claim(1), hours(1), now=0)
    ledger.offer("runs", claim(1), hours(1), now=0)
    assert ledger.admit(0) == ["stuck", "runs"]
    ledger.offer("big", claim(4), hours(1), now=0)
    ledger.offer("fits", claim(3), hours(1), now=0)
    assert ledger.hopeless() == []
    ledger.quarantine("stuck")
    assert ledger.hopeless() == ["big"]
    assert (ledger.reach, ledger.slots) == (claim(3, 8192 - 64), 62)
    ledger.offer("small", claim(1), hours(2), now=100)
    assert ledger.admit(100) == ["small"], "it passes one that waits for nothing"
    ledger.release("stuck")
    assert ledger.hopeless() == []
    assert ledger.reach == claim(4, 8192)

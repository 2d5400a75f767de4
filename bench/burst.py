"""As many jobs at once as containers wait."""

from statistics import median

from bench.found import Found, at_least
from bench.stage import Stage
from bench.subject import HI

_TARGET = 100.0
_ROUNDS = 5


async def measure(stage: Stage) -> Found:
    """From the first publication to the last end that is heard of; before each round the pool is full."""
    pool = stage.options.pool
    rates, warm = list[float](), list[int]()
    async with stage.runner("Runner, warm", warm=pool) as runner:
        for _ in range(_ROUNDS):
            await runner.rest()
            members = await runner.crowd.run(pool, HI)
            began, ended = min(each.published for each in members), max(each.heard for each in members)
            rates.append(pool / (ended - began))
            warm.append(sum(member.warm for member in members))
    rate = median(rates)
    return Found(
        title=f"A burst of {pool} on a pool of {pool}",
        columns=["", "jobs/s, median", "all rounds", "in containers that waited"],
        rows=[["Runner, warm", f"{rate:.0f}", ", ".join(f"{each:.0f}" for each in rates), ", ".join(map(str, warm))]],
        targets=[at_least("a burst as large as the pool", rate, _TARGET, "jobs/s")],
        raw={"jobs": pool, "jobs_per_second": rates, "warm": warm},
    )

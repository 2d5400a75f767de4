"""Which containers an operator wants to be ready before jobs come, by the stacks and the settings as they are now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.adapters.docker.warm import Standing
from runner.errors import RejectedError
from runner.job import LimitsRequest, Network
from runner.plan import Policy, limits_of
from runner.stacks.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingOrders:
    """Asked every few seconds. While no jobs are taken nothing is kept ready."""

    catalog: Catalog
    policy: Policy
    taking: Callable[[], bool]

    async def __call__(self) -> Sequence[Standing] | None:
        """What to keep, None for nothing at all. Raises `EngineGone` or `EngineError` when the engine cannot tell."""
        if not self.taking():
            return None
        standing = []
        for stack, count in await self.catalog.kept_warm():
            try:
                limits = limits_of(stack, self.policy, LimitsRequest())
            except RejectedError:
                continue  # nor could a job without limits of its own be run: its rejection says why
            if limits.scratch or stack.network is not Network.NONE:
                continue  # a disk cannot be mounted later, nor a network be proven
            standing.append(Standing(stack=stack, limits=limits, count=count))
        return standing

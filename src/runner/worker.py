"""MANY jobs: take deliveries, have each of them handled beside the others, start what fits; cancel; drain.

The drain has one order: stop taking, let jobs finish, stop them with a reason, settle, clean up. Cancel, logs and
metrics stay up to the end.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from runner.capacity import Capacity, Claim
from runner.errors import BrokerError
from runner.fairness import Fairness
from runner.handling import Handling
from runner.job import Bytes, JobKey, StopReason
from runner.ports import OpenClaim
from runner.workplace import Outside, Rules, Workplace

log = logging.getLogger(__name__)

_DRAIN = "drain"


class Worker:
    """Takes jobs and sees each of them to its end."""

    def __init__(
        self,
        rules: Rules,
        outside: Outside,
        capacity: Capacity,
        fairness: Fairness | None = None,
        adoptable: Mapping[str, OpenClaim] | None = None,
    ) -> None:
        self._outside = outside
        self._capacity = capacity
        self._place = Workplace(
            rules=rules,
            outside=outside,
            capacity=capacity,
            fairness=fairness or Fairness({}),
            admit=self._admit,
            rest=self._rest,
            adoptable=dict(adoptable or {}),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses: dict[str, str] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._drained = asyncio.Event()

    @property
    def taking(self) -> bool:
        """Whether this worker takes jobs when it has room."""
        return not (self._pauses or self._draining)

    @property
    def draining(self) -> bool:
        """Whether this worker is on its way out."""
        return self._draining

    @property
    def pauses(self) -> Mapping[str, str]:
        """Who keeps this worker from taking jobs, and why."""
        return self._pauses

    @property
    def running(self) -> int:
        """How many jobs have a container now."""
        return sum(1 for held in self._place.held.values() if held.run is not None)

    @property
    def quarantined(self) -> list[JobKey]:
        """The jobs that have ended and whose containers resist being removed."""
        return [held.job.key for held in self._place.held.values() if held.quarantined]

    def waiting(self) -> dict[JobKey, str]:
        """The jobs that wait here for room, and why."""
        why = {held.job.key: self._capacity.waits_for(claim) for claim, held in self._place.held.items()}
        return {key: reason for key, reason in why.items() if reason is not None}

    def held(self) -> dict[str, JobKey]:
        """The jobs that are here, by claim: running, waiting, or left by an earlier life and not taken up yet."""
        left = {claim: earlier.record.key for claim, earlier in self._place.adoptable.items()}
        return left | {claim: held.job.key for claim, held in self._place.held.items()}

    def free(self) -> tuple[Claim, int]:
        """What no running job claims, and how many more jobs could run if they were small enough."""
        return self._capacity.free, max(0, self._capacity.slots)

    async def run(self) -> None:
        """Take and run jobs until `drain` was called and has finished."""
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(self._take(tasks))
            self._ask()
            await self._drained.wait()
            taking.cancel()
            for task in self._tasks:
                task.cancel()  # only removals that get nowhere: the next life has another try

    async def drain(self) -> None:
        """Stop taking; let jobs end for up to `drain_timeout`, then stop them; return when all is settled and clean."""
        log.info("draining", extra={"running": self.running})
        self._draining = True
        self._ask()
        await self._outside.intake.close()
        self._admit()
        await self._empty()
        await self._idle.wait()
        self._drained.set()

    async def drain_until_resumed(self) -> None:
        """The same, but stay: this worker takes jobs again once somebody calls `resume`. Returns when it is empty."""
        self.pause(_DRAIN, "drained by command; the command resume takes it back")
        self._admit()
        await self._empty()

    async def _empty(self) -> None:
        """Let running jobs end for up to `drain_timeout`, then stop them."""
        try:
            async with asyncio.timeout(self._place.rules.drain_timeout.total_seconds()):
                await self._idle.wait()
        except TimeoutError:
            if self._draining or _DRAIN in self._pauses:
                self.stop_all()

    async def hand_over(self) -> None:
        """Stop taking and let go of all running jobs as they are; this worker's next life goes on with them."""
        log.info("handing over", extra={"running": self.running})
        self._draining = self._place.handing_over = True
        self._ask()
        await self._outside.intake.close()
        self._admit()
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()
        self._drained.set()

    def cut_short(self) -> None:
        """Leave whatever could not be settled: the broker is away. Containers are removed all the same."""
        for task in self._tasks:
            task.cancel()

    async def abandon(self) -> None:
        """Give up the claims of our earlier life whose leases have not come back: somebody else has those jobs."""
        for claim, earlier in list(self._place.adoptable.items()):
            log.warning("a lease of an earlier life has not come back", extra={"job_id": earlier.record.key.id})
            del self._place.adoptable[claim]
            self._outside.engine.drop(earlier.record.container_name)
            await self._outside.journal.forgotten(claim)

    async def superseded(self, claim: str) -> None:
        """Give up a claim of our earlier life: somebody else has the job. Running jobs hear of it by their leases."""
        earlier = self._place.adoptable.pop(claim, None)
        if earlier is not None:
            log.warning("a claim of an earlier life is lost", extra={"job_id": earlier.record.key.id, "claim": claim})
            self._outside.engine.drop(earlier.record.container_name)
            await self._outside.journal.ended(claim, finished=False)

    def stop_all(self, *, at_once: bool = False) -> None:
        """End every job that runs, or is about to, so that another worker may run it again."""
        self._place.at_once = self._place.at_once or at_once
        self._place.stopping = True
        for held in self._place.held.values():
            if held.run is not None:
                held.run.stop(StopReason.SHUTDOWN, at_once=at_once)

    def pause(self, who: str, why: str) -> None:
        """Take nothing more until `who` has resumed; what runs goes on."""
        self._pauses[who] = why
        self._ask()

    def resume_all(self) -> None:
        """Take back what the commands `pause` and `drain` did."""
        self.resume("operator")
        self.resume(_DRAIN)

    def resume(self, who: str) -> None:
        """Take jobs again, unless somebody else keeps us from it."""
        if self._pauses.pop(who, None) is not None:
            self._ask()

    def cancel(self, key: JobKey, reason: str) -> None:
        """End the job if it is here; whoever takes it later finds it cancelled by `Outside.cancelled`."""
        self._place.cancel(key, reason)

    def resize(self, disk: Bytes) -> None:
        """This machine's disk has so much for the scratch of all jobs together, those that run included.

        A job that waits for more than that is given back: another worker may have it.
        """
        self._capacity.resize(disk)
        self._give_back()
        self._admit()

    def _give_back(self) -> None:
        """Let others have the jobs that wait here in vain."""
        for claim in self._capacity.hopeless():
            if not (admitted := self._place.held[claim].admitted).done():
                admitted.cancel()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            delivery = await self._outside.intake.take()
            self._idle.clear()
            handling = Handling(place=self._place, delivery=delivery)
            self._ask()
            task = tasks.create_task(self._handle(handling))
            self._tasks.add(task)
            task.add_done_callback(partial(self._handled, handling))

    def _handled(self, handling: Handling, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        handling.arrived()
        self._rest()
        self._ask()

    def _rest(self) -> None:
        """Idle is who has no job but those that have ended and whose containers resist their removal."""
        self._give_back()
        if len(self._tasks) <= len(self.quarantined):
            self._idle.set()

    def _ask(self) -> None:
        """Ask for as much as there is room for, less what is on its way to the ledger."""
        room = self._capacity.room() - self._place.arriving if self.taking else 0
        self._outside.intake.want(max(0, room))

    def _admit(self) -> None:
        """Start what fits; a worker that drains starts nothing."""
        if self._draining or _DRAIN in self._pauses:
            self._tell_claims()
            for held in self._place.held.values():
                if held.run is None and not held.admitted.done():
                    held.admitted.cancel()
            return
        for claim in self._capacity.admit(asyncio.get_running_loop().time()):
            held = self._place.held[claim]
            if not held.admitted.done():
                held.admitted.set_result(None)
        self._tell_claims()
        self._ask()

    def _tell_claims(self) -> None:
        claimed = self._capacity.claimed
        self._outside.observer.claims(cpus=claimed.millicpus / 1000, memory=claimed.memory)

    async def _handle(self, handling: Handling) -> None:
        """The job boundary: whatever goes wrong with one job stays with that job."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await handling.run(tasks)
        except* BrokerError as errors:
            log.warning("a delivery was lost to the broker, which has it again", extra={"error": _told(errors)})
        except* Exception as errors:
            log.exception("a job met a fault of the runner", extra={"error": _told(errors)})
            await handling.recover()


def _told(errors: BaseExceptionGroup[BaseException]) -> str:
    return "; ".join(f"{type(error).__name__}: {error}" for error in errors.exceptions)

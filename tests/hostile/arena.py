"""Where attacks run: one daemon, some attacks at a time, and always a well-behaved neighbour beside them."""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from tests.e2e.daemon import Daemon, eventually
from tests.e2e.submitter import Followed, Submitter
from tests.hostile.attack import STACK, Attack, attack

AT_ONCE = 4
ROUNDS = 200
"""A neighbour's work: about a second of CPU time."""
_PATIENCE = 90.0
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fought:
    """The attacks of a table once they are over, by name, and the neighbours that ran meanwhile, one by one."""

    jobs: dict[str, Followed]
    neighbours: list[Followed]

    @property
    def containers(self) -> list[str]:
        """The ids of all containers that there were."""
        jobs = [*self.jobs.values(), *self.neighbours]
        return [event["container"] for job in jobs for event in job.events if event["event"] == "started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """A daemon with the stacks of the attacks, and a client of it.

    Where it is `warm`, each job is let in when a container waits for it, and has to get that one; except those that
    need something mounted, for which none can wait.
    """

    daemon: Daemon
    acme: Submitter
    warm: bool = False
    _door: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def attack(self, row: Attack) -> Followed:
        """Publish an attack, by the id of its message, too: a body that is too large is not read."""
        job_id, stack = f"j{token_hex(6)}", row.warm_stack if self.warm else row.stack
        body = {"id": job_id, "stack": stack, "command": row.command, "limits": row.limits, **row.fields}
        message = json.dumps(body).encode()

        def publish() -> Awaitable[Followed]:
            return self.acme.publish(message, job_id=job_id, message_id=job_id)

        return await self._let_in(publish, stack, mounts="scratch" in row.limits)

    async def neighbour(self, rounds: int = ROUNDS, **limits: float) -> Followed:
        """Publish a neighbour, of another tenant."""
        return await self.submit(attack("neighbour", str(rounds)), to="default.normal.calm", limits=limits)

    async def submit(self, command: list[str], *, stack: str = STACK, **fields: Any) -> Followed:
        """Publish any other job."""
        return await self._let_in(lambda: self.acme.submit(command, stack=stack, **fields), stack)

    async def run(self, command: list[str], *, stack: str = STACK, **fields: Any) -> Followed:
        """Publish a job and wait for its end."""
        return await (await self.submit(command, stack=stack, **fields)).finished()

    async def _let_in(
        self, publish: Callable[[], Awaitable[Followed]], stack: str, *, mounts: bool = False
    ) -> Followed:
        if not self.warm:
            return await publish()

        async def one_waits() -> bool:
            return await self.daemon.waiting(stack) > 0

        async with self._door:
            await eventually(one_waits, f"a container of {stack} waits", _PATIENCE)
            job = await publish()
            await job.until(lambda: bool({"started", "finished"} & set(job.kinds)), "start", _PATIENCE)
        told = [event["warm"] for event in job.events if event["event"] == "started"]
        assert all(warm is not mounts for warm in told), job.events
        return job


async def fight(arena: Arena, attacks: Sequence[Attack]) -> Fought:
    """Run the attacks, and neighbours for as long."""
    gate, over, neighbours = asyncio.Semaphore(AT_ONCE), asyncio.Event(), list[Followed]()

    async def be_neighbours() -> None:
        while True:
            neighbours.append(await arena.neighbour())
            await neighbours[-1].finished(timeout=_PATIENCE)
            if over.is_set():
                return

    async def run(attack: Attack) -> Followed:
        async with gate:
            return await (await arena.attack(attack)).finished(timeout=_PATIENCE)

    beside = asyncio.create_task(be_neighbours())
    try:
        jobs = await asyncio.gather(*(run(each) for each in attacks))
        over.set()
        await beside
    finally:
        beside.cancel()
    return Fought(jobs={each.name: job for each, job in zip(attacks, jobs, strict=True)}, neighbours=neighbours)


def check(row: Attack, job: Followed) -> None:
    """Assert that the attack ended as its row says, in time."""
    result = job.result
    told = {name: result[name] for name in ("outcome", "blame", "exit_code", "signal", "oom_seen", "output")}
    wanted = {
        "outcome": row.outcome,
        "blame": row.blame,
        "exit_code": row.code,
        "signal": row.signal,
        "oom_seen": row.oom,
        "output": row.output,
    }
    assert told == wanted, f"{result['reason']}\n{job.text()[-2000:]}{job.text('err')[-2000:]}"
    assert re.fullmatch(row.reason, result["reason"]), result["reason"]
    assert row.out is None or re.fullmatch(row.out, job.text()), job.text()
    assert (result["seconds"]["run"] or 0) <= row.within, result["seconds"]
    if result["attempt"] and row.outcome != "timed_out":  # else the init may have been killed
        assert None not in result["usage"].values(), result["usage"]


def check_neighbour(job: Followed) -> None:
    """Assert that nothing disturbed a neighbour: all of its work is done, and rightly."""
    result = job.result
    assert result["outcome"] == "succeeded", f"{result['reason']}\n{job.text('err')}"
    assert not result["oom_seen"]
    assert job.text("err") == ""
    assert job.text().endswith("\ndone 616c585103dbc732\n"), job.text()[-200:]
    assert job.kinds == ["claimed", "started", "finished"]


def leftovers(containers: Sequence[str], daemon: Daemon) -> list[str]:
    """Processes, control groups and mounts of these containers, and of the daemon's jobs, that are still there."""
    known = set(containers)
    places: list[Any] = [*_processes(), *_cgroups(), *_mounts()]
    found = [place for place in places if any(container in place for container in known)]
    own = f" {daemon.site.state_dir}/results "
    return found + [mount for mount in _mounts() if str(daemon.site.state_dir) in mount and own not in mount]


def _processes() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield f"{process}: {(process / 'cgroup').read_text()}"


def _cgroups() -> Iterator[str]:
    for folder, _, _ in os.walk(_CGROUPS):
        yield folder


def _mounts() -> Iterator[str]:
    yield from Path("/proc/self/mountinfo").read_text().splitlines()

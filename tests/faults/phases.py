"""The phases of a job's life on an engine, each of them held until what is to come has come."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, assert_never

from tests.e2e.daemon import eventually
from tests.e2e.submitter import Followed
from tests.engine_proxy import Deed, Fault, HeldAnswer, after
from tests.faults import held_runtime
from tests.faults.place import GO, Place
from tests.shims import shim_of

CREATE, START, UPDATE = "POST .*/containers/create", "POST .*/start$", "POST .*/update$"
_PATIENCE = 30.0


class Phase(StrEnum):
    """Where a job is. A request that is on its way has not reached the engine; where an answer is, it was done."""

    CREATING = "its creation is on its way"
    CREATED = "the answer to its creation is"
    STARTING = "its start is"
    WAITING = "the answer to its start is; its init waits to be told what to run"
    RUNNING = "running"
    STOPPING = "in its grace, having had SIGTERM"
    ENDED = "it has ended, and its removal is on its way"
    REMOVED = "the answer to its removal is"


@dataclass(slots=True, kw_only=True)
class Pinned:
    """A job that stays in its phase until it goes on: with the answer that it waits for, or with none at all."""

    job: Followed
    go_on: Callable[[], None]
    lose: Callable[[], None]


IN_TURN = (
    *(Phase.RUNNING, Phase.REMOVED, Phase.ENDED, Phase.STOPPING),
    *(Phase.WAITING, Phase.STARTING, Phase.CREATED, Phase.CREATING),
)
"""In which order jobs can be brought there, so that none of them meets what holds another."""


async def pin(place: Place, phase: Phase, grace: str = "60s") -> Pinned:
    """A job in that phase."""
    match phase:
        case Phase.RUNNING:
            pinned = _free(await place.running(f"echo up; {GO}; echo end"))
        case Phase.STOPPING:
            pinned = _free(await _stopping(place, grace))
        case Phase.CREATING:
            pinned = await pin_request(place, CREATE)
        case Phase.CREATED:
            pinned = await pin_answer(place, CREATE)
        case Phase.STARTING:
            pinned = await pin_request(place, START)
        case Phase.WAITING:
            pinned = await pin_answer(place, START)
        case Phase.ENDED:
            go_on = asyncio.Event()
            pinned = await _over(place, after(go_on), go_on.set, go_on.set)
        case Phase.REMOVED:
            held = HeldAnswer()
            pinned = await _over(place, held, held.pass_on, held.lose)
        case _:
            assert_never(phase)
    return pinned


async def _stopping(place: Place, grace: str) -> Followed:
    job = await place.running(f"trap 'echo told' TERM; echo up; {GO}; exit 7", limits={"grace": grace})
    await place.acme.cancel(job, "enough")
    await job.wrote("told\n")
    return job


def _free(job: Followed) -> Pinned:
    return Pinned(job=job, go_on=lambda: None, lose=lambda: None)


async def pin_request(place: Place, pattern: str, **fields: Any) -> Pinned:
    """A job of which the request of that kind is on its way, and has not reached the engine."""
    go_on = asyncio.Event()
    fault = place.proxy.fault(pattern, after(go_on), times=1)
    job = await place.acme.submit(["true"], **fields)
    await _met(fault)
    return Pinned(job=job, go_on=go_on.set, lose=go_on.set)


async def pin_start(place: Place, **fields: Any) -> tuple[Pinned, int]:
    """A job whose start the engine has begun, and its shim, which waits for the runtime to make the container."""
    held = place.held
    assert held is not None
    asked = await pin_request(place, START, stack=held_runtime.STACK, **fields)
    container = await place.container_of(asked.job)
    held.hold(container)
    asked.go_on()
    await held.asked(container)
    go_on = partial(held.let_go, container)
    return Pinned(job=asked.job, go_on=go_on, lose=go_on), shim_of(container)


async def pin_answer(place: Place, pattern: str, **fields: Any) -> Pinned:
    """A job for which the engine did that, and whose answer is on its way."""
    held = HeldAnswer()
    place.proxy.fault(pattern, held, times=1)
    job = await place.acme.submit(["true"], **fields)
    async with asyncio.timeout(_PATIENCE):
        await held.done.wait()
    return Pinned(job=job, go_on=held.pass_on, lose=held.lose)


async def _over(place: Place, deed: Deed, go_on: Callable[[], None], lose: Callable[[], None]) -> Pinned:
    """All requests to remove its container meet that deed: the daemon asks again and again."""
    job = await place.running(f"echo up; {GO}")
    removal = place.proxy.fault(f"DELETE .*/{await place.container_of(job)}", deed)
    place.let_go(job)
    await job.finished()
    await _met(removal)
    return Pinned(job=job, go_on=go_on, lose=lose)


async def _met(fault: Fault) -> None:
    async def met() -> bool:
        return fault.met > 0

    await eventually(met, fault.pattern)

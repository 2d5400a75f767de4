"""The engine, or one container's shim, is killed, stopped or restarted at each phase of a job.

What is told of every job is true, it is told once, nothing is left behind, and jobs beside it do not notice.
"""

import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.e2e.submitter import Followed
from tests.faults.phases import IN_TURN, Phase, Pinned, pin, pin_start
from tests.faults.place import Place
from tests.shims import shim_of, stop_shim

pytestmark = [pytest.mark.engine, pytest.mark.broker]

USUAL, RESTORING = (), ("--live-restore",)
ENGINE_STOPPED = "the engine stopped, and the job with it"
NOT_MADE = frozenset({Phase.CREATING, Phase.CREATED, Phase.STARTING, Phase.WAITING})
"""Nobody but the daemon knows what is to run, and its connection to the container is gone with the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of a job whose shim fails: of the attempt in which it does, if that is lost, and of the end."""

    outcome: str = "succeeded"
    reason: str = ""
    lost: str | None = None
    fields: Mapping[str, Any] = field(default_factory=lambda: {"blame": "none", "exit_code": 0})

    async def check(self, job: Followed) -> None:
        """Assert it."""
        if self.lost is not None:
            assert self.lost in (await job.event("retrying"))["reason"]
        await job.finished()
        job.ended(self.outcome, reason=self.reason, **self.fields)
        assert job.kinds.count("retrying") == (self.lost is not None), job.events


BY_ITS_END = {"blame": "job", "signal": 9}
STUCK = {"blame": "none"}
WHEN_KILLED = {
    Phase.STARTING: Told(),
    Phase.WAITING: Told(lost="the init ended before it started the job"),
    Phase.RUNNING: Told(outcome="failed", reason="SIGKILL, which did not come from its worker", fields=BY_ITS_END),
    Phase.STOPPING: Told(outcome="cancelled", reason="enough", fields={"blame": "none", "signal": 9}),
}
WHEN_HUNG = {
    Phase.STARTING: Told(lost="the engine did not answer start"),
    Phase.WAITING: Told(lost="the init did not start the job"),
    Phase.STOPPING: Told(outcome="cancelled", reason="may still run", fields=STUCK),
}
usual = pytest.mark.parametrize("lasting", [pytest.param(USUAL, id="")], indirect=True)


@contextmanager
def standing_still(shim: int) -> Iterator[None]:
    """Let a shim that was stopped go on afterwards, unless it is gone."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(shim, signal.SIGCONT)


async def pin_with_shim(place: Place, phase: Phase) -> tuple[Pinned, int]:
    """A job in that phase, and its shim."""
    if phase is Phase.STARTING:
        return await pin_start(place, limits={"grace": "5s"})
    pinned = await pin(place, phase, grace="5s")
    return pinned, shim_of(await place.container_of(pinned.job))


@usual
@pytest.mark.parametrize("phase", [pytest.param(each, id=each.name) for each in WHEN_KILLED])
async def test_a_shim_is_killed_at_each_phase(place: Place, phase: Phase) -> None:
    beside = await pin(place, Phase.RUNNING)
    pinned, shim = await pin_with_shim(place, phase)
    os.kill(shim, signal.SIGKILL)
    pinned.go_on()
    await WHEN_KILLED[phase].check(pinned.job)
    await _undisturbed(place, beside.job)
    await place.daemon.clean()
    assert pinned.job.kinds.count("finished") == 1


@usual
@pytest.mark.slow
@pytest.mark.parametrize("phase", [pytest.param(each, id=each.name) for each in WHEN_HUNG])
async def test_a_shim_hangs_at_each_phase(place: Place, phase: Phase) -> None:
    beside = await pin(place, Phase.RUNNING)
    pinned, shim = await pin_with_shim(place, phase)
    await stop_shim(shim)
    with standing_still(shim):
        async with place.unhindered():
            pinned.go_on()
            await place.quarantined(pinned.job)
            await WHEN_HUNG[phase].check(pinned.job)
            await _undisturbed(place, beside.job)
    await place.daemon.clean()
    assert pinned.job.kinds.count("finished") == 1


async def _undisturbed(place: Place, beside: Followed) -> None:
    """The job beside it goes on to its end, and others come and go."""
    (await place.acme.run(["true"])).ended("succeeded", blame="none", exit_code=0, attempt=1)
    place.let_go(beside)
    await beside.finished()
    beside.ended("succeeded", blame="none", exit_code=0, attempt=1)
    assert beside.text() == "up\nend\n"


async def kill(place: Place, pinned: list[Pinned]) -> None:
    place.proxy.refuse()
    await place.engine.kill()
    for each in pinned:
        each.lose()
    await place.engine.start()
    await place.proxy.accept()


async def restart(place: Place, pinned: list[Pinned]) -> None:
    dockerd = place.engine.process
    assert dockerd is not None
    place.proxy.refuse()
    await dockerd.end(grace=60)  # cleanly, as a service manager does
    for each in pinned:
        each.lose()
    await place.engine.start()
    await place.proxy.accept()


async def hang(place: Place, pinned: list[Pinned]) -> None:
    await place.engine.pause()
    for each in pinned:
        each.go_on()
    await place.says("the container engine does not answer")
    await place.engine.resume()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What is done to the engine, and the phases in which it ends a job's container, or the way to it."""

    do: Callable[[Place, list[Pinned]], Awaitable[None]]
    live_restore: bool
    ends: frozenset[Phase] = frozenset()


DEEDS = {
    "kill": Deed(do=kill, live_restore=False, ends=NOT_MADE | {Phase.RUNNING, Phase.STOPPING}),
    "hang": Deed(do=hang, live_restore=False),
    "restart": Deed(do=restart, live_restore=False, ends=NOT_MADE | {Phase.RUNNING, Phase.STOPPING}),
    "kill, live-restore": Deed(do=kill, live_restore=True, ends=NOT_MADE),
    "hang, live-restore": Deed(do=hang, live_restore=True),
    "restart, live-restore": Deed(do=restart, live_restore=True, ends=NOT_MADE),
}
LONG = ("hang, live-restore", "restart", "restart, live-restore")


@pytest.mark.parametrize(
    ("lasting", "deed"),
    [
        pytest.param(
            RESTORING if deed.live_restore else USUAL, deed, id=name, marks=[pytest.mark.slow] * (name in LONG)
        )
        for name, deed in DEEDS.items()
    ],
    indirect=["lasting"],
)
async def test_the_engine_fails_at_each_phase(place: Place, deed: Deed) -> None:
    pinned = {phase: await pin(place, phase) for phase in IN_TURN}
    await deed.do(place, list(pinned.values()))
    place.proxy.heal()
    for phase, each in pinned.items():
        await _went_well(place, phase, each.job, ended=phase in deed.ends)
    await place.daemon.clean()
    assert [each.job.kinds.count("finished") for each in pinned.values()] == [1] * len(Phase)


async def _went_well(place: Place, phase: Phase, job: Followed, *, ended: bool) -> None:
    """What the engine ended was lost, was told so, and runs again, once; but what was to end has ended."""
    if phase is Phase.STOPPING:
        if not ended:
            place.let_go(job)
        await job.finished()
        job.ended("cancelled", blame="none", reason="enough", **({"signal": 9} if ended else {"exit_code": 7}))
    else:
        await job.event("started", 2 if ended and phase is Phase.RUNNING else 1)
        if phase is Phase.RUNNING:
            place.let_go(job)
        await job.finished()
        job.ended("succeeded", blame="none", exit_code=0)
    lost = ["lost"] * (ended and phase is not Phase.STOPPING)
    assert [event["outcome"] for event in job.events if event["event"] == "retrying"] == lost, job.events
    if phase is Phase.RUNNING:
        assert job.text() == ("up\n" if ended else "") + "up\nend\n"
        assert job.result["logs"]["complete"] is True
        if ended:
            assert (await job.event("retrying"))["reason"] == ENGINE_STOPPED

"""How jobs end, and what is said of it: outcome × cause, each a real job. They run a few at a time, in one daemon."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiodocker
import pytest
from tests.e2e.conftest import OpenSite
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.submitter import STACK, Followed, Submitter, open_submitter, sh

pytestmark = [pytest.mark.engine, pytest.mark.broker]

AT_ONCE = 6
SLEEPS = sh("echo up; exec sleep 60")
GREEDY = "tail /dev/zero"
OBEYED = {"timeout": "3s"}
"""Long enough that a job has said what it does with SIGTERM before it comes, on any machine."""
IGNORED = {"timeout": "3s", "grace": "1s"}

Meanwhile = Callable[[Daemon, Submitter, Followed], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cause and the end that it has to have; `reason` is a regular expression for all of it.

    `published`: what the submitter says of when, from now.
    """

    cause: str
    command: list[str] | None
    outcome: str
    reason: str
    blame: str = "job"
    code: int | None = None
    signal: int | None = None
    oom: bool = False
    kinds: tuple[str, ...] = ("claimed", "started", "finished")
    fields: dict[str, Any] = field(default_factory=dict)
    published: timedelta = timedelta()
    meanwhile: Meanwhile | None = None

    @property
    def stack(self) -> str:
        """The stack of the job."""
        return str(self.fields.get("stack", STACK))


STOPPED = ("claimed", "started", "stopping", "finished")


async def _cancel(_: Daemon, acme: Submitter, job: Followed) -> None:
    await job.wrote("up\n")
    await acme.cancel(job, "not needed")


async def _kill_container(daemon: Daemon, _: Submitter, job: Followed) -> None:
    await job.wrote("up\n")
    started = await job.event("started")
    async with aiodocker.Docker(url=daemon.site.engine) as docker:
        await docker.containers.container(started["container"]).kill(signal="KILL")


async def _remove_container(daemon: Daemon, _: Submitter, job: Followed) -> None:
    await job.wrote("up\n")
    started = await job.event("started")
    async with aiodocker.Docker(url=daemon.site.engine) as docker:
        await docker.containers.container(started["container"]).delete(force=True)


def exits(code: int) -> Row:
    return Row(
        cause=f"exit {code}",
        command=sh(f"exit {code}"),
        outcome="failed" if code else "succeeded",
        blame="job" if code else "none",
        code=code,
        reason=f"exited with code {code}",
    )


def dies_of(name: str, number: int) -> Row:
    return Row(
        cause=f"SIG{name} by its own hand",
        command=sh(f"kill -{name} $$; sleep 60"),
        outcome="failed",
        signal=number,
        reason=f"was ended by SIG{name}, which did not come from its worker",
    )


def rejected(cause: str, reason: str, **fields: Any) -> Row:
    return Row(
        cause=cause,
        command=["true"],
        outcome="rejected",
        blame="request",
        oom=False,
        reason=reason,
        kinds=("rejected", "finished"),
        fields=fields,
    )


ROWS = [
    *(exits(code) for code in (0, 1, 3, 137, 143, 255)),
    *(dies_of(name, number) for name, number in (("TERM", 15), ("KILL", 9), ("SEGV", 11), ("ABRT", 6), ("HUP", 1))),
    Row(
        cause="kill -9 0",
        command=sh("kill -9 0"),
        outcome="failed",
        signal=9,
        reason="was ended by SIGKILL, which did not come from its worker",
    ),
    Row(
        cause="kill -9 -1",
        command=sh("kill -9 -1; exit 4"),
        outcome="failed",
        code=4,
        reason="exited with code 4",
    ),
    Row(
        cause="main process out of memory",
        command=sh(f"exec {GREEDY}"),
        outcome="oom_killed",
        signal=9,
        oom=True,
        reason="a process was killed for using more than 16 MiB of memory, the limit; raise limits.memory",
    ),
    Row(
        cause="child out of memory, survived",
        command=sh(f"{GREEDY}; exit 0"),
        outcome="succeeded",
        blame="none",
        code=0,
        oom=True,
        reason="exited with code 0; one of its processes was killed for memory on the way",
    ),
    Row(
        cause="child out of memory, then exit 3",
        command=sh(f"{GREEDY}; exit 3"),
        outcome="oom_killed",
        code=3,
        oom=True,
        reason=".*more than 16 MiB of memory.*raise limits.memory",
    ),
    Row(
        cause="out of memory, all places full",
        command=sh(
            "head -c 8m /dev/zero >/work/a; head -c 8m /dev/zero >/tmp/a; head -c 8m /dev/zero >/dev/shm/a; "
            f"exec {GREEDY}"
        ),
        outcome="oom_killed",
        signal=9,
        oom=True,
        reason="a process was killed for memory while /work was full .4 MiB.; .*raise limits.disk",
    ),
    Row(
        cause="time-out obeyed",
        command=["sleep", "60"],
        outcome="timed_out",
        signal=15,
        reason="ran for 3s, its time-out; give it more with limits.timeout",
        kinds=STOPPED,
        fields={"limits": OBEYED},
    ),
    Row(
        cause="time-out, exit 0 on SIGTERM",
        command=sh("trap 'exit 0' TERM; while :; do sleep 0.1; done"),
        outcome="timed_out",
        code=0,
        reason="ran for 3s, its time-out.*",
        kinds=STOPPED,
        fields={"limits": OBEYED},
    ),
    Row(
        cause="time-out ignored",
        command=sh("trap '' TERM; sleep 60"),
        outcome="timed_out",
        signal=9,
        reason="ran for 3s, its time-out.*",
        kinds=STOPPED,
        fields={"limits": IGNORED},
    ),
    Row(
        cause="time-out ignored by children in sessions of their own",
        command=sh("trap '' TERM; setsid sleep 60 & setsid sh -c 'sleep 60 & sleep 60' & wait; sleep 60"),
        outcome="timed_out",
        signal=9,
        reason="ran for 3s, its time-out.*",
        kinds=STOPPED,
        fields={"limits": IGNORED},
    ),
    Row(
        cause="cancelled while it runs",
        command=SLEEPS,
        outcome="cancelled",
        blame="none",
        signal=15,
        reason="cancelled: not needed",
        kinds=STOPPED,
        meanwhile=_cancel,
    ),
    Row(
        cause="expired in the queue",
        command=["true"],
        outcome="expired",
        blame="platform",
        reason="not started within 20s, its start_within.*",
        kinds=("finished",),
        fields={"start_within": "20s"},
        published=timedelta(seconds=-30),
    ),
    Row(
        cause="command missing",
        command=["no-such-program"],
        outcome="failed",
        blame="request",
        code=127,
        reason="the command, 'no-such-program', not found in stack e2e-plain",
    ),
    Row(
        cause="command in a folder that is none",
        command=["/etc/passwd/x"],
        outcome="failed",
        blame="request",
        code=127,
        reason="the command, '/etc/passwd/x', not found in stack e2e-plain",
    ),
    Row(
        cause="command not executable",
        command=["/etc/passwd"],
        outcome="failed",
        blame="request",
        code=126,
        reason="the command, '/etc/passwd', cannot be executed .EACCES. in stack e2e-plain",
    ),
    Row(
        cause="command is a folder",
        command=["/bin"],
        outcome="failed",
        blame="request",
        code=126,
        reason="the command, '/bin', cannot be executed .EACCES. in stack e2e-plain",
    ),
    Row(
        cause="the stack's own command missing",
        command=None,
        outcome="failed",
        blame="operator",
        code=127,
        reason="the command of stack e2e-wrong-command, 'no-such-program', not found .*",
        fields={"stack": "e2e-wrong-command"},
    ),
    Row(
        cause="a script that runs what is not there",
        command=sh("echo nonsense >/work/x; chmod +x /work/x; exec /work/x"),
        outcome="failed",
        code=127,
        reason="exited with code 127",
    ),
    Row(
        cause="working directory gone",
        command=sh("mkdir /tmp/d && cd /tmp/d && rmdir /tmp/d && touch here"),
        outcome="failed",
        code=1,
        reason="exited with code 1",
    ),
    Row(
        cause="disk full of bytes",
        command=sh("head -c 8m /dev/zero >/work/big"),
        outcome="disk_limit",
        code=1,
        reason="failed while /work was full .4 MiB.; raise limits.disk",
    ),
    Row(
        cause="shared memory full of bytes",
        command=sh("head -c 8m /dev/zero >/dev/shm/big"),
        outcome="disk_limit",
        code=1,
        reason="failed while /dev/shm was full .4 MiB.; raise limits.disk",
    ),
    Row(
        cause="disk full of files",
        command=sh("i=0; while : >/tmp/$i; do i=$((i+1)); done; exit 5"),
        outcome="disk_limit",
        code=1,
        reason="failed while /tmp had no room for another file .it had 1024.; raise limits.disk",
    ),
    Row(
        cause="disk full, coped with",
        command=sh("head -c 8m /dev/zero >/work/big || exit 0"),
        outcome="succeeded",
        blame="none",
        code=0,
        reason="exited with code 0",
    ),
    Row(
        cause="a file too long on the host's disk",
        command=sh("exec head -c 80m /dev/zero >/job/output"),
        outcome="disk_limit",
        signal=25,
        reason="was ended by SIGXFSZ for a file longer than 4 MiB, its disk limit; raise limits.disk",
    ),
    Row(
        cause="output too large, exit 0",
        command=sh("head -c 70000 /dev/zero >/job/output"),
        outcome="failed",
        code=0,
        reason="exited with code 0, but JOB_OUTPUT_FILE holds more than 64 KiB; .*",
    ),
    Row(
        cause="output broken, exit 0",
        command=sh("echo '{' >/job/output"),
        outcome="failed",
        code=0,
        reason="exited with code 0, but JOB_OUTPUT_FILE is not valid JSON .*",
    ),
    Row(
        cause="output broken, exit 3",
        command=sh("echo '{' >/job/output; exit 3"),
        outcome="failed",
        code=3,
        reason="exited with code 3",
    ),
    Row(
        cause="log too long for its stack",
        command=sh("yes"),
        outcome="output_limit",
        signal=15,
        reason="wrote more than 64 KiB of log, its limit, and its stack ends a job for that",
        kinds=STOPPED,
        fields={"stack": "e2e-flood"},
    ),
    Row(
        cause="container killed from outside",
        command=SLEEPS,
        outcome="failed",
        signal=9,
        reason="was ended by SIGKILL, which did not come from its worker",
        meanwhile=_kill_container,
    ),
    Row(
        cause="container removed from outside",
        command=SLEEPS,
        outcome="lost",
        blame="platform",
        reason=".*its container was removed from outside.*|.*the platform failed it .*",
        kinds=("claimed", "started", "finished"),
        meanwhile=_remove_container,
    ),
    rejected("memory too little", "limits.memory: .* is too little; ask for .* or more", limits={"memory": "1m"}),
    rejected("time-out too long", "limits.timeout: .* is over this operator's maximum, .*", limits={"timeout": "2h"}),
    rejected("scratch not allowed", "limits.scratch.*", limits={"scratch": "1g"}),
    rejected("field unknown", ".*colour.*", colour="red"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["cold", "warm"])
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether each job has to get a container that waited for it, or none does: the table is the same."""
    return bool(request.param)


@pytest.fixture(scope="module")
async def ended(
    at: OpenSite,
    tmp_path_factory: pytest.TempPathFactory,
    warm: bool,  # noqa: FBT001 - it is a fixture
) -> AsyncIterator[dict[str, Followed]]:
    """All jobs of the table, by cause, once they are over and nothing is left of them."""
    folder = tmp_path_factory.mktemp("outcomes")
    async with (
        at(folder) as site,
        site.daemon(worker__max_lost="0", warm__enabled=str(warm).lower()) as daemon,
    ):
        for stack in {row.stack for row in ROWS} if warm else ():
            site.keep_warm(stack, AT_ONCE if stack == STACK else 1)
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as acme:
            gate, door = asyncio.Semaphore(AT_ONCE), asyncio.Lock() if warm else None
            jobs = await asyncio.gather(*(_run(row, daemon, acme, gate, door) for row in ROWS))
            await daemon.clean()
            assert (await daemon.metrics())["runner_end_disagreements_total"] == 0
            buried = sum(row.outcome == "rejected" for row in ROWS)

            async def all_buried() -> bool:
                return await acme.waiting("dead") >= buried

            await eventually(all_buried, "what was rejected is kept")  # which comes after its last event
            assert await acme.purge("dead") == buried
            yield {row.cause: job for row, job in zip(ROWS, jobs, strict=True)}
        await daemon.stop()


async def _run(
    row: Row, daemon: Daemon, acme: Submitter, gate: asyncio.Semaphore, door: asyncio.Lock | None
) -> Followed:
    async with gate:
        if door is None or "started" not in row.kinds:
            job = await acme.submit(row.command, at=datetime.now(UTC) + row.published, **row.fields)
        else:
            job = await _let_in(row, daemon, acme, door)
        if row.meanwhile is not None:
            await row.meanwhile(daemon, acme, job)
        return await job.finished()


async def _let_in(row: Row, daemon: Daemon, acme: Submitter, door: asyncio.Lock) -> Followed:
    """Publish a job when a container waits for it, and leave the door to the next one when it has that."""

    async def one_waits() -> bool:
        return await daemon.waiting(row.stack) > 0

    async with door:
        await eventually(one_waits, f"a container of {row.stack} waits", timeout=60)
        job = await acme.submit(row.command, **row.fields)
        await job.until(lambda: bool({"started", "finished"} & set(job.kinds)), "start", timeout=60)
    return job


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.cause)
def test_outcome(row: Row, ended: dict[str, Followed], warm: bool) -> None:  # noqa: FBT001 - it is a fixture
    result = ended[row.cause].result
    told = {name: result[name] for name in ("outcome", "blame", "exit_code", "signal")}
    wanted = {"outcome": row.outcome, "blame": row.blame, "exit_code": row.code, "signal": row.signal}
    assert told == wanted, f"{row.cause}: {result['reason']}"
    assert re.fullmatch(row.reason, result["reason"]), f"{row.cause}: {result['reason']}"
    assert bool(result["oom_seen"]) is row.oom, row.cause
    assert tuple(ended[row.cause].kinds) == row.kinds, row.cause
    assert all(event["warm"] is warm for event in ended[row.cause].events if event["event"] == "started"), row.cause


@pytest.mark.parametrize("row", [row for row in ROWS if "started" in row.kinds], ids=lambda row: row.cause)
def test_usage(row: Row, ended: dict[str, Followed]) -> None:
    """Known of every job whose init could tell, however short; null, never a guess, where the init was killed."""
    usage, untold = ended[row.cause].result["usage"], row.cause.startswith("container ")
    assert set(usage) == {"cpu_seconds", "memory_peak_bytes"}
    assert all((value is None) if untold else value > 0 for value in usage.values()), usage

"""Three jobs go from the broker into containers, and their logs and results come back.

Uses `RUNNER_AMQP__URL` and `RUNNER_ENGINE__URL` when both are set, else the private services of this working copy.
Whatever it started is stopped at the end, however the end comes.
"""

import asyncio
import sys
from dataclasses import dataclass

from scripts.daemon import ROOT, Daemon, DaemonError, services, wait
from scripts.devservices import ServiceError
from scripts.devservices.process import log_tail
from scripts.stopping import run_until_signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A job to show: what it is about, what `runner run` is given, and the exit code that is right."""

    title: str
    options: tuple[str, ...] = ()
    script: str
    exit_code: int


EXAMPLES = (
    Example(
        title="a job that prints for a few seconds",
        script='for i in 1 2 3 4 5; do echo "step $i of 5"; sleep 0.6; done; echo "all done"',
        exit_code=0,
    ),
    Example(title="a job that fails", script='echo "this cannot work" >&2; exit 3', exit_code=3),
    Example(
        title="a job that outlives its time-out",
        options=("--timeout", "2s"),
        script='echo "this takes a minute"; sleep 60; echo "never printed"',
        exit_code=124,
    ),
)


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


async def run_demo() -> None:
    """The whole of it; each thing that is started is stopped in the reverse order."""
    async with services("demo", say) as daemon:
        say("building the stack `busybox` from config/stacks/busybox: runner stacks build busybox")
        await daemon.call("stacks", "build", "busybox")
        say("declaring exchanges and queues: runner topology apply")
        await daemon.call("topology", "apply")
        say(f"starting `runner serve`; its log is {daemon.log.relative_to(ROOT)}")
        async with daemon.serving():
            for number, example in enumerate(EXAMPLES, 1):
                await show(daemon, number, example)
            say("all three jobs ended as they should; stopping what was started")


async def show(daemon: Daemon, number: int, example: Example) -> None:
    """Run one job in the foreground and check its exit code."""
    words = ["run", "--stack", "busybox", *example.options, "--", "sh", "-c", example.script]
    print(file=sys.stderr)
    say(f"{number}. {example.title}")
    say(f"   $ runner run --stack busybox {' '.join([*example.options, ''])}-- sh -c '{example.script}'")
    code = await wait(await daemon.spawn(*words))
    say(f"   exit code {code}")
    if code != example.exit_code:
        raise DaemonError(f"that should have been {example.exit_code}{log_tail(daemon.log)}")


async def main() -> int:
    """Run the demo until it ends or a signal ends it."""
    try:
        return await run_until_signal(run_demo(), say)
    except (DaemonError, ServiceError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

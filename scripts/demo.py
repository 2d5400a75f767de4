"""Three jobs go from the broker into containers, and their logs and results come back.

Uses `RUNNER_AMQP__URL` and `RUNNER_ENGINE__URL` when both are set, else the private services of this working copy.
Whatever it started is stopped at the end, however the end comes.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from scripts.devservices import ServiceError
from scripts.devservices.process import log_tail
from scripts.devservices.shared import DEV, borrowed, shared_broker, shared_engine

ROOT = Path(__file__).resolve().parents[1]
RUNNER = str(Path(sys.executable).with_name("runner"))
FOLDER = DEV / "demo"
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0

CONFIG = """\
[worker]
name = "demo"
state_dir = "{folder}/state"
drain_timeout = "20s"

[amqp]
namespace = "demo"

[stacks]
dir = "{root}/config/stacks"

[http]
port = {port}
"""


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


class DemoError(Exception):
    """A step went wrong; says which."""


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


async def run_demo() -> None:
    """The whole of it; each thing that is started is stopped in the reverse order."""
    async with AsyncExitStack() as stack:
        env = {**os.environ, **await find_services(stack), "RUNNER_CONFIG": str(FOLDER / "runner.toml")}
        port = write_config()
        say("building the stack `busybox` from config/stacks/busybox: runner stacks build busybox")
        await call(env, "stacks", "build", "busybox")
        say("declaring exchanges and queues: runner topology apply")
        await call(env, "topology", "apply")
        say(f"starting `runner serve`; its log is {FOLDER.relative_to(ROOT)}/serve.log")
        await stack.enter_async_context(serving(env, port))
        for number, example in enumerate(EXAMPLES, 1):
            await show(env, number, example)
        say("all three jobs ended as they should; stopping what was started")


async def find_services(stack: AsyncExitStack) -> dict[str, str]:
    """The settings that point to broker and engine."""
    names = ("RUNNER_AMQP__URL", "RUNNER_ENGINE__URL")
    if all(os.environ.get(name) for name in names):
        say("using the broker and the engine that RUNNER_AMQP__URL and RUNNER_ENGINE__URL name")
        return {}
    say("starting a private RabbitMQ and a private Docker Engine under .dev/")
    urls = [await stack.enter_async_context(borrowed(service)) for service in (shared_broker(), shared_engine())]
    return dict(zip(names, urls, strict=True))


def write_config() -> int:
    """Write the demo's configuration; returns the port of its HTTP server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "runner.toml").write_text(CONFIG.format(folder=FOLDER, root=ROOT, port=port))
    return port


@asynccontextmanager
async def serving(env: Mapping[str, str], port: int) -> AsyncIterator[None]:
    """Run the daemon, ready to take jobs."""
    log = FOLDER / "serve.log"
    with log.open("wb") as output:
        daemon = await spawn(env, "serve", output=output.fileno())
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            while not await is_ready(port):
                if daemon.returncode is not None:
                    raise DemoError(f"`runner serve` ended with {daemon.returncode}{log_tail(log)}")
                await asyncio.sleep(0.1)
        yield
    except TimeoutError:
        raise DemoError(f"`runner serve` was not ready after {READY_TIMEOUT:.0f} s{log_tail(log)}") from None
    finally:
        if not await end(daemon, signal.SIGTERM):
            await call(env, "reap")


async def show(env: Mapping[str, str], number: int, example: Example) -> None:
    """Run one job in the foreground and check its exit code."""
    words = ["run", "--stack", "busybox", *example.options, "--", "sh", "-c", example.script]
    print(file=sys.stderr)
    say(f"{number}. {example.title}")
    say(f"   $ runner run --stack busybox {' '.join([*example.options, ''])}-- sh -c '{example.script}'")
    code = await wait(await spawn(env, *words))
    say(f"   exit code {code}")
    if code != example.exit_code:
        raise DemoError(f"that should have been {example.exit_code}{log_tail(FOLDER / 'serve.log')}")


async def call(env: Mapping[str, str], *words: str) -> None:
    """Run one of the runner's commands, which has to succeed; what it says is of interest only if it does not."""
    log = FOLDER / f"{words[0]}.log"
    with log.open("wb") as output:
        code = await wait(await spawn(env, *words, output=output.fileno()))
    if code != 0:
        raise DemoError(f"`runner {' '.join(words)}` ended with {code}{log_tail(log)}")


async def spawn(env: Mapping[str, str], *words: str, output: int | None = None) -> asyncio.subprocess.Process:
    # In a session of its own: Ctrl-C reaches us alone, and we stop things in order.
    return await asyncio.create_subprocess_exec(
        RUNNER,
        *words,
        env=env,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


async def wait(process: asyncio.subprocess.Process) -> int:
    """The exit code. When we are cancelled, the process is, too."""
    try:
        return await process.wait()
    finally:
        await end(process, signal.SIGINT)


async def end(process: asyncio.subprocess.Process, number: signal.Signals) -> bool:
    """Have a process end; false when it had to be killed."""
    if process.returncode is not None:
        return True
    process.send_signal(number)
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    return True


async def is_ready(port: int) -> bool:
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{port}/readyz") as response,
        ):
            return response.ok
    except (aiohttp.ClientError, TimeoutError):
        return False


async def main() -> int:
    """Run the demo until it ends or a signal ends it. Only the first signal counts: stopping is never cut short."""
    demo = asyncio.create_task(run_demo())
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        if not received:
            say("stopping what was started")
            demo.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        await demo
    except asyncio.CancelledError:
        return 128 + received[0]
    except (DemoError, ServiceError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

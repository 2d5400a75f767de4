"""A daemon for a short while, with a broker and an engine: for those who want to see jobs run."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from scripts.devservices.process import log_tail
from scripts.devservices.shared import DEV, borrowed, shared_broker, shared_engine

ROOT = Path(__file__).resolve().parents[1]
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 40.0

_RUNNER = str(Path(sys.executable).with_name("runner"))
_SERVICES = ("RUNNER_AMQP__URL", "RUNNER_ENGINE__URL")
_CONFIG = """\
[worker]
name = "{name}"
state_dir = "{folder}/state"
drain_timeout = "20s"

[amqp]
namespace = "{name}"

[stacks]
dir = "{root}/config/stacks"

[http]
port = {port}
"""


class DaemonError(Exception):
    """A step went wrong; says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """`runner serve` in a namespace of its own, which is called like it, and `runner` commands for it.

    Everything that it keeps is in `.dev/NAME`.
    """

    name: str
    port: int
    env: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return DEV / self.name

    @property
    def log(self) -> Path:
        """What the daemon said."""
        return self.folder / "serve.log"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run the daemon, ready to take jobs."""
        with self.log.open("wb") as output:
            process = await self.spawn("serve", output=output.fileno())
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while not await self._is_ready():
                    if process.returncode is not None:
                        raise DaemonError(f"`runner serve` ended with {process.returncode}{log_tail(self.log)}")
                    await asyncio.sleep(0.1)
            yield
        except TimeoutError:
            raise DaemonError(f"`runner serve` was not ready after {READY_TIMEOUT:.0f} s{log_tail(self.log)}") from None
        finally:
            if not await end(process, signal.SIGTERM):
                await self.call("reap")

    async def call(self, *words: str) -> None:
        """Run one of the runner's commands, which has to succeed; what it says is of interest only if it does not."""
        log = self.folder / f"{words[0]}.log"
        with log.open("wb") as output:
            code = await wait(await self.spawn(*words, output=output.fileno()))
        if code != 0:
            raise DaemonError(f"`runner {' '.join(words)}` ended with {code}{log_tail(log)}")

    async def spawn(self, *words: str, output: int | None = None) -> asyncio.subprocess.Process:
        """Start one of the runner's commands."""
        return await spawn(self.env, *words, output=output)

    async def _is_ready(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://127.0.0.1:{self.port}/readyz") as response,
            ):
                return response.ok
        except (aiohttp.ClientError, TimeoutError):
            return False


@asynccontextmanager
async def services(name: str, say: Callable[[str], None]) -> AsyncIterator[Daemon]:
    """A daemon that does not run yet, for the broker and the engine that the environment names, else private ones."""
    env = dict(os.environ)
    async with AsyncExitStack() as stack:
        if all(env.get(variable) for variable in _SERVICES):
            say(f"using the broker and the engine that {' and '.join(_SERVICES)} name")
        else:
            say("starting a private RabbitMQ and a private Docker Engine under .dev/")
            urls = [
                await stack.enter_async_context(borrowed(service)) for service in (shared_broker(), shared_engine())
            ]
            env |= zip(_SERVICES, urls, strict=True)
        daemon = Daemon(name=name, port=_free_port(), env=env | {"RUNNER_CONFIG": str(DEV / name / "runner.toml")})
        daemon.folder.mkdir(parents=True, exist_ok=True)
        text = _CONFIG.format(name=name, folder=daemon.folder, root=ROOT, port=daemon.port)
        (daemon.folder / "runner.toml").write_text(text)
        yield daemon


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def spawn(
    env: Mapping[str, str], *words: str, output: int | None = None, errors: int | None = None
) -> asyncio.subprocess.Process:
    """Start one of the runner's commands; `errors` go where the output goes unless they are given a place."""
    # In a session of its own: Ctrl-C reaches us alone, and we stop things in order.
    return await asyncio.create_subprocess_exec(
        _RUNNER,
        *words,
        env=env,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output if errors is None else errors,
        start_new_session=True,
    )


async def read(env: Mapping[str, str], *words: str) -> str:
    """Run one of the runner's commands to its end; what it printed. Raises `DaemonError` when it said nothing."""
    process = await spawn(env, *words, output=asyncio.subprocess.PIPE, errors=asyncio.subprocess.PIPE)
    try:
        output, errors = await process.communicate()
    finally:
        await end(process, signal.SIGINT)
    if not output and process.returncode != 0:
        raise DaemonError(f"`runner {' '.join(words)}` ended with {process.returncode}: {errors.decode().strip()}")
    return output.decode()


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

"""A private Docker Engine: own containerd, socket, folders and bridge."""

import asyncio
import hashlib
import os
import re
import signal
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import aiohttp

from scripts.devservices.bridge import Bridge
from scripts.devservices.process import Process, ServiceError, as_root, find_program, launch, log_tail

# The oldest file format that all supported versions read. The plugins that are off serve nobody here.
_CONTAINERD_CONFIG = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
"""


class Engine:
    """A Docker Engine in a folder. `flags` are more words for dockerd's command line, e.g. `--live-restore`.

    What runs in the folder is found again by any later `Engine` of the same folder. Sockets live in a short folder of
    their own under /tmp, as their paths may have 107 bytes at most.
    """

    def __init__(self, folder: Path, *, flags: Sequence[str] = ()) -> None:
        self.folder = folder.absolute()
        self._flags = tuple(flags)
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()
        self._run_folder = Path(f"/tmp/runner-{digest[:12]}")  # noqa: S108  # checked to be ours before use
        self._bridge = Bridge(self.folder)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{self.socket}"

    @property
    def socket(self) -> Path:
        """The path of the engine's socket."""
        return self._run_folder / "docker.sock"

    @property
    def process(self) -> Process | None:
        """The engine (dockerd), if it runs."""
        return Process.read(self.folder / "dockerd.process")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, timeout: float = 60) -> None:
        """Return when the engine answers; at once when it runs already."""
        dockerd = self.process
        if dockerd is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _own(self._run_folder)
            if self._containerd() is None:
                self._start_containerd()
            dockerd = await self._start_dockerd()
        await self._ready(dockerd, timeout)

    async def stop(self) -> None:
        """End the engine and every container on it, and remove its bridge. Images stay in the folder."""
        await self._kill_containers()
        for process in (self.process, self._containerd()):
            if process is not None:
                await process.end(grace=30)
        await self._kill_containers()
        await asyncio.to_thread(self._remove_rest)

    async def kill(self) -> None:
        """End dockerd at once; containers go on, as does containerd, which is a service of its own elsewhere too."""
        dockerd = self._running()
        dockerd.send(signal.SIGKILL)
        await dockerd.gone(10)

    async def pause(self) -> None:
        """Make dockerd hang: connections stay open, nobody answers."""
        await self._running().suspend()

    async def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send(signal.SIGCONT)

    async def restart(self) -> None:
        """Shut dockerd down cleanly, as a service manager does, and start it again."""
        if (dockerd := self.process) is not None:
            await dockerd.end(grace=60)
        await self.start()

    def _running(self) -> Process:
        if (dockerd := self.process) is None:
            raise ServiceError(f"no engine runs in {self.folder}")
        return dockerd

    def _containerd(self) -> Process | None:
        return Process.read(self.folder / "containerd.process")

    def _start_containerd(self) -> None:
        # Our own: dockerd would share the system's, and with it the names of another engine's containers.
        config = self.folder / "containerd.toml"
        text = _CONTAINERD_CONFIG.format(
            root=self.folder / "containerd", state=self._run_folder / "containerd", socket=self._containerd_socket
        )
        config.write_text(text)
        command = [find_program("containerd"), "--config", str(config)]
        self._launch("containerd", command)

    async def _start_dockerd(self) -> Process:
        # What a killed dockerd left: its pid may belong to somebody else by now, and it would refuse to start.
        pid_file = self._run_folder / "dockerd.pid"
        await asyncio.to_thread(subprocess.run, as_root("rm", "-f", str(pid_file)), check=True)
        command = [
            *await self._network(),
            *("--host", self.url, "--group", str(os.getgid())),
            *("--data-root", str(self.folder / "data"), "--exec-root", str(self._run_folder / "exec")),
            *("--pidfile", str(pid_file), "--containerd", str(self._containerd_socket)),
            # Our bridge has rules of its own; see there.
            *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--userland-proxy=false"),
            *self._flags,
        ]
        return self._launch("dockerd", command)

    async def _network(self) -> list[str]:
        """The first words of dockerd's command line: on our bridge, or else in a network namespace of its own."""
        dockerd = find_program("dockerd")
        try:
            await asyncio.to_thread(self._bridge.add)
        except ServiceError as error:
            with (self.folder / "dockerd.log").open("a") as log:
                log.write(f"no bridge ({error}): running in a closed network namespace\n")
            script = 'ip link set lo up; exec "$@"'
            return [find_program("unshare"), "--net", "sh", "-c", script, "sh", dockerd]
        return [dockerd, "--bridge", self._bridge.name]

    def _launch(self, name: str, command: Sequence[str]) -> Process:
        env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"}
        record, log = self.folder / f"{name}.process", self.folder / f"{name}.log"
        return launch(command, record=record, log=log, env=env, root=True)

    @property
    def _containerd_socket(self) -> Path:
        return self._run_folder / "containerd.sock"

    async def _kill_containers(self) -> None:
        """End our containers by their shims, which name our containerd: works with a dead engine, too."""
        shims = [process for process in _processes() if self._is_our_shim(process)]
        for shim in shims:
            for child in _children(shim):
                child.send(signal.SIGKILL)
                await child.gone(10)
        # A live engine has its shims end by themselves; those of a dead one stay for ever.
        if self.process is None:
            for shim in shims:
                shim.send(signal.SIGKILL)
                await shim.gone(10)

    def _is_our_shim(self, process: Process) -> bool:
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"containerd-shim" in words[0] and str(self._containerd_socket).encode() in words

    def _remove_rest(self) -> None:
        """Unmount what dead containers left, remove the bridge and the sockets."""
        ours = (f"{self.folder}/", f"{self._run_folder}/")
        for mount in reversed([point for point in _mount_points() if point.startswith(ours)]):
            subprocess.run(as_root("umount", "--lazy", mount), check=False, capture_output=True)
        if Path("/sys/class/net", self._bridge.name).exists():
            self._bridge.remove()
        subprocess.run(as_root("rm", "-rf", "--one-file-system", str(self._run_folder)), check=True)

    async def _ready(self, dockerd: Process, timeout: float) -> None:
        log = self.folder / "dockerd.log"
        try:
            async with asyncio.timeout(timeout):
                while not await _answers(self.socket):
                    if await dockerd.gone(0.1):
                        raise ServiceError(f"the engine ended while it started{log_tail(log)}")
        except TimeoutError:
            raise ServiceError(f"the engine was not ready after {timeout:.0f} s{log_tail(log)}") from None


async def _answers(path: Path) -> bool:
    connector = aiohttp.UnixConnector(path=str(path))
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://engine/_ping") as response,
        ):
            return response.ok
    except (OSError, aiohttp.ClientError, TimeoutError):
        return False


def _own(folder: Path) -> None:
    """Make a folder that only we can enter; refuse one that somebody else has put there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ServiceError(f"{folder} belongs to somebody else; remove it")
    folder.chmod(0o700)


def _mount_points() -> list[str]:
    """All of them, oldest first. The kernel writes spaces and the like as octal numbers."""
    words = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word) for word in words]


def _processes() -> list[Process]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for pid in pids if (process := Process.find(pid)) is not None]


def _children(parent: Process) -> list[Process]:
    pids = Path(f"/proc/{parent.pid}/task").glob("*/children")
    try:
        words = " ".join(path.read_text() for path in pids).split()
    except OSError:
        return []
    return [process for word in words if (process := Process.find(int(word))) is not None]

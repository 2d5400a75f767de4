"""What the engine is asked to make. Pure: the same input gives the same container."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from runner.adapters.docker.files import CODE, OUTPUT, PROGRESS, SECRETS
from runner.job import SECRETS_BYTES_MAX, SECRETS_MAX, Bytes, Limits, Stack

INIT = "/.runner-init"
"""Where the init is shown in the container."""
FILES = "/job"
"""Where the job's folder is shown in the container."""
WORK = "/work"
SCRATCH_TMP = "/tmp"  # noqa: S108
SECRETS_DIR = f"{FILES}/{SECRETS}"
SHARED_MEMORY = "/dev/shm"  # noqa: S108
PLACES = (WORK, SCRATCH_TMP, SHARED_MEMORY)
"""Where every job can write; `limits.disk` bounds them together."""
SCRATCH = "/scratch"
"""Where a job with `limits.scratch` finds its disk."""

RESOLV_CONF = "/etc/resolv.conf"
HOSTS = "/etc/hosts"

_BRING_UP_THE_LOOPBACK = frozenset({"runc", "crun"})

LABEL_WORKER = "runner.worker"
LABEL_BOOT = "runner.boot"
LABEL_STACK = "runner.stack"

NOBODY = 65534
"""Whom jobs run as whose stacks name no user."""

OPEN_FILES = 16384
"""How many descriptors each process may have: plenty, yet less than any engine is itself allowed."""

_NONE = Bytes(0)
_PAGE = 4096
_FEWEST_INODES = 1024
_LEAST_LOG = 2**20
_TCP = 16 * 2**20
"""The same for all: it cannot be changed in a container that waits for its job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is the same for every container of this worker.

    `boot` is the kernel's boot id, `init` our PID 1, `hosts` what a job without a network knows of hosts: itself;
    `reserve` is what has to stay free on the engine's disk.
    `uids` are the users that jobs run as whose stacks name none.
    """

    worker: str
    boot: str
    init: Path
    hosts: Path
    reserve: Bytes = _NONE
    uids: range | None = None


def lodge(stack: Stack, claim: str, site: Site) -> Stack:
    """The stack, with a user of the container's own where it names none: the kernel has quotas by user.

    The choice follows from the claim, so that nothing has to be remembered; that two jobs get one number is rare.
    """
    if not site.uids or stack.uid != NOBODY:
        return stack
    return replace(stack, uid=site.uids[crc32(claim.encode()) % len(site.uids)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a job reaches out: the engine's network that it is on, whom it asks for names, and the file that says so."""

    network: str
    nameservers: tuple[str, ...]
    resolv_conf: Path


def places(limits: Limits) -> tuple[str, ...]:
    """Where a job with these limits can write as much as they allow."""
    return (*PLACES, SCRATCH) if limits.scratch else PLACES


def create_body(
    stack: Stack,
    limits: Limits,
    folder: Path,
    site: Site,
    *,
    results: Path | None = None,
    scratch: Path | None = None,
    code: Path | None = None,
    access: Access | None = None,
) -> dict[str, Any]:
    """The body of the engine's create call for a container whose init will wait for a job.

    `results` is where the files are that its job may write, if not in `folder`;
    `scratch` is the block device of its scratch disk, if it gets one; `code` is the folder of its job's code;
    without `access` it has no network.
    """
    mounts = _mounts(stack, limits, folder, results or folder, site.init)
    if unplugged := access is None and _without_the_engines_network(stack):
        mounts["Mounts"].append(_bind(site.hosts, HOSTS))
    if scratch is not None:
        mounts["Mounts"].append(_disk(scratch, SCRATCH))
    if code is not None:
        mounts["Mounts"].append(_bind(code, f"{FILES}/{CODE}"))
    if access is not None:
        mounts["Mounts"].append(_bind(access.resolv_conf, RESOLV_CONF))
    return {
        "Image": stack.image,
        "Entrypoint": [INIT],
        "Cmd": [],
        "Env": [],
        "User": f"{stack.uid}:{stack.gid}",
        "WorkingDir": "/",
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": unplugged,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_WORKER: site.worker, LABEL_BOOT: site.boot, LABEL_STACK: stack.name},
        "HostConfig": _resources(limits) | _isolation(stack) | _network(access) | mounts,
    }


def _resources(limits: Limits) -> dict[str, Any]:
    memory = limits.memory + limits.disk  # what is written to /work and /tmp counts as memory
    return {
        "Memory": memory,
        "MemorySwap": memory,  # no swap
        # On control groups of version 1 the buffers of TCP and UDP count apart from the memory, or not at all.
        "KernelMemoryTCP": _TCP,
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids + 1,  # the init
        "Ulimits": [{"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES}],
        "OomScoreAdj": 500,
        "LogConfig": _log_config(limits),
    }


def _log_config(limits: Limits) -> dict[str, Any]:
    # For a daemon that comes back and has to catch up: each line takes some 75 bytes more than it has, so that both
    # files hold all that is kept of a log in lines of eleven bytes or longer. What was rotated away is missed.
    size = max(4 * limits.log_bytes, _LEAST_LOG)
    return {"Type": "json-file", "Config": {"max-size": str(size), "max-file": "2"}}


def _isolation(stack: Stack) -> dict[str, Any]:
    return {
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "Init": False,  # ours is PID 1
        "Runtime": stack.runtime,
        "IpcMode": "none",  # a namespace of its own, without the engine's /dev/shm: ours is bounded in files, too
        "CapDrop": ["ALL"],
        "CapAdd": list(stack.cap_add),
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": stack.read_only,
        "Devices": [_device(device) for device in stack.devices],
    }


def _network(access: Access | None) -> dict[str, Any]:
    if access is None:
        return {"NetworkMode": "none"}
    # The engine's own resolver is there, too, whatever the file says: without this it would ask whom the host asks.
    return {"NetworkMode": access.network, "Dns": list(access.nameservers)}


def _without_the_engines_network(stack: Stack) -> bool:
    """Whether the runtime makes an empty network namespace by itself, which takes half of the engine's time for one.

    Known of these two alone. And as the engine makes no /etc/hosts then, that of such a job cannot be written to.
    docs/decisions/0009-network-namespaces.md has the figures.
    """
    return stack.runtime in _BRING_UP_THE_LOOPBACK and stack.read_only


def probe_body(image: str, network: str, words: Sequence[str], site: Site) -> dict[str, Any]:
    """The body for a container whose init probes a network, or, without words, only is there until it is removed."""
    memory = 16 * 2**20
    return {
        "Image": image,
        "Entrypoint": [INIT],
        "Cmd": list(words),
        "User": "65534:65534",
        "OpenStdin": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_WORKER: site.worker, LABEL_BOOT: site.boot, LABEL_STACK: ""},
        "HostConfig": {
            "NetworkMode": network,
            "RestartPolicy": {"Name": "no"},
            "Memory": memory,
            "MemorySwap": memory,
            "PidsLimit": 4,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": str(_LEAST_LOG)}},
            "Mounts": [_bind(site.init, INIT)],
        },
    }


def _device(text: str) -> dict[str, str]:
    """`/dev/a`, `/dev/a:/dev/b` or `/dev/a:/dev/b:rw`, as on the engine's command line."""
    host, _, rest = text.partition(":")
    inside, _, permissions = rest.partition(":")
    return {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": permissions or "rwm"}


def _mounts(stack: Stack, limits: Limits, folder: Path, results: Path, init: Path) -> dict[str, Any]:
    space = max(limits.disk, _PAGE)  # to the kernel, zero means no limit
    options = f"rw,exec,nosuid,nodev,uid={stack.uid},gid={stack.gid}"
    bounds = f"size={space},nr_inodes={max(space // _PAGE, _FEWEST_INODES)}"
    return {
        "Tmpfs": {
            WORK: f"{options},mode=0700,{bounds}",
            SCRATCH_TMP: f"{options},mode=1777,{bounds}",
            SHARED_MEMORY: f"{options.replace('exec', 'noexec')},mode=1777,{bounds}",
            SECRETS_DIR: _secrets(stack),
        },
        "Mounts": [
            _bind(init, INIT),
            _bind(folder, FILES),
            _bind(results / OUTPUT, f"{FILES}/{OUTPUT}", writable=True),
            _bind(results / PROGRESS, f"{FILES}/{PROGRESS}", writable=True),
        ],
    }


def _secrets(stack: Stack) -> str:
    """Where the init writes the secrets. It is there for every job: whose it will be may not be known yet.

    The init is of the job's user, so that a job can write there, too: no more than secrets take, in its own memory.
    """
    space = SECRETS_BYTES_MAX + SECRETS_MAX * _PAGE  # each file ends in a page of its own
    return f"rw,noexec,nosuid,nodev,uid={stack.uid},gid={stack.gid},mode=0700,size={space},nr_inodes={SECRETS_MAX + 1}"


def _bind(source: Path, target: str, *, writable: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": not writable}


def _disk(device: Path, target: str) -> dict[str, Any]:
    """An anonymous volume, which goes with its container; only the engine may mount, and does so at the start."""
    options = {"type": "ext4", "device": str(device), "o": "nosuid,nodev"}
    driver = {"Name": "local", "Options": options}
    return {"Type": "volume", "Target": target, "VolumeOptions": {"NoCopy": True, "DriverConfig": driver}}

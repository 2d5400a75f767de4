"""Whether this machine, the broker and the engine are what a worker needs: one finding after the other."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from runner import __version__
from runner.adapters.amqp.connect import connect_once, server_version
from runner.adapters.docker.client import EngineInfo, open_client
from runner.adapters.docker.excess import free
from runner.adapters.docker.results import why_on_disk
from runner.adapters.docker.scratch import ScratchDisks
from runner.adapters.metrics import Metrics
from runner.app.disk import RESULTS_REMEDY, disk_of, engine_is_here, shortage
from runner.app.finding import Finding, Remedy
from runner.app.network import look_at_egress
from runner.app.registry import look_at_registry
from runner.app.secrets import look_at_secrets
from runner.app.sources import look_at_sources
from runner.app.stacks import list_stacks
from runner.app.topology import check_topology
from runner.errors import BrokerError, ConfigError, EngineError
from runner.init.binary import init_binary
from runner.job import Bytes
from runner.settings import Settings
from runner.stacks.catalog import Listed
from runner.units import format_size

_TOLD = 3


async def check(settings: Settings) -> AsyncIterator[Finding]:
    """Look at everything that `serve` needs, changing nothing."""
    yield Finding(
        name="configuration", detail=f"worker {settings.worker.name}, pools {', '.join(settings.worker.pools)}"
    )
    async for finding in _broker(settings):
        yield finding
    async for finding in _engine(settings):
        yield finding
    yield look_at_egress(settings)
    yield _init()
    yield _state_dir(settings.worker.state_dir)
    yield _disk("disk", settings.worker.state_dir, "worker.state_dir", settings.capacity.disk_free)
    yield _results(settings.worker.state_dir)
    for word, fault in look_at_secrets(settings):
        yield Finding(name="secrets", detail=word, remedy=Remedy.CONFIG if fault else None)
    yield await _scratch(settings)
    async for finding in look_at_sources(settings):
        yield finding


async def _broker(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with connect_once(settings.amqp.url, "runner:check") as connection:
            yield Finding(name="broker", detail=server_version(connection))
        faults = await check_topology(settings)
    except BrokerError as error:
        yield Finding(name="broker", detail=str(error), remedy=Remedy.SERVICE)
        return
    missing = all(" is missing; " in fault for fault in faults)
    if not faults:
        yield Finding(name="topology", detail=f"stands in the namespace {settings.amqp.namespace}")
    elif missing and settings.amqp.declare:
        yield Finding(name="topology", detail=f"{len(faults)} parts are missing; serve makes them")
    else:
        more = [f"and {len(faults) - _TOLD} more"] if len(faults) > _TOLD else []
        yield Finding(name="topology", detail="; ".join([*faults[:_TOLD], *more]), remedy=Remedy.CONFIG)


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    """The engine, and what only it can tell."""
    metrics = Metrics(version=__version__, installed=lambda: ())
    try:
        async with open_client(settings.engine.url, metrics) as client:
            info = await client.info()
        yield _runtimes(settings, info)
        yield Finding(name="cgroups", detail=f"version {info.cgroup_version}")
        if engine_is_here(settings.engine.url, info.root):
            yield _disk("engine disk", info.root, f"the engine's folder, {info.root}", settings.capacity.disk_free)
        stacks = [_stack(listed) for listed in await list_stacks(settings, info.runtimes)]
    except EngineError as error:
        yield Finding(name="engine", detail=f"{error}; is it up, and is engine.url right?", remedy=Remedy.SERVICE)
        return
    none = f"there is none in {settings.stacks.dir}; put a folder there for each and run: runner stacks build NAME"
    yield await _registry(settings)
    for finding in stacks or [Finding(name="stacks", detail=none, remedy=Remedy.CONFIG)]:
        yield finding


async def _registry(settings: Settings) -> Finding:
    """The engine asks the registry, and may fail over it: what else is looked at is told all the same."""
    try:
        return await look_at_registry(settings)
    except EngineError as error:
        return Finding(name="registry", detail=f"the engine could not ask it: {error}", remedy=Remedy.SERVICE)


def _runtimes(settings: Settings, info: EngineInfo) -> Finding:
    unknown = [runtime for runtime in settings.engine.runtimes if runtime not in info.runtimes]
    if unknown:
        known = ", ".join(sorted(info.runtimes))
        detail = f"engine.runtimes: the engine does not know {', '.join(unknown)}; it knows {known}"
        return Finding(name="engine", detail=detail, remedy=Remedy.CONFIG)
    return Finding(name="engine", detail=f"version {info.version}, {info.cpus} CPUs, {format_size(info.memory)}")


def _stack(listed: Listed) -> Finding:
    name = f"stack {listed.name}"
    if listed.stack is None:
        return Finding(name=name, detail=listed.fault or "cannot be used", remedy=Remedy.CONFIG)
    return Finding(name=name, detail=f"revision {listed.stack.revision}")


def _init() -> Finding:
    try:
        return Finding(name="init", detail=str(init_binary()))
    except ConfigError as error:
        return Finding(name="init", detail=str(error), remedy=Remedy.CONFIG)


def _state_dir(folder: Path) -> Finding:
    """Looked at with our own eyes: whoever calls this should be the daemon's user."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding(name="state_dir", detail=str(folder) if there == folder else f"{folder} will be made")
    detail = f"worker.state_dir: {there} cannot be written by this user; let the daemon's user own {folder}"
    return Finding(name="state_dir", detail=detail, remedy=Remedy.CONFIG)


def _disk(name: str, folder: Path, where: str, reserve: Bytes) -> Finding:
    disk = disk_of(folder)
    if lack := shortage(disk, reserve):
        return Finding(name=name, detail=f"under {where} {lack}: free some, or no job is taken", remedy=Remedy.MACHINE)
    return Finding(name=name, detail=f"{format_size(free(disk))} free under {where}")


def _results(state_dir: Path) -> Finding:
    """Nothing to mend: a worker runs jobs all the same."""
    if why := why_on_disk(state_dir):
        detail = f"on the disk of worker.state_dir, watched and not bounded: {why}; {RESULTS_REMEDY}"
        return Finding(name="results", detail=detail)
    return Finding(name="results", detail="in memory, each bounded by its job's limits")


async def _scratch(settings: Settings) -> Finding:
    """Made and given back: only that shows whether this user may."""
    most, folder = settings.limits.max.scratch, settings.worker.state_dir
    if not most:
        return Finding(name="scratch", detail="off, since limits.max.scratch is 0")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if fault := await ScratchDisks(there).fault():
        return Finding(name="scratch", detail=fault, remedy=Remedy.MACHINE)
    return Finding(name="scratch", detail=f"up to {format_size(most)} a job, each a file system of its own")

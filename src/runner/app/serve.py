"""The daemon: everything it is made of, in the order of its start, and the way it ends."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NoReturn

from runner import __version__
from runner.adapters.amqp.memory import Memory, open_memory
from runner.adapters.docker.engine import OpenEngine, open_engine
from runner.adapters.docker.health import EngineHealth
from runner.adapters.docker.images import Images, open_images
from runner.adapters.docker.results import place_in_memory
from runner.adapters.history import History, open_history
from runner.adapters.http import Views, serve_http
from runner.adapters.journal import SqliteJournal, open_journal
from runner.adapters.lock import WorkerLock
from runner.adapters.metrics import Metrics
from runner.adapters.packages.store import PackageStore
from runner.adapters.secrets import FileSecrets
from runner.adapters.systemd import ServiceManager
from runner.app.broker import Broker, open_broker, ready_topology
from runner.app.debts import Debts
from runner.app.disk import Disks
from runner.app.egress import Gate, Watch
from runner.app.knowledge import WorkerKnowledge
from runner.app.packages import open_packages_of
from runner.app.policy import policy_of
from runner.app.record import RecordedEvents, RecordedLogs
from runner.app.registry import Filling, Registry
from runner.app.runtimes import Runtimes
from runner.app.stacks import Stock, ledger_of, open_catalog
from runner.app.warm import StandingOrders
from runner.capacity import Budget, Capacity, Claim
from runner.codec import new_ordered_id
from runner.errors import ConfigError, JournalError
from runner.fairness import Fairness, Share
from runner.job import JobKey, Json
from runner.ports import OpenClaim, QueueKey
from runner.settings import Restart, Settings, load_settings
from runner.stacks.catalog import Catalog
from runner.worker import Worker
from runner.workplace import Outside, Rules

log = logging.getLogger(__name__)

_DISK_EVERY = 5.0
_LOOK_AGAIN = 0.2
_HURRY_MOST = 30.0
"""Seconds that jobs have to be settled after the second signal, in case that the broker is away."""
_REMOVE_WARM = 20.0
"""Seconds that the removal of containers which waited for jobs may take at the end."""
_LONGEST_RENEWAL = timedelta(seconds=30)
_YOUNG_MOST = 5_000
"""Objects after which the collector looks at the new ones; with 700 it did so in the midst of each burst."""


async def serve(settings: Settings) -> None:
    """Run the daemon until a signal has ended it. Raises `ConfigError` for what an operator has to mend."""
    async with AsyncExitStack() as stack:
        stack.enter_context(WorkerLock(settings.worker.state_dir).hold())
        daemon = await _furnish(settings, stack)
        _settle()
        await daemon.run()


def _settle() -> None:
    """Spare the collector what stays until the end: a look at all of it took 100 ms, in which nothing else went on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MOST, 10, 10)


async def _furnish(settings: Settings, stack: AsyncExitStack) -> "Daemon":
    """All that the daemon is made of, opened one after the other; the stack closes it in the other order."""
    folder = settings.worker.state_dir
    journal = await stack.enter_async_context(open_journal(folder, _now))
    history = await stack.enter_async_context(_open_history(settings))
    memory = await stack.enter_async_context(open_memory(folder, _now))
    images = await stack.enter_async_context(open_images(settings.engine.url))
    catalog = open_catalog(settings, images)
    metrics = _metrics(settings, catalog)
    packages = await stack.enter_async_context(open_packages_of(settings, folder, metrics))
    gate = Gate(settings)
    house = await stack.enter_async_context(_open_house(settings, metrics, packages, gate))
    return Daemon(
        settings=settings,
        journal=journal,
        history=history,
        memory=memory,
        catalog=catalog,
        metrics=metrics,
        packages=packages,
        house=house,
        gate=gate,
        watch=Watch(settings=settings, gate=gate, probes=house.probes, images=images, tell=metrics.egress_proven),
        runtimes=Runtimes(allowed=settings.engine.runtimes, engine=house.client, catalog=catalog),
        disks=Disks(settings, house),
        debts=Debts(journal=journal, owed={}),
        fairness=Fairness(_shares(settings)),
        filling=_filling(settings, images, catalog),
    )


def _open_history(settings: Settings) -> AbstractAsyncContextManager[History]:
    kept = settings.history
    return open_history(settings.worker.state_dir, max_age=kept.max_age, max_bytes=kept.max_bytes, now=_now)


def _open_house(
    settings: Settings, metrics: Metrics, packages: PackageStore, gate: Gate
) -> AbstractAsyncContextManager[OpenEngine]:
    return open_engine(
        url=settings.engine.url,
        worker=settings.worker.name,
        state_dir=settings.worker.state_dir,
        observer=metrics,
        in_memory=place_in_memory(settings.worker.state_dir, "jobs"),
        packages=packages,
        reserve=settings.capacity.disk_free,
        uids=settings.engine.uid_numbers,
        start_parallelism=settings.engine.start_parallelism,
        warm_memory=settings.warm_memory,
        access=gate.access,
    )


@dataclass(slots=True, kw_only=True)
class Daemon:
    """The parts of the daemon that outlive any connection."""

    settings: Settings
    journal: SqliteJournal
    history: History
    memory: Memory
    catalog: Catalog
    metrics: Metrics
    packages: PackageStore
    house: OpenEngine
    gate: Gate
    watch: Watch
    runtimes: Runtimes
    disks: Disks
    debts: Debts
    fairness: Fairness
    filling: Filling | None
    worker: Worker | None = None
    broker: Broker | None = None
    health: EngineHealth | None = None
    drain_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """From the first answer on /healthz to the last settled job."""
        manager, http = ServiceManager(), self.settings.http
        views = Views(metrics=self.metrics.render, problems=self.problems, status=self.status if http.page else None)
        async with serve_http(http.host, http.port, views), manager.watchdog():
            with _signals(self._reload) as stop:
                await self._until_stopped(stop, manager)

    async def _until_stopped(self, stop: "Stop", manager: ServiceManager) -> None:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._work(stop, manager))
            early = tasks.create_task(self._leave_early(stop, working))
            await working
            early.cancel()

    async def _leave_early(self, stop: "Stop", working: asyncio.Task[None]) -> None:
        """Before there is a worker, a signal needs no drain."""
        await stop.first.wait()
        if self.worker is None:
            working.cancel()

    async def _work(self, stop: "Stop", manager: ServiceManager) -> None:
        try:
            await ready_topology(self.settings)
            await self.journal.load()
            self.debts.owed.update(await self.journal.owed_notices())
            for notice in self.debts.owed.values():
                self.history.note(notice)
            adoptable = {claim.record.claim: await self._resumed(claim) for claim in await self.journal.open_claims()}
            await self._load_packages(adoptable.keys())
            for claim in adoptable.values():
                self.house.engine.keep(claim.record.container_name, claim.record.waited)
            await self.house.sweep.at_start()
            await self.runtimes.at_start()
            await self.disks.look_for_engine()
            await self.disks.warn_of_scratch()
            self.disks.warn_of_results()
            await self._serve(stop, manager, adoptable)
        except asyncio.CancelledError:
            if not stop.first.is_set():
                raise

    async def _load_packages(self, claims: Collection[str]) -> None:
        try:
            await self.packages.load(claims)
        except OSError as error:
            where = self.settings.worker.state_dir / "code"
            fault = f"worker.state_dir: {where} cannot be used ({error.strerror}); let the daemon's user own it"
            raise ConfigError(fault) from error

    async def _resumed(self, claim: OpenClaim) -> OpenClaim:
        """What the history lacks of the log is told again: the world drops repeats."""
        kept = await self.history.position(claim.record.claim)
        if kept is None:
            return claim
        logged = replace(claim.logged, out=min(kept.out, claim.logged.out), err=min(kept.err, claim.logged.err))
        return replace(claim, logged=logged)

    async def _serve(self, stop: "Stop", manager: ServiceManager, adoptable: Mapping[str, OpenClaim]) -> None:
        """Take and run jobs until the signal, then drain."""
        commands = {
            "drain": self._drain,
            "pause": self._pause,
            "resume": self._resume,
            "ping": self._ping,
        }
        async with (
            open_broker(
                self.settings,
                self.metrics,
                self.memory,
                commands=commands,
                cancel=self._cancel,
                superseded=self._superseded,
                rank=self._rank,
                knowledge=WorkerKnowledge(history=self.history, worker=lambda: self.worker),
            ) as self.broker,
            asyncio.TaskGroup() as tasks,
        ):
            self.worker = worker = self._make_worker(self.broker, adoptable)
            health = self.health = EngineHealth(client=self.house.client, changed=self._engine_changed)
            await health.look()
            chores = [
                tasks.create_task(chore)
                for chore in (
                    health.run(),
                    self.watch.run(),
                    self.runtimes.run(),
                    self.house.sweep.run(lambda: not worker.held()),
                    self._watch_disk(worker),
                    self.house.engine.fitness.run(partial(self._hinder, "start")),
                    self._keep_warm(worker),
                    self._keep_filled(),
                    self.debts.pay(self.broker.events.send, self.broker.heard),
                    self._abandon(self.broker, worker),
                    self._note_renewals(self.broker),
                    self._leave(stop, manager, worker),
                    self._announce(manager),
                    self._drain_on_command(worker),
                )
            ]
            await worker.run()
            for chore in chores:
                chore.cancel()
        await self._remove_warm()

    async def _keep_warm(self, worker: Worker) -> None:
        """Have containers wait for jobs, unless the operator wants none."""
        if self.settings.warm.enabled:
            orders = StandingOrders(catalog=self.catalog, policy=policy_of(self.settings), taking=lambda: worker.taking)
            await self.house.engine.warm.run(orders)

    async def _keep_filled(self) -> None:
        """Have the stacks' images here before their jobs come, where there is a registry."""
        if self.filling is not None:
            await self.filling.run()

    async def _remove_warm(self) -> None:
        """What still waits goes with us; what the engine does not remove now, the next life's sweep does."""
        try:
            async with asyncio.timeout(_REMOVE_WARM):
                await self.house.engine.dropped()
        except TimeoutError:
            log.warning("containers that waited for jobs are left to the next sweep")

    async def _leave(self, stop: "Stop", manager: ServiceManager, worker: Worker) -> None:
        """The first signal drains; the second one ends the jobs at once."""
        await stop.first.wait()
        manager.stopping()
        async with asyncio.TaskGroup() as tasks:
            hurry = tasks.create_task(_hurry(stop, worker))
            if self.settings.worker.restart is Restart.ADOPT:
                await worker.hand_over()
            else:
                await worker.drain()
            hurry.cancel()

    async def _abandon(self, broker: Broker, worker: Worker) -> None:
        """Leases of our earlier life come back with the first connection, or belong to somebody else by now."""
        while broker.problems():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(_LOOK_AGAIN)
        await asyncio.sleep(self.settings.worker.lease.total_seconds())
        await worker.abandon()

    async def _note_renewals(self, broker: Broker) -> NoReturn:
        """Keep on record until when our leases hold, for whoever cleans up when we are gone."""
        while True:
            try:
                if not broker.problems():
                    await self.journal.renew()
            except JournalError as error:
                log.warning("the renewal of leases was not noted", extra={"fault": str(error)})
            await asyncio.sleep(min(self.settings.worker.lease / 5, _LONGEST_RENEWAL).total_seconds())

    async def _announce(self, manager: ServiceManager) -> None:
        """Tell the service manager when jobs can be taken for the first time."""
        while self.problems():
            manager.status("; ".join(self.problems()))
            await asyncio.sleep(_LOOK_AGAIN)
        manager.status("taking jobs")
        manager.ready()

    def _make_worker(self, broker: Broker, adoptable: Mapping[str, OpenClaim]) -> Worker:
        settings = self.settings
        budget = Budget(
            total=Claim(
                millicpus=round(settings.capacity.cpus * 1000),
                memory=settings.capacity.memory,
                disk=self.disks.room(),
            ),
            max_jobs=settings.capacity.max_jobs,
        )
        outside = Outside(
            intake=broker.intake,
            engine=self.house.engine,
            secrets=FileSecrets(settings.secrets.dir),
            events=RecordedEvents(publisher=broker.events, history=self.history),
            log_sink=RecordedLogs(publisher=broker.log_sink, history=self.history),
            journal=self.journal,
            stacks=self.catalog,
            cancelled=broker.cancelled,
            uniqueness=broker.claims,
            observer=self.metrics,
            now=_now,
            new_claim=_new_claim,
        )
        rules = Rules(
            name=settings.worker.name,
            policy=policy_of(settings, self.gate.refusal),
            max_lost=settings.worker.max_lost,
            max_deferred=settings.worker.max_deferred,
            drain_timeout=settings.worker.drain_timeout,
        )
        ledger = Capacity(budget=budget, typical=Claim.of(settings.limits.default))
        return Worker(rules, outside, ledger, self.fairness, adoptable)

    def problems(self) -> list[str]:
        """Why no jobs are taken now; empty when they are. A full worker has no problem."""
        if self.worker is None or self.broker is None:
            return ["starting: waiting for the broker or the engine"]
        found = [f"{who}: {why}" for who, why in self.worker.pauses.items()]
        if self.worker.draining:
            found.append("draining")
        return found + self.broker.problems()

    def status(self) -> dict[str, Json]:
        """What the status page and the answer to `ping` say."""
        settings, worker = self.settings, self.worker
        return {
            "worker": settings.worker.name,
            "version": __version__,
            "state": self._state(),
            "pools": list(settings.worker.pools),
            "problems": list(self.problems()),
            "running": worker.running if worker else 0,
            "waiting": {str(key): why for key, why in worker.waiting().items()} if worker else {},
            "stacks": list(self.catalog.installed()),
            "capacity": {
                "cpus": settings.capacity.cpus,
                "memory": settings.capacity.memory,
                "max_jobs": settings.capacity.max_jobs,
            },
            "free": _free(worker) if worker else {},
            "capped": [name for name in settings.tenants if self.fairness.full(name)],
            "egress": self.gate.status(),
            "unaccounted": self.house.audit.unaccounted,
            "warm": dict(self.house.engine.warm.counts()),
            "quarantined": [str(key) for key in worker.quarantined] if worker else [],
        }

    def _state(self) -> str:
        """This worker in a word."""
        if self.worker is None or self.broker is None:
            return "starting"
        if self.worker.draining:
            return "draining"
        if self.worker.pauses:
            return "paused"
        return "cut off" if self.broker.problems() else "taking"

    def _engine_changed(self, up: bool, why: str) -> None:  # noqa: FBT001 - the callback's form
        self.metrics.engine_up(up)
        if up:
            self.watch.engine_returned()
            self.runtimes.engine_returned()
        self._hinder("engine", None if up else f"the container engine does not answer: {why}")

    def _hinder(self, who: str, why: str | None) -> None:
        """Take no jobs while there is a reason not to."""
        if self.worker is None:
            return
        if why is None:
            self.worker.resume(who)
        else:
            self.worker.pause(who, why)

    def _rank(self, queue: QueueKey) -> float | None:
        """How much the tenants of a queue have had; None for one that runs as much as it may."""
        now = asyncio.get_running_loop().time()
        if queue.tenant is None:
            named = [name for name, tenant in self.settings.tenants.items() if tenant.queue]
            return self.fairness.debt_beside(named, now)
        return None if self.fairness.full(queue.tenant) else self.fairness.debt(queue.tenant, now)

    def _reload(self) -> None:
        """Take over the tenants' weights and caps from the configuration, which is all that can change in a life."""
        try:
            settings = load_settings(os.environ)
        except ConfigError as error:
            log.error("configuration not taken over", extra={"faults": list(error.faults)})  # noqa: TRY400 - told whole
            return
        self.fairness.shares = _shares(settings)
        log.info("weights and caps of the tenants taken over")

    def _cancel(self, key: JobKey, reason: str) -> None:
        if self.worker is not None:
            self.worker.cancel(key, reason)

    async def _superseded(self, claim: str) -> None:
        await self.debts.waive(claim)
        if self.worker is not None:
            await self.worker.superseded(claim)

    async def _drain(self) -> Json:
        self.drain_asked.set()
        return self.status()

    async def _pause(self) -> Json:
        if self.worker is not None:
            self.worker.pause("operator", "paused by command; the command resume takes it back")
        return self.status()

    async def _resume(self) -> Json:
        if self.worker is not None:
            self.worker.resume_all()
        return self.status()

    async def _drain_on_command(self, worker: Worker) -> NoReturn:
        """Drain as often as it is asked for. The daemon stays: the service manager would only start it again."""
        while True:
            await self.drain_asked.wait()
            self.drain_asked.clear()
            await worker.drain_until_resumed()

    async def _ping(self) -> Json:
        return self.status()

    async def _watch_disk(self, worker: Worker) -> NoReturn:
        """Take nothing while a disk is nearly full, and no more scratch than there is room for."""
        while True:
            self._hinder("disk", self.disks.problem())
            worker.resize(self.disks.room())
            await asyncio.sleep(_DISK_EVERY)


@dataclass(slots=True)
class Stop:
    """The signals that came: the first asks to leave, the second to hurry."""

    first: asyncio.Event
    second: asyncio.Event

    def asked(self) -> None:
        """A signal came."""
        if self.first.is_set():
            self.second.set()
        self.first.set()


@contextmanager
def _signals(reload: Callable[[], None]) -> Iterator[Stop]:
    loop = asyncio.get_running_loop()
    stop = Stop(asyncio.Event(), asyncio.Event())
    handlers = {signal.SIGTERM: stop.asked, signal.SIGINT: stop.asked, signal.SIGHUP: reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield stop
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def _hurry(stop: Stop, worker: Worker) -> None:
    await stop.second.wait()
    log.warning("ending all jobs at once")
    worker.stop_all(at_once=True)
    await asyncio.sleep(_HURRY_MOST)
    log.warning("leaving although not all could be settled; what is open comes back with its lease")
    worker.cut_short()


def _metrics(settings: Settings, catalog: Catalog) -> Metrics:
    metrics = Metrics(version=__version__, installed=catalog.installed)
    metrics.capacity(cpus=settings.capacity.cpus, memory=settings.capacity.memory)
    return metrics


def _filling(settings: Settings, images: Images, catalog: Catalog) -> Filling | None:
    if settings.stacks.registry is None:
        return None
    stock = Stock(settings=settings, images=images, ledger=ledger_of(settings), catalog=catalog)
    return Filling(registry=Registry(stock=stock, say=lambda line: log.debug("filling", extra={"said": line})))


def _shares(settings: Settings) -> dict[str, Share]:
    return {
        name: Share(weight=tenant.weight, max_running=tenant.max_running) for name, tenant in settings.tenants.items()
    }


def _free(worker: Worker) -> dict[str, Json]:
    free, slots = worker.free()
    return {"cpus": free.millicpus / 1000, "memory": free.memory, "scratch": max(0, free.disk), "slots": slots}


def _now() -> datetime:
    return datetime.now(UTC)


def _new_claim() -> str:
    return new_ordered_id(_now()).replace("-", "")

"""Letting a revision in: test it in the sandbox of its stack, and only then give it to jobs."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from runner.adapters.docker.images import Images
from runner.app.local import Interrupts, open_local
from runner.app.policy import policy_of
from runner.codec import Notice, new_ordered_id
from runner.errors import ConfigError, EngineError, RunnerError
from runner.job import Job, JobKey, JobResult, Outcome, Priority, Route, Stack, StackRef
from runner.ports import Batch
from runner.settings import Settings
from runner.stacks import names
from runner.stacks.build import Built
from runner.stacks.catalog import Catalog
from runner.stacks.images import BuildError, Say
from runner.stacks.revisions import Ledger, Record, Smoke, State
from runner.stacks.switch import Switch

_TENANT = "default"


class SmokeError(RunnerError):
    """The smoke test failed; the stack's operator mends the image, or the test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A revision that jobs may get. `changed` is true when the next job gets it, and the last one did not."""

    stack: str
    revision: str
    image: str
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Lets revisions in. Raises `ConfigError`, `EngineError`, `SmokeError`."""

    settings: Settings
    images: Images
    catalog: Catalog
    ledger: Ledger
    say: Say

    async def admit(self, built: Built, *, use: bool) -> Admitted:
        """Test the revision and note how that ended; `use`: make it current."""
        record = await self._begin(built)
        built = replace(built, image=replace(built.image, id=record.image))
        smoke = await self._smoke(built)
        if smoke is not None and smoke.outcome != Outcome.SUCCEEDED:
            await self._refuse(built, record, smoke)
        await self._let_in(built, record.model_copy(update={"state": State.READY, "smoke": smoke}))
        switch, changed = Switch(self.ledger, self.images), False
        if use:
            before = await switch.pointer(built.stack)
            after = await switch.use(built.stack, built.revision)
            changed = before is None or before.current != after.current
        return Admitted(stack=built.stack, revision=built.revision, image=record.image, changed=changed)

    async def _begin(self, built: Built) -> Record:
        """What is known of the revision before its test. One with the same content that is here already stays.

        From here on `prune` keeps its image. It may have begun before to remove an older revision of that content.
        """
        async with self.ledger.removal():
            if await self.images.inspect(built.image.id) is None:
                raise BuildError(
                    f"{built.stack}: the image of revision {built.revision} was removed before it was tested, as"
                    " runner stacks prune does with an older one of the same content; do it again"
                )
            known = self.ledger.record(built.stack, built.revision)
            if known is not None and known.state is State.READY and await self.images.inspect(known.image) is not None:
                if built.image.id != known.image:
                    await self.images.remove_nameless(built.image.id)
                self.ledger.use(built.stack, built.revision)  # so that it is not pruned meanwhile
                return known
            record = Record(
                revision=built.revision,
                image=built.image.id,
                state=State.TESTING,
                built=datetime.now(UTC),
                inputs=built.inputs,
                pulled=built.pulled,
            )
            self.ledger.write(built.stack, record)
            await self.images.tag(built.image.id, names.repository(built.stack), built.revision)
            if known is not None and known.image != record.image:
                await self.images.remove_nameless(known.image)
            return record

    async def _let_in(self, built: Built, record: Record) -> None:
        """Give it to jobs."""
        async with self.ledger.lock():
            await self.images.tag(record.image, names.repository(built.stack), built.revision)
            self.ledger.write(built.stack, record)
            self.ledger.use(built.stack, built.revision)

    async def _refuse(self, built: Built, record: Record, smoke: Smoke) -> None:
        """Keep the revision out. What is current stays so, whatever it is: only an operator switches."""
        told = f"{built.stack}: revision {built.revision} failed its smoke test: {smoke.reason}"
        async with self.ledger.lock():
            pointer = await Switch(self.ledger, self.images).pointer(built.stack)
            if pointer is not None and pointer.current == built.revision and record.state is State.READY:
                raise SmokeError(f"{told}; it stays current although it failed: use another one, or mend the test")
            self.ledger.write(built.stack, record.model_copy(update={"state": State.FAILED, "smoke": smoke}))
            self.ledger.unmark(built.stack, built.revision)
        raise SmokeError(told)

    async def _smoke(self, built: Built) -> Smoke | None:
        """Run the stack's smoke test as a job of the stack; None if it has none. Raises `EngineError`."""
        command = self.catalog.smoke(built.stack)
        if command is None:
            return None
        # It is about the image; whose secrets would it get?
        stack = replace(self.catalog.offer(built.stack, built.image, built.revision), secrets=())
        self.say(f"testing {built.stack} {built.revision}: {' '.join(command)}")
        result = await self._run(stack, command)
        if result.verdict.outcome is Outcome.LOST:
            raise EngineError(f"the smoke test did not end: {result.verdict.reason}")
        if result.verdict.outcome is Outcome.REJECTED:
            raise ConfigError(f"{built.stack}: its smoke test cannot run on this machine: {result.verdict.reason}")
        times = result.times
        seconds = (times.ended - times.started).total_seconds() if times.started and times.ended else None
        return Smoke(
            command=command,
            outcome=result.verdict.outcome.value,
            reason=result.verdict.reason,
            seconds=seconds,
            tail=tuple(line.text for line in result.tail),
        )

    async def _run(self, stack: Stack, command: tuple[str, ...]) -> JobResult:
        now = datetime.now(UTC)
        job = Job(
            key=JobKey(tenant=_TENANT, id=new_ordered_id(now)),
            route=Route(pool="default", priority=Priority.NORMAL, tenant=_TENANT),
            stack=StackRef(name=stack.name, revision=stack.revision),
            published=now,
            command=command,
            name="smoke test",
        )
        policy = replace(policy_of(self.settings), tenant_stacks={}, tenant_secrets={})
        async with open_local(self.settings) as local:
            return await local.run(job, _Only(stack), policy, self._show, Interrupts())

    def _show(self, told: Notice | Batch) -> None:
        for line in told.lines if isinstance(told, Batch) else ():
            self.say(line.text)


@dataclass(frozen=True, slots=True)
class _Only:
    """The port `Stacks` with a single stack in it."""

    stack: Stack

    async def resolve(self, ref: StackRef) -> Stack:  # noqa: ARG002 - there is no other
        """The stack."""
        return self.stack

    def invalidate(self, name: str) -> None:
        """Nothing is remembered."""

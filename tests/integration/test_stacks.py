"""Stacks on a real engine: what is built, tested, switched and removed."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.local_house import Place, open_place
from tests.services import BUSYBOX_TAG, Endpoint

from runner.adapters.docker.images import open_images
from runner.app.admission import SmokeError
from runner.app.exec import exec_job
from runner.app.local import Interrupts, local_job
from runner.app.stacks import Shown, build_stack, ledger_of, open_stock, prune_stacks, show_stacks, use_revision
from runner.codec import Notice
from runner.errors import ConfigError
from runner.job import Bytes, JobResult
from runner.ports import Batch
from runner.settings import Settings, load_settings
from runner.stacks.build import build
from runner.stacks.prune import Pruned
from runner.stacks.revisions import Pointer, RevisionError

pytestmark = pytest.mark.engine

SMOKE = 'smoke = ["sh", "-c", "echo smoking; test $(cat /version) != bad && test $(id -u) = 65534 && ! touch /x"]\n'


@dataclass(slots=True)
class Operator:
    """Whoever looks after the one stack of a place, whose image tells its version."""

    place: Place
    settings: Settings
    said: list[str]

    @property
    def stack(self) -> str:
        return self.place.worker

    def write(self, version: str, text: str = SMOKE) -> None:
        dockerfile = f"FROM {BUSYBOX_TAG}\nCOPY version /version\n"
        self.place.write_stack(self.stack, text, Dockerfile=dockerfile, version=f"{version}\n")

    async def build(self, version: str, text: str = SMOKE, *, use: bool = True) -> str:
        """Build the stack; its revision."""
        self.write(version, text)
        admitted = await build_stack(self.settings, self.stack, self.said.append, use=use, fresh=False)
        return admitted.revision

    async def use(self, revision: str | None) -> Pointer:
        return await use_revision(self.settings, self.stack, revision)

    async def prune(self, *, dry: bool = False) -> Pruned:
        return await prune_stacks(self.settings, Bytes(0), dry=dry)

    async def run(self, revision: str | None = None) -> tuple[JobResult, str]:
        """How a job of the stack ended, and what it wrote."""
        told: list[str] = []

        def show(each: Notice | Batch) -> None:
            told.extend(line.text for line in (each.lines if isinstance(each, Batch) else ()))

        stack = f"{self.stack}@{revision}" if revision else self.stack
        job = local_job({"stack": stack, "command": ["cat", "/version"]}, "default.normal.acme")
        result = await exec_job(self.settings, job, show, Interrupts())
        return result, "".join(told)

    async def version(self, revision: str | None = None) -> str:
        """What a job of the stack runs on."""
        result, text = await self.run(revision)
        assert result.verdict.exit_code == 0, result
        return text

    async def shown(self) -> Shown:
        (shown,), _ = await show_stacks(self.settings)
        return shown

    def forget_use(self, revision: str) -> None:
        """As if it had been made long ago, and given to no job since."""
        ledger = ledger_of(self.settings)
        record = ledger.record(self.stack, revision)
        assert record is not None
        ledger.write(self.stack, record.model_copy(update={"built": datetime(2020, 1, 1, tzinfo=UTC)}))
        ledger.unmark(self.stack, revision)

    async def states(self) -> dict[str, str | None]:
        revisions = (await self.shown()).revisions
        return {each.revision: each.record.state.value if each.record else None for each, _ in revisions}


@pytest.fixture
async def operator(
    engine: Endpoint,
    busybox_image: str,  # noqa: ARG001 - what its stack is built on
    namespace: str,
    tmp_path: Path,
) -> AsyncIterator[Operator]:
    async with open_place(engine.url, namespace, tmp_path) as place:
        yield Operator(place, load_settings(place.environment), [])
        assert await place.containers() == []


async def test_revisions_are_built_used_rolled_back_and_pinned(operator: Operator) -> None:
    one, two = await operator.build("one"), await operator.build("two")
    assert await operator.version() == "two"
    assert await operator.version(one) == "one"

    assert await operator.use(None) == Pointer(current=one, previous=two)
    assert await operator.version() == "one"

    three = await operator.build("three", use=False)
    assert ledger_of(operator.settings).used(operator.stack, three) > 0  # so that it is not pruned before it is used
    assert await operator.version() == "one"
    assert await operator.use(three) == Pointer(current=three, previous=one)
    assert await operator.version() == "three"

    images, stack = await operator.place.images(), operator.stack
    assert images[f"{stack}:current"] == images[f"{stack}:{three}"]
    assert images[f"{stack}:previous"] == images[f"{stack}:{one}"]
    shown = await operator.shown()
    assert shown.listed.stack is not None
    assert (shown.listed.stack.revision, shown.listed.stack.image) == (three, images[f"{stack}:{three}"])
    assert await operator.states() == dict.fromkeys((one, two, three), "ready")
    record = ledger_of(operator.settings).record(stack, three)
    assert record is not None
    assert record.smoke is not None
    assert record.smoke.outcome == "succeeded"
    assert record.inputs is not None
    assert "smoking" in operator.said

    result, _ = await operator.run("absent")
    assert result.verdict.reason == f'this worker has no revision "absent" of the stack "{stack}"'


async def test_a_switch_takes_less_than_a_second(operator: Operator) -> None:
    for version in ("one", "two"):
        await operator.build(version)
    took = []
    for _ in range(5):  # the machine may stand still in the midst of one
        began = time.monotonic()
        await operator.use(None)
        took.append(time.monotonic() - began)
    assert min(took) < 1


async def test_a_revision_that_fails_its_smoke_test_is_never_used(operator: Operator) -> None:
    good = await operator.build("good")
    with pytest.raises(SmokeError, match="failed its smoke test: exited with code 1"):
        await operator.build("bad")
    assert await operator.version() == "good"
    (bad,) = [revision for revision, state in (await operator.states()).items() if state == "failed"]
    with pytest.raises(RevisionError, match=f"revision {bad} failed its smoke test: exited with code 1"):
        await operator.use(bad)
    result, _ = await operator.run(bad)
    assert (result.verdict.outcome, "failed its smoke test" in result.verdict.reason) == ("rejected", True)

    # What is current stays so when the test changes, and a test that is mended counts.
    with pytest.raises(SmokeError, match="it stays current although it failed"):
        await operator.build("good", 'smoke = ["false"]\n')
    assert await operator.version() == "good"
    assert await operator.build("bad", 'smoke = ["true"]\n') == bad
    assert await operator.use(None) == Pointer(current=good, previous=bad)

    # Another one that had passed is kept out when it fails a later test.
    with pytest.raises(SmokeError):
        await operator.build("bad")
    assert await operator.states() == {good: "ready", bad: "failed"}


async def test_a_smoke_test_does_without_the_stacks_secrets(operator: Operator) -> None:
    text = 'secrets = ["token"]\nsmoke = ["sh", "-c", "test -z $JOB_SECRETS_DIR"]\n'
    revision = await operator.build("one", text)
    assert await operator.states() == {revision: "ready"}


async def test_what_cannot_run_here_is_not_built(operator: Operator) -> None:
    with pytest.raises(ConfigError, match=r"is not among engine\.runtimes"):
        await operator.build("one", 'runtime = "crun"\n')
    assert await operator.place.images() == {}


async def test_a_fresh_build_of_the_same_content_leaves_no_second_image(operator: Operator) -> None:
    revision = await operator.build("one")
    before = await operator.place.images()
    async with open_images(operator.place.url) as images:
        fresh = await build(operator.place.stacks / operator.stack, images, print, fresh=True)
        assert fresh.revision == revision
        assert fresh.image.id not in before.values()
        async with open_stock(operator.settings) as stock:
            admitted = await stock.admission(print).admit(fresh, use=True)
        assert (admitted.changed, admitted.image) == (False, before[f"{operator.stack}:{revision}"])
        assert await images.inspect(fresh.image.id) is None
    assert await operator.place.images() == before


async def test_a_test_that_cannot_run_here_says_nothing_of_the_revision(operator: Operator) -> None:
    with pytest.raises(
        ConfigError, match=r"its smoke test cannot run on this machine: .* egress network is not set up"
    ):
        await operator.build("one", f'network = "egress"\n{SMOKE}')
    assert list((await operator.states()).values()) == ["testing"]
    with pytest.raises(RevisionError, match="has not passed its smoke test"):
        await operator.use(next(iter(await operator.states())))
    await operator.build("one")
    assert list((await operator.states()).values()) == ["ready"]


async def test_prune_removes_what_nobody_needs_and_its_image(operator: Operator) -> None:
    one, two, three = [await operator.build(version) for version in ("one", "two", "three")]
    before = await operator.place.images()
    assert await operator.version(one) == "one"
    assert (await operator.prune()).removed == ()  # it may still be on its way to another job
    operator.forget_use(one)
    assert [each.revision for each in (await operator.prune(dry=True)).removed] == [one]
    assert await operator.place.images() == before

    words = ("exec", "--stack", f"{operator.stack}@{one}", "--", "sh", "-c", "echo up; sleep 600")
    async with operator.place.start(*words) as job:
        assert job.stdout is not None
        assert await job.stdout.readline() == b"up\n"
        operator.forget_use(one)
        assert (await operator.prune()).removed == ()
        job.terminate()
        await job.communicate()
    pruned = await operator.prune()
    assert [each.revision for each in pruned.removed] == [one]
    assert pruned.after < pruned.before
    assert before.keys() - (await operator.place.images()).keys() == {f"{operator.stack}:{one}"}
    assert await operator.states() == dict.fromkeys((two, three), "ready")
    assert await operator.version() == "three"


async def test_the_commands_tell_what_they_did(operator: Operator) -> None:
    call, stack = operator.place.call, operator.stack
    operator.write("one")
    code, out, err = await call("stacks", "build", stack, "--json")
    one = json.loads(out)["revision"]
    assert (code, json.loads(out)["stack"], "smoking" in err.splitlines()) == (0, stack, True)
    two = await operator.build("two")
    assert await call("stacks", "rollback", stack) == (0, f"{stack} {one} is current; before it {two}\n", "")
    code, out, _ = await call("stacks", "use", stack, two, "--json")
    assert (code, json.loads(out)) == (0, {"stack": stack, "revision": two, "previous": one})
    code, _, err = await call("stacks", "use", stack, "absent")
    assert (code, "there is no revision absent; runner stacks list" in err) == (1, True)
    code, out, _ = await call("stacks", "list", "-a")
    assert (code, [line.split()[-1] for line in out.splitlines()[1:]]) == (
        0,
        ["current" if each == two else "previous" for each in sorted((one, two))],
    )
    code, out, err = await call("stacks", "prune", "--max", "0")
    assert (code, out, err.startswith("runner: ")) == (0, "", True)

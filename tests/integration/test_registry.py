"""Stacks filled from a registry, before any job asks."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiodocker
import pytest
from tests.integration.image_registry import ImageRegistry, image_registry
from tests.integration.local_house import Place, open_place
from tests.services import Endpoint

from runner.app.admission import Admitted, SmokeError
from runner.app.exec import exec_job
from runner.app.finding import Remedy
from runner.app.local import Interrupts, local_job
from runner.app.registry import Pulling, Registry, look_at_registry, pull_stacks
from runner.app.stacks import ledger_of, open_stock, use_revision
from runner.errors import ConfigError, DeferredError, RunnerError
from runner.job import StackRef
from runner.settings import Settings, load_settings
from runner.stacks.images import PullError, PullLimits
from runner.stacks.revisions import Pointer, State

pytestmark = pytest.mark.engine

ONCE = Pulling(limits=PullLimits(total=timedelta(seconds=120), idle=timedelta(seconds=60)), attempts=1)
PASSWORD = "correct horse"  # noqa: S105 - of the test's own registry
SMOKE = 'smoke = ["cat", "/version"]\n'


@dataclass(frozen=True)
class House:
    """A machine and its registry."""

    place: Place
    registry: ImageRegistry

    def settings(self, **environment: str) -> Settings:
        stacks = {"RUNNER_STACKS__REGISTRY": f"{self.registry.address}/{self.place.worker}"}
        return load_settings(self.place.environment | stacks | environment)

    def write(self, stack: str, digest: str, text: str = "") -> None:
        self.place.write_stack(stack, f'image = "images/small@{digest}"\n{text}')

    async def pull(self, **environment: str) -> list[Admitted]:
        return [admitted async for admitted in pull_stacks(self.settings(**environment), (), print)]

    async def fill(self, pulling: Pulling = ONCE) -> dict[str, Admitted | RunnerError]:
        """What becomes of each stack when its image is pulled once."""
        async with open_stock(self.settings()) as stock:
            registry = Registry(stock=stock, say=print, pulling=pulling)
            found: dict[str, Admitted | RunnerError] = {}
            for stack in stock.catalog.installed():
                file = registry.wanted(stack)
                assert file is not None
                assert file.image is not None
                async with aclosing(registry.fill(file.image, {stack: file})) as results:
                    found |= {name: result async for name, result in results}
        return found

    async def version(self, stack: str) -> str:
        words = {"stack": stack, "command": ["sh", "-c", 'echo "\\"$(cat /version)\\"" >$JOB_OUTPUT_FILE']}
        job = local_job(words, "default.normal.acme")
        result = await exec_job(self.settings(), job, lambda _: None, Interrupts())
        return str(result.verdict.output)

    async def deferred(self, stack: str) -> str:
        """Why a job is passed on."""
        async with open_stock(self.settings()) as stock:
            with pytest.raises(DeferredError) as error:
                await stock.catalog.resolve(StackRef(name=stack))
        return error.value.reason

    async def left(self) -> list[str]:
        """The names under which the engine still has what came from this registry."""
        async with aiodocker.Docker(url=self.place.url) as docker:
            images = await docker.images.list()
        names = [name for image in images for name in image["RepoDigests"] or ()]
        return [name for name in names if self.place.worker in name]


@pytest.fixture
async def house(engine: Endpoint, namespace: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_place(engine.url, namespace, tmp_path) as place, image_registry() as registry:
        house = House(place, registry)
        yield house
        assert await house.left() == []


async def test_what_a_stack_names_is_pulled_tested_and_given_to_jobs(house: House) -> None:
    stack = house.place.worker
    digest, layer = house.registry.put(f"one {stack}")
    house.write(stack, digest, SMOKE + 'user = "reader"\n')
    assert "is not here yet" in await house.deferred(stack)
    [admitted] = await house.pull()
    assert admitted.changed
    assert await house.version(stack) == f"one {stack}"
    record = ledger_of(house.settings()).record(stack, admitted.revision)
    assert record is not None
    assert record.smoke is not None
    assert record.pulled == f"{house.registry.address}/{stack}/images/small@{digest}"
    assert (record.state, record.smoke.outcome) == (State.READY, "succeeded")

    assert await house.pull() == []
    assert house.registry.asked[layer] == 1


async def test_a_new_pin_takes_over_and_a_rollback_holds(house: House) -> None:
    stack = house.place.worker
    ledger = ledger_of(house.settings())
    revisions = []
    for version in ("one", "two"):
        house.write(stack, house.registry.put(f"{version} {stack}")[0])
        revisions += [admitted.revision for admitted in await house.pull()]
    old, new = revisions
    assert ledger.pointer(stack) == Pointer(current=new, previous=old)
    rolled_back = await use_revision(house.settings(), stack, None)
    assert rolled_back == Pointer(current=old, previous=new)
    assert await house.pull() == []
    assert ledger.pointer(stack) == rolled_back


async def test_what_fails_its_test_is_kept_out(house: House) -> None:
    stack = house.place.worker
    digest, _ = house.registry.put(f"bad {stack}")
    house.write(stack, digest, 'smoke = ["false"]\n')
    assert isinstance((await house.fill())[stack], SmokeError)
    assert "failed its smoke test" in await house.deferred(stack)


async def test_another_content_than_the_pinned_one_is_refused(house: House) -> None:
    stack = house.place.worker
    digest, _ = house.registry.put(f"one {stack}")
    wrong = f"sha256:{'0' * 64}"
    house.registry.manifests[wrong] = house.registry.manifests[digest]
    house.write(stack, wrong)
    error = (await house.fill())[stack]
    assert isinstance(error, PullError)
    assert "verification failed for digest" in str(error)
    assert "verification failed for digest" in await house.deferred(stack)
    assert await house.place.images() == {}


async def test_what_the_registry_does_not_have_is_told(house: House) -> None:
    stack = house.place.worker
    house.write(stack, f"sha256:{'1' * 64}")
    with pytest.raises(PullError, match="manifest unknown"):
        await house.pull()
    assert "manifest unknown" in await house.deferred(stack)


async def test_a_blob_that_stalls_is_given_up(house: House) -> None:
    stack = house.place.worker
    digest, layer = house.registry.put(f"one {stack}")
    house.registry.stalled.add(layer)
    house.write(stack, digest)
    limits = PullLimits(total=timedelta(seconds=120), idle=timedelta(seconds=2))
    error = (await house.fill(Pulling(limits=limits, attempts=1)))[stack]
    assert isinstance(error, PullError)
    assert "nothing came for 2 s" in str(error)
    house.registry.stalled.clear()
    assert isinstance((await house.fill())[stack], Admitted)
    assert house.registry.asked[layer] == 2


async def test_the_total_limit_ends_a_pull_that_always_says_something(house: House) -> None:
    stack = house.place.worker
    digest, layer = house.registry.put(f"one {stack}")
    house.registry.stalled.add(layer)
    house.write(stack, digest)
    limits = PullLimits(total=timedelta(seconds=0.5), idle=timedelta(seconds=60))
    error = (await house.fill(Pulling(limits=limits, attempts=1)))[stack]
    assert isinstance(error, PullError)
    assert "not there after 0.5 s" in str(error)


async def test_two_at_once_share_one_pull(house: House) -> None:
    stack = house.place.worker
    digest, layer = house.registry.put(f"one {stack}")
    house.write(stack, digest)
    first, second = await asyncio.gather(house.pull(), house.pull())
    assert [each.changed for each in first + second] == [True]
    assert house.registry.asked[layer] == 1


async def test_a_registry_with_a_password(house: House, tmp_path: Path) -> None:
    stack = house.place.worker
    digest, _ = house.registry.put(f"one {stack}")
    house.write(stack, digest)
    house.registry.password = PASSWORD
    auth = tmp_path / "auth.json"
    words = base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
    auth.write_text(json.dumps({"auths": {house.registry.address: {"auth": words}}}))
    assert isinstance((await house.fill())[stack], PullError)
    assert (await look_at_registry(house.settings())).remedy is Remedy.CONFIG
    assert (await look_at_registry(house.settings(RUNNER_STACKS__REGISTRY_AUTH=str(auth)))).ok
    [admitted] = await house.pull(RUNNER_STACKS__REGISTRY_AUTH=str(auth))
    assert admitted.changed


async def test_check_asks_the_registry_for_what_stacks_name_and_pulls_nothing(house: House, tmp_path: Path) -> None:
    stack = house.place.worker
    assert (await look_at_registry(house.settings(RUNNER_STACKS__REGISTRY=""))).ok
    digest, layer = house.registry.put(f"one {stack}")
    house.write(stack, digest)
    assert (await look_at_registry(house.settings())).detail.endswith("has the 1 images that stacks name")
    assert house.registry.asked[layer] == 0

    missing = await look_at_registry(house.settings(RUNNER_STACKS__REGISTRY=""))
    assert (missing.remedy, "stacks.registry: is not set" in missing.detail) == (Remedy.CONFIG, True)
    unread = await look_at_registry(house.settings(RUNNER_STACKS__REGISTRY_AUTH=str(tmp_path / "none")))
    assert (unread.remedy, "stacks.registry_auth: " in unread.detail) == (Remedy.CONFIG, True)
    away = await look_at_registry(house.settings(RUNNER_STACKS__REGISTRY="127.0.0.1:9"))
    assert (away.remedy, "connection refused" in away.detail) == (Remedy.SERVICE, True)
    house.registry.manifests.clear()
    assert (await look_at_registry(house.settings())).remedy is Remedy.CONFIG


async def test_no_registry_is_a_fault_of_the_settings(house: House) -> None:
    house.write(house.place.worker, f"sha256:{'1' * 64}")
    with pytest.raises(ConfigError, match=r"stacks\.registry: is not set"):
        await house.pull(RUNNER_STACKS__REGISTRY="")

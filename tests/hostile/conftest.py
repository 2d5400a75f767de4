from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_hex

import aiodocker
import pytest
from tests.e2e.daemon import eventually, open_site
from tests.e2e.submitter import open_submitter
from tests.hostile.arena import Arena, Fought, fight, leftovers
from tests.hostile.attack import KEPT_WARM, STACKS
from tests.hostile.image import build_image, compile_attacks
from tests.mounted import results_in_memory
from tests.services import Endpoint

OpenArena = Callable[..., AbstractAsyncContextManager[Arena]]


@pytest.fixture(scope="session")
async def hostile_image(engine: Endpoint, busybox_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: ARG001
    """The id of the image that all attacks are in."""
    return await build_image(engine.url, compile_attacks(tmp_path_factory.mktemp("attacks")))


@pytest.fixture(scope="session")
def arena_at(
    broker: Endpoint, engine: Endpoint, busybox_image: str, hostile_image: str, tmp_path_factory: pytest.TempPathFactory
) -> OpenArena:
    """Opens an arena with these settings and stacks; at its end nothing may be left."""

    @asynccontextmanager
    async def open_arena(
        *, warm: bool = False, stacks: dict[str, str] | None = None, **settings: str
    ) -> AsyncIterator[Arena]:
        settings["warm__enabled"] = str(warm).lower()
        kept = f"warm = {KEPT_WARM}\n" if warm else ""
        folder, ns = tmp_path_factory.mktemp("arena"), f"h{token_hex(5)}"
        async with open_site(broker=broker.url, engine=engine.url, image=busybox_image, folder=folder, ns=ns) as site:
            async with aiodocker.Docker(url=engine.url) as docker:
                for name, text in {**STACKS, **(stacks or {})}.items():
                    site.write_stack(name, kept + text)
                    await docker.images.tag(hostile_image, repo=f"runner/{name}", tag="current")
            with results_in_memory(site.state_dir):
                async with site.daemon(**settings) as daemon:
                    await daemon.ready(timeout=60)
                    async with open_submitter(site.broker, ns) as acme:
                        yield Arena(daemon=daemon, acme=acme, warm=warm)
                    await daemon.stop()

    return open_arena


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["cold", "warm"])
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether the jobs' containers waited for them. What holds of an attack has to hold either way."""
    return bool(request.param)


@pytest.fixture(scope="module")
async def fought(request: pytest.FixtureRequest, arena_at: OpenArena, *, warm: bool) -> AsyncIterator[Fought]:
    """All attacks of the module's table, over, with nothing left of them. Its `SETTINGS` are the daemon's."""
    settings = {"limits__max__scratch": "64m", **getattr(request.module, "SETTINGS", {})}
    attacks = request.module.ATTACKS
    stacks = {attack.warm_stack: attack.warm_stack_file for attack in attacks} if warm else {}
    async with arena_at(warm=warm, stacks=stacks, **settings) as arena:
        fought = await fight(arena, attacks)
        await arena.daemon.clean()

        async def nothing_left() -> bool:
            return not leftovers(fought.containers, arena.daemon)

        await eventually(nothing_left, "no process, control group or mount is left")
        yield fought

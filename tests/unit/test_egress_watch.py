"""What the daemon concludes from its probes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import pytest
from tests.fakes import STACK

from runner.adapters.docker.images import Images
from runner.adapters.docker.probe import Probes, Words
from runner.adapters.network.record import Made, Record, RecordFile
from runner.adapters.network.rules import Isolation, Segment
from runner.app.egress import Gate, Watch
from runner.errors import EngineError, EngineGone
from runner.settings import load_settings
from runner.stacks.images import Image

RECORD = Record(
    table="runner_runner0",
    networks=(Made(name="runner0", segment=Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22"))),),
    nameservers=(IPv4Address("192.0.2.53"),),
    private=(),
    connections=4096,
    isolation=Isolation.ADDRESS,
)
SHUT, SILENT, OPEN = "filtered silent", "silent silent", "open open"


class FakeImages:
    """Has none until one is made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    async def inspect(self, name: str) -> Image | None:
        return Image(id=name) if name in self.made else None

    async def make_empty(self, repository: str, tag: str) -> None:
        self.made.append(f"{repository}:{tag}")


class World:
    """A watch whose probes hear one answer from every address, or fail."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.going_on = self.most = 0
        RecordFile(state_dir).write(RECORD)
        (state_dir / "none.toml").touch()
        environ = {"RUNNER_CONFIG": str(state_dir / "none.toml"), "RUNNER_WORKER__STATE_DIR": str(state_dir)}
        settings = load_settings(environ)
        self.answer: str | Exception = SHUT
        self.during: Callable[[], None] = lambda: None
        self.probed = asyncio.Event()
        self.told: list[bool] = []
        self.pairs: list[tuple[str, str | None]] = []
        self.images = FakeImages()
        self.gate = Gate(settings)
        self.watch = Watch(
            settings=settings,
            gate=self.gate,
            probes=cast("Probes", self),
            images=cast("Images", self.images),
            tell=self.told.append,
        )

    def have(self, *names: str) -> None:
        """Apply networks of these names."""
        segments = [Segment(bridge=name, subnet=IPv4Network(f"198.18.{4 * i}.0/22")) for i, name in enumerate(names)]
        networks = tuple(Made(name=each.bridge, segment=each) for each in segments)
        RecordFile(self.state_dir).write(replace(RECORD, networks=networks))

    async def run(self, network: str, image: str, words: Words, beside: str | None) -> str:
        assert image == self.images.made[0]
        self.pairs.append((network, beside))
        self.going_on += 1
        self.most = max(self.most, self.going_on)
        await asyncio.sleep(0)
        self.going_on -= 1
        self.during()
        self.probed.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        server = "192.0.2.53:53"
        tried = [word.lstrip("+") for word in words(IPv4Address("198.18.0.2"), None)]
        return "ipv6 none\n" + "".join(f"{word} {'open open' if word == server else self.answer}\n" for word in tried)

    async def after(self, *answers: str | Exception) -> str | None:
        """Why nobody may reach out after probes with these answers."""
        for self.answer in answers:
            await self.watch.look()
        return self.gate.refusal(STACK)


@pytest.fixture
def world(state_dir: Path) -> World:
    return World(state_dir)


async def test_a_probe_that_hears_refusals_opens_the_gate(world: World) -> None:
    assert await world.after(SHUT) is None
    assert world.told == [True]
    assert world.images.made == ["runner-network-probe:1"]


async def test_what_answers_shuts_it_at_once(world: World) -> None:
    refusal = await world.after(SHUT, OPEN)

    assert "this host (198.18.0.1:9)" in str(refusal)
    assert "can be reached" in str(refusal)
    assert world.told == [True, False]


@pytest.mark.parametrize("answer", [SILENT, EngineError("the engine refused"), EngineGone("no answer in 10 s")])
async def test_silence_shuts_it_the_third_time_in_a_row(world: World, answer: str | Exception) -> None:
    assert await world.after(SHUT, answer, answer, SHUT, answer, answer) is None
    assert await world.after(answer) is not None


async def test_after_a_miss_it_looks_again_soon_though_the_network_still_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.app.egress._AGAIN", timedelta(0))
    probes: list[str | None] = []
    world.during = lambda: probes.append(world.gate.refusal(STACK))
    await world.after(SHUT)
    world.answer = SILENT
    running = asyncio.create_task(world.watch.run())
    try:
        async with asyncio.timeout(30):
            while len(probes) < 4:
                world.probed.clear()
                await world.probed.wait()
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert probes[1:4] == [None] * 3


async def test_silence_never_opens_it(world: World) -> None:
    assert "no refusal came from our rules" in str(await world.after(SILENT))


async def test_when_the_engine_is_back_nothing_is_proven(world: World) -> None:
    assert await world.after(SHUT, EngineGone("away")) is None

    world.watch.engine_returned()

    assert "it was not probed yet" in str(world.gate.refusal(STACK))


async def test_a_probe_that_the_engines_return_fell_into_counts_for_nothing(world: World) -> None:
    world.during = world.watch.engine_returned

    assert "it was not probed yet" in str(await world.after(SHUT))


async def test_it_looks_again_when_the_engine_is_back(world: World) -> None:
    running = asyncio.create_task(world.watch.run())
    try:
        async with asyncio.timeout(30):
            await world.probed.wait()
            world.probed.clear()
            world.watch.engine_returned()
            await world.probed.wait()
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_each_network_is_tried_from_each_other_one_in_turn(world: World) -> None:
    names = ("runner0", "runner0-a", "runner0-b")
    await world.watch.look()
    world.have(*names)
    for _ in range(2):
        await world.watch.look()

    assert world.pairs[0] == ("runner0", None)
    assert sorted(world.pairs[1:], key=str) == [(one, other) for one in names for other in names if other != one]


async def test_many_networks_are_probed_a_few_at_a_time(world: World) -> None:
    world.have("runner0", *(f"runner0-{i}" for i in range(9)))

    assert await world.after(SHUT) is None

    assert len(world.pairs) == 10
    assert world.most == 2


async def test_the_rest_is_not_probed_for_nothing_once_the_engine_was_away(world: World) -> None:
    world.have("runner0", *(f"runner0-{i}" for i in range(9)))
    world.during = world.watch.engine_returned

    await world.watch.look()

    assert len(world.pairs) == 2


async def test_for_one_stack_one_network_is_probed(world: World) -> None:
    world.have("runner0", "runner0-a")

    await world.watch.look_for(STACK)

    assert [network for network, _ in world.pairs] == ["runner0"]
    assert world.gate.refusal(STACK) is None

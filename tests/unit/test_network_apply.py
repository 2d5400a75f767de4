"""In which order networks are applied, and by whom at a time; the kernel and the engine are not asked."""

import asyncio
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from runner.adapters.network import host, nft
from runner.adapters.network.lock import NetworkLock
from runner.adapters.network.record import Made, Record, RecordFile
from runner.adapters.network.rules import Isolation, Segment
from runner.app.network import apply_network, keep_network, remove_network
from runner.errors import ConfigError, EngineGone, HostError
from runner.settings import Settings, load_settings

RECORD = Record(
    table="runner_runner0",
    networks=(Made(name="runner0", segment=Segment(bridge="runner0", subnet=IPv4Network("198.18.0.0/22"))),),
    nameservers=(IPv4Address("192.0.2.53"),),
    private=(),
    connections=4096,
    isolation=Isolation.ADDRESS,
)


class PacketFilter:
    """Has no tables until a script is loaded, or refuses it."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.refuses = False
        self.asked = asyncio.Event()

    def loaded(self, table: str) -> nft.Tables | None:
        self.asked.set()
        return [table] if self.scripts else None

    def load(self, script: str) -> None:
        if self.refuses:
            raise HostError("nft refuses the rules: no such thing")
        self.scripts.append(script)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PacketFilter:
    kernel = PacketFilter()
    monkeypatch.setattr(host, "require_root", lambda: None)
    monkeypatch.setattr(nft, "loaded", kernel.loaded)
    monkeypatch.setattr(nft, "load", kernel.load)
    return kernel


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a machine whose engine is away."""
    (tmp_path / "none.toml").touch()
    return load_settings(
        {
            "RUNNER_CONFIG": str(tmp_path / "none.toml"),
            "RUNNER_WORKER__STATE_DIR": str(tmp_path / "state"),
            "RUNNER_STACKS__DIR": str(tmp_path / "stacks"),
            "RUNNER_ENGINE__URL": "unix:///nowhere/docker.sock",
            "RUNNER_NETWORK__NAMESERVERS": '["192.0.2.53"]',
        }
    )


def break_a_stack(settings: Settings) -> None:
    folder = settings.stacks.dir / "broken"
    folder.mkdir(parents=True)
    (folder / "stack.toml").write_text("alow = []\n")


async def test_rules_that_vanished_are_back_before_a_stacks_file_is_read(
    settings: Settings, kernel: PacketFilter
) -> None:
    RecordFile(settings.worker.state_dir).write(RECORD)
    break_a_stack(settings)

    with pytest.raises(ConfigError, match="alow"):
        await apply_network(settings)
    assert kernel.scripts == [RECORD.rules.script()]


async def test_they_are_back_while_the_engine_is_away(settings: Settings, kernel: PacketFilter) -> None:
    RecordFile(settings.worker.state_dir).write(RECORD)

    with pytest.raises(EngineGone):
        await keep_network(settings)
    assert kernel.scripts == [RECORD.rules.script()]


async def test_rules_that_the_kernel_no_longer_takes_keep_nobody_from_new_ones(
    settings: Settings, kernel: PacketFilter
) -> None:
    RecordFile(settings.worker.state_dir).write(RECORD)
    kernel.refuses = True

    with pytest.raises(EngineGone):
        await apply_network(settings)


async def test_where_nothing_is_applied_nothing_is_kept(settings: Settings, kernel: PacketFilter) -> None:
    assert await keep_network(settings) is None
    assert not kernel.asked.is_set()
    assert not settings.worker.state_dir.exists()


async def test_one_at_a_time_changes_networks_and_the_next_one_waits(settings: Settings, kernel: PacketFilter) -> None:
    RecordFile(settings.worker.state_dir).write(RECORD)
    async with NetworkLock(settings.worker.state_dir).hold():
        applying = asyncio.create_task(apply_network(settings))
        await asyncio.wait({applying}, timeout=0.3)
        assert not kernel.asked.is_set()
    async with asyncio.timeout(30):
        with pytest.raises(EngineGone):
            await applying
    assert kernel.asked.is_set()


async def test_one_that_waits_too_long_says_for_what(
    settings: Settings, kernel: PacketFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.adapters.network.lock._PATIENCE", timedelta(0))

    async with NetworkLock(settings.worker.state_dir).hold():
        with pytest.raises(HostError, match=r"another runner network apply or remove has held .*/network.lock"):
            await remove_network(settings)
    assert not kernel.asked.is_set()


async def test_a_link_in_place_of_the_lock_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    settings.worker.state_dir.mkdir()
    (settings.worker.state_dir / "network.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(HostError, match=r"network.lock cannot be written"):
        async with NetworkLock(settings.worker.state_dir).hold():
            pytest.fail("it was followed")
    assert not (tmp_path / "elsewhere").exists()

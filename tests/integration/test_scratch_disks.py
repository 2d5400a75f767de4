"""Disks for jobs that ask for scratch, made and given back without an engine."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import eventually

from runner.adapters.docker import scratch
from runner.adapters.docker.scratch import ScratchDisks
from runner.job import Bytes

MIB = 2**20


@pytest.fixture
def disks(tmp_path: Path) -> ScratchDisks:
    return ScratchDisks(tmp_path)


async def gone(folder: Path) -> bool:
    """Whether no loop device has a file of that folder."""
    found = subprocess.run(["losetup", "--list", "--json"], capture_output=True, check=True)  # noqa: ASYNC221 - at once
    devices = json.loads(found.stdout)["loopdevices"] if found.stdout else []
    return not [one for one in devices if str(one["back-file"]).startswith(f"{folder}/")]


async def test_a_disk_has_its_size_and_no_name_and_goes_when_it_is_let_go(disks: ScratchDisks) -> None:
    device = await disks.make("a", Bytes(8 * MIB), uid=1, gid=1)
    assert device.path.is_block_device()
    assert not await gone(disks.folder)
    assert list(disks.folder.iterdir()) == []
    with device.path.open("rb") as block:
        assert block.seek(0, os.SEEK_END) == 8 * MIB
    device.close()
    device.close()
    await eventually(lambda: gone(disks.folder), "the device is gone")


async def test_it_is_known_how_much_of_the_hosts_disk_they_hold(disks: ScratchDisks) -> None:
    device = await disks.make("a", Bytes(4 * MIB), uid=1, gid=1)
    device.close()
    disks.note("of an earlier life", Bytes(2 * MIB))
    disks.note("none", Bytes(0))
    assert disks.held == 6 * MIB
    disks.forget("a")
    disks.forget("never there")
    assert disks.held == 2 * MIB


async def test_one_that_does_not_fit_takes_nothing(disks: ScratchDisks) -> None:
    with pytest.raises(OSError, match=r"^fallocate: .*(No space left|too large)"):
        await disks.make("a", Bytes(2**50), uid=1, gid=1)
    assert disks.held == 0
    assert await gone(disks.folder)


async def test_that_one_can_be_made_is_found_out_by_making_one(disks: ScratchDisks) -> None:
    assert await disks.fault() is None
    assert disks.held == 0
    await eventually(lambda: gone(disks.folder), "the device is gone")


async def test_a_missing_program_is_named_with_its_package(
    disks: ScratchDisks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fallocate").symlink_to("/usr/bin/fallocate")
    monkeypatch.setattr(scratch, "_SYSTEM", str(tmp_path / "bin"))
    assert await disks.fault() == "mke2fs is missing: install e2fsprogs; see docs/disk.md"


async def test_without_loop_devices_there_are_none(disks: ScratchDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.adapters.docker.loop._CONTROL", f"{disks.folder}/no-such-device")
    fault = await disks.fault()
    assert fault is not None
    assert fault.endswith("worker.state_dir may not suit (docs/disk.md)")
    assert disks.held == 0

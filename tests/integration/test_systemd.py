"""What the service manager hears, on a real socket; and the unit that it reads."""

import asyncio
import configparser
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from secrets import token_hex

import pytest

from runner.adapters.systemd import ServiceManager
from runner.settings.tree import MaxLimits, Worker

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "runner.service"


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The value of `$NOTIFY_SOCKET`, and the manager's end of it."""
    name = f"@runner-test-{token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        listening.setblocking(False)
        yield name, listening


async def next_message(listening: socket.socket) -> str:
    async with asyncio.timeout(30):
        return (await asyncio.get_running_loop().sock_recv(listening, 4096)).decode()


async def test_the_manager_hears_of_each_step(manager_socket: tuple[str, socket.socket]) -> None:
    name, listening = manager_socket
    manager = ServiceManager({"NOTIFY_SOCKET": name})

    manager.status("waiting for the broker:\nconnection refused")
    manager.ready()
    manager.stopping()

    heard = [await next_message(listening) for _ in range(3)]
    assert heard == ["STATUS=waiting for the broker: connection refused", "READY=1", "STOPPING=1"]


async def test_the_watchdog_is_fed_until_the_end_and_no_longer(manager_socket: tuple[str, socket.socket]) -> None:
    name, listening = manager_socket
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
    loop = asyncio.get_running_loop()

    before = asyncio.all_tasks()
    async with manager.watchdog():
        begun = loop.time()
        heard = [await next_message(listening) for _ in range(5)]
        took = loop.time() - begun

    assert heard == ["WATCHDOG=1"] * 5
    assert took >= 0.15  # every 50 ms, the first one at once
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
async def test_nobody_is_fed_who_does_not_watch_us(
    manager_socket: tuple[str, socket.socket], environment: dict[str, str]
) -> None:
    name, listening = manager_socket
    manager = ServiceManager({"NOTIFY_SOCKET": name, **environment})

    async with manager.watchdog():
        manager.status("first")
        assert await next_message(listening) == "STATUS=first"


async def test_a_failure_beside_the_watchdog_comes_through_unwrapped() -> None:
    manager = ServiceManager({"WATCHDOG_USEC": "100000"})

    with pytest.raises(ValueError, match="of the daemon"):
        async with manager.watchdog():
            raise ValueError("of the daemon")


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nobody/listens/here"}])
async def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    manager = ServiceManager({**environment, "WATCHDOG_USEC": "1000"})

    async with manager.watchdog():
        manager.ready()
        manager.status("alone")
        manager.stopping()


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program in it that every machine has."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/runner/bin/runner", "/bin/true"), encoding="utf-8")
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd-analyze is missing; it is in the package systemd")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False, env={"LC_ALL": "C"}
    )


def test_the_unit_has_no_faults(unit: Path) -> None:
    result = analyze("verify", str(unit))

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_what_scratch_adds_to_the_unit_has_no_faults_and_opens_little(unit: Path) -> None:
    drop_in = unit.with_name(f"{unit.name}.d") / "scratch.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((UNIT.parent / "scratch.conf").read_text(encoding="utf-8") + "Nonsense=1\n")
    assert "Nonsense" in analyze("verify", str(unit)).stderr  # it is read
    drop_in.write_text((UNIT.parent / "scratch.conf").read_text(encoding="utf-8"))

    verified = analyze("verify", str(unit))
    shut = analyze("security", "--offline=yes", "--no-pager", "--threshold=25", str(unit))

    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    assert shut.returncode == 0, shut.stdout[-200:]


@pytest.mark.parametrize(
    "name",
    [
        *(f"runner-{what}.{kind}" for what in ("reap", "prune", "network") for kind in ("service", "timer")),
        "var-lib-runner-results.mount",
    ],
)
def test_what_stands_beside_it_has_no_faults(tmp_path: Path, name: str) -> None:
    for path in (*UNIT.parent.glob("runner-*.*"), *UNIT.parent.glob("*.mount")):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/runner/bin/runner", "/bin/true"))

    result = analyze("verify", str(tmp_path / name))

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_unit_is_shut_as_far_as_it_can_be(unit: Path) -> None:
    result = analyze("security", "--offline=yes", "--no-pager", "--threshold=25", str(unit))

    assert result.returncode == 0, result.stdout[-200:]
    assert "Overall exposure level" in result.stdout


def test_the_daemon_asks_for_the_place_for_results_where_it_looks_for_it() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.read([UNIT, UNIT.parent / "var-lib-runner-results.mount"], encoding="utf-8")

    assert parsed["Mount"]["Where"] == str(Worker.model_fields["state_dir"].default / "results")
    assert all("var-lib-runner-results.mount" in parsed["Unit"][how].split() for how in ("wants", "after"))


def test_the_manager_waits_for_the_drain() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.read_string(UNIT.read_text(encoding="utf-8"))
    patience = timedelta(minutes=int(parsed["Service"]["TimeoutStopSec"].removesuffix("min")))

    drain, grace = Worker.model_fields["drain_timeout"].default, MaxLimits.model_fields["grace"].default
    assert patience >= drain + grace + timedelta(minutes=3)

"""What the host's cgroup files tell, in both versions and under both drivers of the engine."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.adapters.docker.cgroup import usage
from runner.job import Usage

ID = 64 * "a"
STAT = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n"
FULL = Usage(cpu_seconds=1.5, memory_peak_bytes=4096)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {f"system.slice/docker-{ID}.scope/cpu.stat": STAT, f"system.slice/docker-{ID}.scope/memory.peak": "4096\n"},
            FULL,
        ),
        ({f"docker/{ID}/cpu.stat": STAT, f"docker/{ID}/memory.peak": "4096\n"}, FULL),
        ({f"docker/{ID}/cpu.stat": STAT}, Usage(cpu_seconds=1.5)),
        (
            {
                f"cpuacct/docker/{ID}/cpuacct.usage": "1500000000\n",
                f"memory/docker/{ID}/memory.max_usage_in_bytes": "4096\n",
            },
            FULL,
        ),
        (
            {
                f"cpu,cpuacct/system.slice/docker-{ID}.scope/cpuacct.usage": "1500000000\n",
                f"memory/system.slice/docker-{ID}.scope/memory.max_usage_in_bytes": "4096\n",
            },
            FULL,
        ),
        ({f"docker/{64 * 'b'}/cpu.stat": STAT}, Usage()),
        ({}, Usage()),
    ],
)
def test_usage(tmp_path: Path, files: Mapping[str, str], told: Usage) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usage(ID, tmp_path) == told

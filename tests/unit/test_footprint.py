"""What the daemon does not load: each of these would stay in its memory for as long as it runs."""

import subprocess
import sys

# What other commands need, and parts of libraries of which each is a megabyte or more.
_NOT_OURS = {
    "aiohttp.web",
    "multiprocessing",
    "pathspec",
    "pydantic_settings",
    "runner.app.check",
    "runner.app.fleet",
    "runner.cli.options",
    "runner.client",
    "runner.stacks.archive",
    "unittest",
    "xml",
}
_LOADED = "import sys, runner.cli, runner.cli.serve; print(*sys.modules)"


def test_the_daemon_loads_nothing_that_is_only_for_others() -> None:
    told = subprocess.run([sys.executable, "-c", _LOADED], check=True, capture_output=True, text=True, timeout=60)
    loaded = set(told.stdout.split())

    assert "runner.app.serve" in loaded
    assert loaded & _NOT_OURS == set()

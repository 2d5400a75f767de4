"""The README shows exactly what the demo prints."""

import asyncio
import re
import signal
import sys
from pathlib import Path

from tests.services import Endpoint

ROOT = Path(__file__).resolve().parents[2]
JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


async def run_demo() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scripts.demo",
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def promised() -> list[str]:
    text = (ROOT / "README.md").read_text()
    block = text.partition("<!-- demo:begin -->")[2].partition("<!-- demo:end -->")[0]
    return [JOB_ID.sub("ID", line.removeprefix("    ")) for line in block.strip("\n").splitlines()]


async def test_the_readme_shows_what_the_demo_prints(broker: Endpoint, engine: Endpoint) -> None:
    del broker, engine  # they are shared: what runs already is neither announced differently nor stopped
    demo = await run_demo()
    async with asyncio.timeout(120):
        output, _ = await demo.communicate()
    printed = [JOB_ID.sub("ID", line) for line in output.decode().splitlines()]
    assert demo.returncode == 0, output.decode()
    assert printed == promised()


async def test_the_demo_cleans_up_when_it_is_interrupted(broker: Endpoint, engine: Endpoint) -> None:
    del broker, engine
    demo = await run_demo()
    assert demo.stdout is not None
    async with asyncio.timeout(120):
        while b"step 1" not in (line := await demo.stdout.readline()):
            assert line, "the demo ended before its first job printed anything"
        demo.send_signal(signal.SIGINT)
        rest = await demo.stdout.read()
        await demo.wait()
    assert demo.returncode == 128 + signal.SIGINT
    assert b"stopping what was started" in rest

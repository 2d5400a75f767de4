"""All stacks that we ship are built and tested, together take little disk, and run the examples."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from scripts.examples import all_examples
from scripts.stacks import all_stacks
from tests.services import Endpoint

ROOT = Path(__file__).resolve().parents[2]
MOST_OF_THE_SUM = 45.0


async def run(script: str, *words: str, **settings: str) -> str:
    """What a script printed; it has to succeed. Bases and images take minutes where none is there yet."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"scripts.{script}", *words),
        cwd=ROOT,
        env=env | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(3600):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.slow
async def test_every_stack_is_built_and_tested_and_shares_what_it_can(engine: Endpoint) -> None:
    told = await run("stacks", "--sizes", RUNNER_ENGINE__URL=engine.url)
    assert [name for name in all_stacks() if f"runner/{name}:current" not in told] == []
    share = re.search(r"together they take ([0-9.]+)% of the sum", told)
    assert share is not None, told
    assert float(share[1]) <= MOST_OF_THE_SUM, told


@pytest.mark.slow
async def test_every_example_does_what_it_should(broker: Endpoint, engine: Endpoint) -> None:
    told = await run("examples", RUNNER_AMQP__URL=broker.url, RUNNER_ENGINE__URL=engine.url)
    assert told.count("as expected") == len(all_examples()), told

"""Submits every job of `examples/`, shows what each said, and compares its output with the one that is right.

It goes to the daemons that answer at `RUNNER_AMQP__URL`, if that is set and one does; else to one of its own, on
private services unless `RUNNER_AMQP__URL` and `RUNNER_ENGINE__URL` name others, for which it first builds the stacks.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker

from scripts.bases import BaseError
from scripts.daemon import ROOT, DaemonError, read, services
from scripts.devservices import ServiceError
from scripts.mirror import MirrorError
from scripts.stacks import StacksError, build_bases, build_stacks
from scripts.stopping import run_until_signal

EXAMPLES = ROOT / "examples"
START_WITHIN = "5m"
AT_ONCE = 4
HEAD = ("EXAMPLE", "STACK", "OUTCOME", "START", "RUN", "OUTPUT")
ROW = "{:14}  {:11}  {:9}  {:>7}  {:>7}  {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A job of the folder: its message without `code`, and the output that is right."""

    name: str
    job: Mapping[str, Any]
    expected: Any

    @property
    def folder(self) -> Path:
        """Where its files are: `job.json`, `expected.json` and the program in `code/`."""
        return EXAMPLES / self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How an example went: the event `finished`, and the lines of its log."""

    example: Example
    finished: Mapping[str, Any]
    lines: Sequence[str]

    @property
    def right(self) -> bool:
        """Whether its output is the one that it should be."""
        return bool(self.finished["outcome"] == "succeeded" and self.finished["output"] == self.example.expected)

    @property
    def row(self) -> tuple[str, ...]:
        """Its row in the table."""
        seconds, outcome = self.finished["seconds"], str(self.finished["outcome"])
        verdict = "as expected" if self.right else "not what was expected"
        times = (f"{seconds[phase]:.2f} s" if seconds.get(phase) is not None else "-" for phase in ("prepare", "run"))
        told = verdict if outcome == "succeeded" else str(self.finished["reason"])
        return (self.example.name, str(self.example.job["stack"]), outcome, *times, told)


def say(text: str) -> None:
    print(f"examples: {text}", file=sys.stderr, flush=True)


def all_examples() -> list[Example]:
    """The examples that we have, in the order of their names."""
    return [_read(path.parent) for path in sorted(EXAMPLES.glob("*/job.json"))]


def _read(folder: Path) -> Example:
    job, expected = ((folder / name).read_text() for name in ("job.json", "expected.json"))
    return Example(name=folder.name, job=json.loads(job), expected=json.loads(expected))


async def run_examples(examples: Sequence[Example]) -> None:
    """Submit them all and show how they went. Raises `DaemonError` when one did not go as it should."""
    async with AsyncExitStack() as stack:
        workers = await running()
        if workers:
            say(f"submitting to the workers that run: {', '.join(workers)}")
            env: Mapping[str, str] = os.environ
        else:
            say("no worker runs yet: starting one for the examples")
            env = await stack.enter_async_context(own_daemon(sorted({str(each.job["stack"]) for each in examples})))
        shown = await submit_all(env, examples)
    print()
    for row in (HEAD, *(one.row for one in shown)):
        print(ROW.format(*row))
    if wrong := [one.example.name for one in shown if not one.right]:
        raise DaemonError(f"not as it should be: {', '.join(wrong)}")


async def running() -> list[str]:
    """The names of the workers that answer at the broker of the environment, if it names one."""
    if not os.environ.get("RUNNER_AMQP__URL"):
        return []
    try:
        told = await read(os.environ, "workers", "--json")
    except DaemonError as error:
        say(str(error))
        return []
    return [json.loads(line)["worker"] for line in told.splitlines()]


@asynccontextmanager
async def own_daemon(stacks: Sequence[str]) -> AsyncIterator[Mapping[str, str]]:
    """A daemon that has these stacks, in a namespace of its own; the environment of who submits to it."""
    async with services("examples", say) as daemon:
        url = daemon.env["RUNNER_ENGINE__URL"]
        say("building the stacks that are not there yet, as `make stacks` does")
        async with aiodocker.Docker(url=url.replace("tcp://", "http://", 1)) as docker:
            await build_bases(docker, stacks, refresh=False)
            await build_stacks(docker, daemon.env, stacks, daemon.folder / "stamps")
        await daemon.call("topology", "apply")
        say(f"starting `runner serve`; its log is {daemon.log.relative_to(ROOT)}")
        async with daemon.serving():
            yield daemon.env


async def submit_all(env: Mapping[str, str], examples: Sequence[Example]) -> list[Shown]:
    """Run them, some at a time; each is shown when it has ended."""
    room = asyncio.Semaphore(AT_ONCE)

    async def submit(example: Example) -> Shown:
        async with room:
            words = ("--file", str(example.folder / "job.json"), "--code", str(example.folder / "code"))
            told = await read(env, "run", "--json", "--start-within", START_WITHIN, *words)
        shown = _shown(example, [json.loads(line) for line in told.splitlines()])
        say(f"{example.name}: runner run {' '.join(words).replace(f'{ROOT}/', '')}")
        print("\n".join(f"    {line}" for line in shown.lines), flush=True)
        return shown

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(submit(example)) for example in examples]
    return [task.result() for task in tasks]


def _shown(example: Example, told: Sequence[Mapping[str, Any]]) -> Shown:
    texts = ["".join(line["m"] + ("" if line.get("p") else "\n") for line in one.get("lines", ())) for one in told]
    finished = next((one for one in told if one.get("event") == "finished"), None)
    if finished is None:
        raise DaemonError(f"nobody told how {example.name} ended")
    return Shown(example=example, finished=finished, lines="".join(texts).splitlines())


async def main() -> int:
    """Run the examples until they have ended or a signal ends them."""
    parser = argparse.ArgumentParser(prog="scripts/examples", description=__doc__)
    parser.add_argument("names", nargs="*", help="folders of examples/; all if none is named")
    names = parser.parse_args().names
    chosen = [example for example in all_examples() if not names or example.name in names]
    if unknown := set(names) - {example.name for example in chosen}:
        parser.error(f"there is no {', '.join(sorted(unknown))} in examples")
    try:
        return await run_until_signal(run_examples(chosen), say)
    except* (BaseError, DaemonError, MirrorError, ServiceError, StacksError, aiodocker.DockerError) as errors:
        for error in errors.exceptions:
            say(str(error))
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

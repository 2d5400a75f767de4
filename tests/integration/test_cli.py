"""The command line as a process, against the real services, with a worker that only tells."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aiodocker
import pytest
from tests.fake_worker import FakeWorker, batch, event, fake_worker, finished, whole_topology
from tests.services import Endpoint

from runner.adapters.lock import WorkerLock

pytestmark = pytest.mark.broker

PATIENCE = 30.0
FAILED: dict[str, Any] = {"outcome": "failed", "exit_code": 3, "blame": "job", "reason": "the job exited with 3"}


@dataclass(frozen=True, slots=True)
class Called:
    """A `runner …` that runs."""

    process: asyncio.subprocess.Process

    async def out(self, length: int) -> bytes:
        """The next bytes of stdout."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return await self.process.stdout.readexactly(length)

    async def err_line(self) -> str:
        """The next line of stderr."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stderr.readline()).decode()

    async def end(self) -> tuple[int, str, str]:
        """Exit code, and what was left on stdout and stderr."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def runner(*words: str, **env: str) -> AsyncIterator[Called]:
    """Call the command line; whatever still runs at the end is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "runner",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")} | env,
    )
    try:
        yield Called(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def call(*words: str, **env: str) -> tuple[int, str, str]:
    async with runner(*words, **env) as called:
        return await called.end()


@pytest.fixture(scope="module")
async def namespace(broker: Endpoint) -> AsyncIterator[str]:
    """One for all tests of this file: it takes a second to make."""
    async with whole_topology(broker.url, f"t{token_hex(6)}") as namespace:
        yield namespace


@pytest.fixture
def env(broker: Endpoint, namespace: str) -> dict[str, str]:
    return {"RUNNER_AMQP__URL": broker.url, "RUNNER_AMQP__NAMESPACE": namespace}


@pytest.fixture
async def worker(broker: Endpoint, namespace: str) -> AsyncIterator[FakeWorker]:
    async with fake_worker(broker.url, namespace) as worker:
        yield worker


async def test_submit_prints_the_ids_of_what_it_published(worker: FakeWorker, env: dict[str, str]) -> None:
    code, out, err = await call("submit", "--stack=busybox", "--tenant=acme", "-n", "3", "--", "ls", "-l", **env)
    assert (code, err) == (0, "")
    messages = [await worker.take() for _ in range(3)]
    assert sorted(out.split()) == sorted(str(message.message_id) for message in messages)
    assert {message.routing_key for message in messages} == {"default.normal.acme"}
    assert json.loads(messages[0].body) == {"stack": "busybox", "command": ["ls", "-l"]}


async def test_submit_prints_json(worker: FakeWorker, env: dict[str, str]) -> None:
    code, out, _ = await call("submit", "--stack=busybox", "--id=mine", "--json", **env)
    assert code == 0
    assert json.loads(out) == {"id": "mine", "tenant": "default", "pool": "default", "priority": "normal"}
    assert json.loads((await worker.take()).body)["id"] == "mine"


async def test_run_writes_what_the_job_wrote_and_exits_as_it_did(worker: FakeWorker, env: dict[str, str]) -> None:
    async with runner("run", "--stack=busybox", "--", "x", **env) as called:
        job_id = str((await worker.take()).message_id)
        assert await called.err_line() == f"runner: job {job_id}\n"
        await worker.log(batch(job_id, 1, [("out", "Zürich\n"), ("out", "no new")]))
        assert await called.out(14) == "Zürich\nno new".encode()
        await worker.log(batch(job_id, 2, [("out", "line"), ("err", "oops\n"), ("sys", "… omitted …\n")], off=(14, 0)))
        await worker.log(batch(job_id, 3, [], off=(18, 5), end=True))
        await worker.tell(finished(job_id, **FAILED))
        code, out, err = await called.end()
    assert code == 3
    assert out == "line"
    assert err == "oops\n… omitted …\nrunner: failed: the job exited with 3\n"


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({}, 0),
        ({"outcome": "failed", "exit_code": None, "signal": 11, "blame": "job"}, 139),
        ({"outcome": "timed_out", "exit_code": None, "signal": 9, "blame": "job"}, 124),
        ({"outcome": "oom_killed", "exit_code": None, "signal": 9, "blame": "job"}, 137),
        ({"outcome": "rejected", "exit_code": None, "blame": "request", "ran": False}, 125),
    ],
)
async def test_run_passes_on_the_end(
    worker: FakeWorker, env: dict[str, str], result: dict[str, Any], code: int
) -> None:
    async with runner("run", "--stack=busybox", **env) as called:
        job_id = str((await worker.take()).message_id)
        await worker.log(batch(job_id, 1, [], end=True))
        await worker.tell(finished(job_id, **{"reason": "because", **result}))
        ended, _, err = await called.end()
    assert ended == code
    assert err.endswith(f"runner: {result['outcome']}: because\n" if result else f"runner: job {job_id}\n")


async def test_run_prints_events_and_batches_as_json(worker: FakeWorker, env: dict[str, str]) -> None:
    async with runner("run", "--stack=busybox", "--json", **env) as called:
        job_id = str((await worker.take()).message_id)
        told = [event(job_id, "claimed", 1), finished(job_id), batch(job_id, 1, [("out", "é\n")], end=True)]
        await worker.tell(told[0])
        await worker.tell(told[1])
        await worker.log(told[2])
        code, out, _ = await called.end()
    assert code == 0
    claimed, logged, last = (json.loads(line) for line in out.splitlines())
    assert [claimed, last, logged] == [json.loads(body) for body in told]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_interrupt_cancels_the_job_and_waits(
    worker: FakeWorker, env: dict[str, str], number: signal.Signals
) -> None:
    async with runner("run", "--stack=busybox", **env) as called:
        job_id = str((await worker.take()).message_id)
        await called.err_line()
        called.process.send_signal(number)
        message = await worker.cancelled()
        assert message.routing_key == f"job.default.{job_id}.cancel"
        assert json.loads(message.body)["reason"]
        await worker.log(batch(job_id, 1, [("out", "bye\n")], end=True))
        await worker.tell(finished(job_id, outcome="cancelled", exit_code=None, signal=15, reason="cancelled"))
        code, out, err = await called.end()
    assert (code, out) == (130, "bye\n")
    assert "cancelling" in err


async def test_the_second_interrupt_leaves_at_once(worker: FakeWorker, env: dict[str, str]) -> None:
    async with runner("run", "--stack=busybox", **env) as called:
        await worker.take()
        await called.err_line()
        called.process.send_signal(signal.SIGINT)
        await worker.cancelled()
        called.process.send_signal(signal.SIGINT)
        code, _, _ = await called.end()
    assert code == -signal.SIGINT


async def test_run_outlives_whoever_read_its_output(worker: FakeWorker, env: dict[str, str]) -> None:
    async with runner("run", "--stack=busybox", **env) as called:
        job_id = str((await worker.take()).message_id)
        await called.err_line()
        pipe = called.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
        pipe.close()
        for seq in (1, 2, 3):
            await worker.log(batch(job_id, seq, [("out", "x" * 65536 + "\n")], off=((seq - 1) * 65537, 0)))
        await worker.log(batch(job_id, 4, [("err", "still here\n")], off=(3 * 65537, 0), end=True))
        await worker.tell(finished(job_id, **FAILED))
        code, _, err = await called.end()
    assert code == 3
    assert "still here" in err


async def test_logs_follows_a_job_to_its_end(worker: FakeWorker, env: dict[str, str]) -> None:
    async with runner("logs", "-f", "--tenant=acme", "some-id", **env) as called:
        assert await called.err_line() == "runner: following job some-id of acme\n"
        await worker.log(batch("some-id", 5, [("out", "hello\n")], off=(100, 0), end=True), tenant="acme")
        await worker.tell(finished("some-id", tenant="acme", **FAILED))
        assert await called.end() == (0, "hello\n", "runner: failed: the job exited with 3\n")


async def test_cancel_asks_for_each_job(worker: FakeWorker, env: dict[str, str]) -> None:
    code, out, _ = await call("cancel", "a", "b", "--reason=enough", "--json", RUNNER_TENANT="acme", **env)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [{"id": name, "tenant": "acme"} for name in "ab"]
    messages = [await worker.cancelled() for _ in range(2)]
    assert [message.routing_key for message in messages] == ["job.acme.a.cancel", "job.acme.b.cancel"]
    assert json.loads(messages[0].body) == {"reason": "enough"}


async def test_the_topology_is_made_and_verified(broker: Endpoint, namespace: str) -> None:
    other = {"RUNNER_AMQP__URL": broker.url, "RUNNER_AMQP__NAMESPACE": f"{namespace}x", "RUNNER_WORKER__NAME": "w1"}
    code, _, err = await call("topology", "check", **other)
    assert code == 78
    assert f"exchange {namespace}x is missing; run: runner topology apply" in err
    async with whole_topology(broker.url, f"{namespace}x"):
        assert (await call("topology", "check", **other))[0] == 0
        code, out, err = await call("topology", "apply", "--tenant=acme", **other)
        assert code == 0
        assert "made" not in err
        assert "# The worker w1" in out
        assert f"rabbitmqctl set_topic_permissions -p / acme {namespace}x.logs '^$' '^acme\\..+$'" in out


async def test_check_has_a_line_for_everything(
    env: dict[str, str], engine: Endpoint, state_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stacks"
    (folder / "broken").mkdir(parents=True)
    (folder / "broken" / "stack.toml").write_text("colour = 1\n")
    services = env | {"RUNNER_ENGINE__URL": engine.url, "RUNNER_STACKS__DIR": str(folder)}
    code, out, _ = await call("check", "--json", RUNNER_WORKER__STATE_DIR=str(state_dir), **services)
    findings = {found["name"]: found for found in map(json.loads, out.splitlines())}
    assert code == 78
    assert list(findings) == [
        "configuration",
        "broker",
        "topology",
        "engine",
        "cgroups",
        "engine disk",
        "registry",
        "stack broken",
        "egress",
        "init",
        "state_dir",
        "disk",
        "results",
        "secrets",
        "scratch",
        "code",
    ]
    assert [name for name, found in findings.items() if not found["ok"]] == ["stack broken"]
    assert "colour: is unknown" in findings["stack broken"]["detail"]
    assert findings["broker"]["detail"].startswith("RabbitMQ ")
    assert "not bounded: no tmpfs is mounted at" in findings["results"]["detail"]
    assert "var-lib-runner-results.mount" in findings["results"]["detail"]


async def test_check_tells_which_service_is_away(state_dir: Path) -> None:
    away = {"RUNNER_AMQP__URL": "amqp://127.0.0.1:1/", "RUNNER_ENGINE__URL": f"unix://{state_dir}/nothing"}
    code, out, _ = await call("check", RUNNER_WORKER__STATE_DIR=str(state_dir), **away)
    assert code == 69
    assert [line.split()[1] for line in out.splitlines() if line.startswith("mend")] == ["broker", "engine"]


@pytest.mark.engine
async def test_reap_removes_this_workers_containers_unless_a_daemon_runs(
    engine: Endpoint, busybox_image: str, state_dir: Path
) -> None:
    name = f"w{token_hex(4)}"
    env = {"RUNNER_ENGINE__URL": engine.url, "RUNNER_WORKER__NAME": name, "RUNNER_WORKER__STATE_DIR": str(state_dir)}
    async with aiodocker.Docker(url=engine.url) as docker:
        for worker in (name, f"{name}-other"):
            await docker.containers.create(
                {"Image": busybox_image, "Cmd": ["sleep", "1000"], "Labels": {"runner.worker": worker}},
                name=f"runner-{worker}-c1",
            )
        with WorkerLock(state_dir).hold():
            code, out, err = await call("reap", **env)
            assert (code, out) == (78, "")
            assert "is in use by the process" in err
        assert await call("reap", **env) == (0, "1 containers removed\n", "")
        assert await call("reap", "--json", **env) == (0, '{"removed": 0, "left": 0}\n', "")
        await docker.containers.container(f"runner-{name}-other-c1").delete(force=True)


@pytest.mark.engine
async def test_a_stack_is_built_and_listed(engine: Endpoint, tmp_path: Path, state_dir: Path) -> None:
    name = f"s{token_hex(4)}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "stack.toml").write_text('description = "almost nothing"\n')
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    env = {"RUNNER_ENGINE__URL": engine.url, "RUNNER_STACKS__DIR": str(tmp_path)}
    env["RUNNER_WORKER__STATE_DIR"] = str(state_dir)
    code, out, _ = await call("stacks", "list", **env)
    assert (code, out.splitlines()[1].split()[:3]) == (0, [name, "-", "-"])
    code, out, err = await call("stacks", "build", name, "--json", **env)
    assert code == 0, err
    built = json.loads(out)
    assert (built["stack"], built["changed"]) == (name, True)
    assert "FROM scratch" in err
    _, out, _ = await call("stacks", "list", **env)
    row = out.splitlines()[1].split(maxsplit=7)
    assert (row[:3], row[6:]) == ([name, built["revision"], "-"], ["ok", "almost nothing"])
    assert (await call("stacks", "build", "absent", **env))[0] == 78
    async with aiodocker.Docker(url=engine.url) as docker:
        await docker.images.delete(built["image"], force=True)


async def test_serve_tells_a_broken_configuration_and_starts_nothing(tmp_path: Path) -> None:
    code, out, err = await call("serve", RUNNER_WORKER__STATE_DIR=str(tmp_path / "state"), RUNNER_CAPACITY__CPUS="0")
    assert (code, out) == (78, "")
    assert err == 'runner: capacity.cpus: "0" is too low; the least is 0.01\n'
    assert not (tmp_path / "state").exists()


async def test_serve_refuses_a_state_folder_that_is_in_use(env: dict[str, str], state_dir: Path) -> None:
    with WorkerLock(state_dir).hold():
        code, _, err = await call("serve", RUNNER_WORKER__STATE_DIR=str(state_dir), **env)
    assert code == 78
    assert "is in use by the process" in err

"""`runner exec`: the job as the daemon would run it, and nothing left of it however it ends."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
from tests.integration.local_house import Place, ended, open_place
from tests.mounted import results_in_memory
from tests.services import Endpoint

pytestmark = pytest.mark.engine


@pytest.fixture
async def place(engine: Endpoint, busybox_image: str, namespace: str, tmp_path: Path) -> AsyncIterator[Place]:
    """A place with one stack, which bears its name."""
    async with open_place(engine.url, namespace, tmp_path) as place:
        place.write_stack(namespace, 'env = {COLOUR = "blue"}\ncommand = ["echo", "from the stack"]\n')
        async with aiodocker.Docker(url=engine.url) as docker:
            await docker.images.tag(busybox_image, repo=f"runner/{namespace}", tag="current")
        yield place


async def nothing_left(place: Place) -> None:
    assert await place.containers() == []
    assert list(place.state_dir.glob("exec/*")) == []


async def begun(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == line


async def test_the_job_has_the_sandbox_of_the_daemon_and_its_streams_are_ours(place: Place) -> None:
    script = "id -u; pwd; cat $JOB_PAYLOAD_FILE; echo $COLOUR $JOB_STACK $JOB_TENANT; echo oops >&2; cat; exit 7"
    words = ("--stack", place.worker, "--payload", "input\n", "--stdin", "typed\n", "--tenant", "acme")
    code, out, err = await place.call("exec", *words, "--", "sh", "-c", script)
    assert code == 7
    assert out.splitlines() == ["65534", "/work", "input", f"blue {place.worker} acme", "typed"]
    assert err.splitlines() == ["oops", "runner: failed: exited with code 7"]
    await nothing_left(place)


async def test_what_the_job_tells_is_memory_of_its_own(place: Place) -> None:
    script = "grep ' /job/output ' /proc/mounts; echo 1 >/job/output"
    with results_in_memory(place.state_dir):
        code, out, _ = await place.call("exec", "--json", "--stack", place.worker, "--", "sh", "-c", script)
        assert code == 0
        assert json.loads(out.splitlines()[-1])["output"] == 1
        assert "tmpfs /job/output tmpfs rw,nosuid,nodev,noexec," in out
        await nothing_left(place)
        assert list((place.state_dir / "results" / "exec").iterdir()) == []


async def test_a_folder_of_code_is_there_to_be_read(place: Place, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.sh").write_text("#!/bin/sh\necho ran in $PWD; touch $JOB_CODE_DIR/x\n")
    (tmp_path / "app" / "main.sh").chmod(0o700)
    words = ("--stack", place.worker, "--code", str(tmp_path / "app"))
    code, out, err = await place.call("exec", *words, "--", "/job/code/main.sh")
    assert (code, out) == (1, "ran in /work\n")
    assert err.splitlines()[0].startswith("runner: code: 1 file, 50 bytes, packed to ")
    assert "Read-only file system" in err
    await nothing_left(place)


async def test_a_full_disk_behind_our_output_does_not_stop_the_job(place: Place) -> None:
    words = (sys.executable, "-m", "runner", "exec", "--stack", place.worker, "--", "sh", "-c", "echo lost; exit 7")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = await asyncio.create_subprocess_exec(
            *words, env=place.environment, stdout=full, stderr=asyncio.subprocess.PIPE
        )
        code, _, err = await ended(process)
    finally:
        os.close(full)
    assert (code, err) == (7, "runner: failed: exited with code 7\n")
    await nothing_left(place)


async def test_code_has_no_message_to_fit_into(place: Place, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "noise").write_bytes(os.urandom(1 << 20))
    words = ("exec", "--stack", place.worker, "--code", str(tmp_path / "app"), "--", "wc", "-c", "/job/code/noise")
    assert (await place.call(*words))[:2] == (0, "1048576 /job/code/noise\n")
    code, _, err = await place.call(*words, RUNNER_CODE__MAX_BYTES="1m")
    assert code == 2
    assert "more than 1 MiB when it is packed, the most here (code.max_bytes)" in err
    await nothing_left(place)


async def test_json_has_the_events_and_batches_as_they_would_be_published(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"id": "mine", "stack": place.worker, "labels": {"a": "b"}, "retry": {"max": 3}}))
    code, out, _ = await place.call("exec", "--file", str(file), "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    events = [each for each in told if "event" in each]
    assert [event["event"] for event in events] == ["claimed", "started", "finished"]
    assert {event["id"] for event in events} == {"mine"}
    assert events[-1]["outcome"] == "succeeded"
    assert events[-1]["labels"] == {"a": "b"}
    assert events[-1]["logs"]["complete"]
    batches = [each for each in told if "lines" in each]
    assert [line["m"] for batch in batches for line in batch["lines"]] == ["from the stack"]
    assert batches[-1]["end"]
    assert told[-1] is events[-1]


async def test_ends_are_told_by_the_exit_code(place: Place) -> None:
    async def code(*words: str) -> int:
        return (await place.call("exec", "--stack", place.worker, *words))[0]

    assert await code("--timeout", "0.5", "--grace", "0", "--", "sleep", "60") == 124
    assert await code("--", "sh", "-c", "kill -9 $$") == 137
    assert await code("--memory", "100g", "--", "true") == 125
    assert await code("--memory", "lots", "--", "true") == 2
    await nothing_left(place)


async def test_a_stack_that_is_not_here_is_told_with_its_reason(place: Place) -> None:
    code, _, err = await place.call("exec", "--stack", "nowhere", "--", "true")
    assert (code, err) == (125, 'runner: rejected: this worker has no stack "nowhere"\n')


async def test_an_engine_that_is_away_is_unavailable(place: Place, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/none.sock"
    code, _, err = await place.call("exec", "--stack", place.worker, "--", "true", RUNNER_ENGINE__URL=url)
    assert code == 69
    assert "no connection to the engine" in err
    await nothing_left(place)


async def test_the_first_signal_cancels_and_the_second_leaves_out_the_grace(place: Place) -> None:
    patient = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    async with place.start("exec", "--stack", place.worker, "--", "sh", "-c", patient) as process:
        await begun(process, b"up\n")
        process.send_signal(signal.SIGINT)
        code, out, err = await ended(process)
    assert (code, out) == (130, "asked\n")
    assert "runner: cancelled: interrupted at the terminal" in err

    stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    words = ("exec", "--stack", place.worker, "--grace", "60s", "--", "sh", "-c", stubborn)
    async with place.start(*words) as process:
        await begun(process, b"up\n")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"once more" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 130
    await nothing_left(place)


async def test_what_a_killed_one_leaves_is_removed_by_the_next_reap(place: Place) -> None:
    words = ("exec", "--stack", place.worker, "--", "sh", "-c", "echo up; sleep 600")
    async with place.start(*words) as process, place.start(*words) as other:
        for each in (process, other):
            await begun(each, b"up\n")
        process.kill()
        await process.wait()
        assert len(await place.containers()) == 2
        assert (await place.call("reap", "--expired"))[:2] == (0, "0 containers removed\n")
        old = time.time() - 120
        for folder in place.state_dir.glob("exec/*"):
            os.utime(folder, (old, old))
        assert (await place.call("reap", "--expired"))[:2] == (0, "1 containers removed\n")
        assert await place.containers() == [name for name in await place.containers() if f"-{other.pid}-" in name]
        other.terminate()
        assert (await ended(other))[0] == 130
    await nothing_left(place)


async def test_the_tenants_secrets_are_there_and_not_shown(place: Place) -> None:
    folder = place.folder / "secrets"
    (folder / "acme").mkdir(parents=True)
    (folder / "acme" / "token").write_text("hunter22")
    place.write_stack(place.worker, 'secrets = ["token"]\n')
    words = ("exec", "--stack", place.worker, "--tenant")
    env = {"RUNNER_SECRETS__DIR": str(folder)}
    code, out, _ = await place.call(
        *words, "acme", "--", "sh", "-c", "wc -c <$JOB_SECRETS_DIR/token; cat /job/secrets/*", **env
    )
    assert (code, out) == (0, "8\n********")
    code, _, err = await place.call(*words, "beta", "--", "true", **env)
    assert code == 125
    assert "secret token: tenant beta has none on this worker; put its value in beta/token beneath secrets.dir" in err
    await nothing_left(place)

"""What a job finds in its container, and what is known of it afterwards."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiodocker
import pytest
from tests.integration.engine_house import House, open_house
from tests.services import Endpoint

from runner.adapters.docker.config import SHARED_MEMORY
from runner.adapters.docker.files import OUTPUT, PROGRESS, SECRETS
from runner.job import OUTPUT_MAX, Bytes, Limits, Stack

pytestmark = pytest.mark.engine

MIB = 2**20


@pytest.fixture
async def house(engine: Endpoint, namespace: str, state_dir: Path, busybox_image: str) -> AsyncIterator[House]:
    async with open_house(engine.url, namespace, state_dir, busybox_image) as opened:
        yield opened
        assert await opened.names() == set()
        assert opened.folders() == set()
        assert opened.connections() == 0
        assert opened.log.living == 0


async def test_the_environment_is_ours_and_nothing_else(house: House) -> None:
    before = time.time()
    end = await house.run("env", payload=b"{}", env={"GREETING": "a b"})
    told = dict(line.split("=", 1) for line in house.out.decode().splitlines())
    assert end.code == 0
    deadline = int(told.pop("JOB_DEADLINE"))
    assert before + 600 <= deadline <= time.time() + 601
    assert told == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/work",
        "GREETING": "a b",
        "JOB_ID": "job-1",
        "JOB_NAME": "",
        "JOB_TENANT": "acme",
        "JOB_ATTEMPT": "1",
        "JOB_STACK": "busybox",
        "JOB_WORKER": house.worker,
        "JOB_PAYLOAD_FILE": "/job/payload",
        "JOB_OUTPUT_FILE": "/job/output",
        "JOB_PROGRESS_FILE": "/job/progress",
    }


async def test_payload_and_input_arrive_as_they_are(house: House) -> None:
    payload = os.urandom(300_000)
    end = await house.run("sh", "-c", "cat $JOB_PAYLOAD_FILE -", payload=payload, stdin=b"and input \xff\0")
    assert end.code == 0
    assert bytes(house.out) == payload + b"and input \xff\0"


async def test_input_that_nobody_reads_holds_nothing_up(house: House) -> None:
    end = await house.run("echo", "done", stdin=b"x" * 512 * 1024)
    assert (end.code, bytes(house.out), end.complete) == (0, b"done\n", True)


async def test_without_input_there_is_none(house: House) -> None:
    assert (await house.run("cat")).code == 0
    assert bytes(house.out) == b""


SANDBOX = r"""
set -u
id -u; id -g; pwd
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
for place in /work /tmp /dev/shm; do touch $place/f && echo "writes $place"; done
for place in / /etc /job /bin; do touch $place/f 2>/dev/null && echo "WRITES $place"; done
cp /bin/busybox /work/true && /work/true && echo executes
echo x > $JOB_OUTPUT_FILE; rm -f $JOB_OUTPUT_FILE 2>/dev/null; mv /work/f $JOB_OUTPUT_FILE 2>/dev/null
chmod 777 $JOB_OUTPUT_FILE 2>/dev/null
[ -e /.dockerenv ] && ls /sys/class/net
kill -9 1
ulimit -c
exit 0
"""


async def test_the_sandbox(house: House) -> None:
    end = await house.run("sh", "-c", SANDBOX)
    lines = house.out.decode().splitlines()
    assert lines == [
        "65534",
        "65534",
        "/work",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "writes /work",
        "writes /tmp",
        "writes /dev/shm",
        "executes",
        "lo",
        "0",
    ], house.err
    assert (end.code, end.output) == (0, b"x\n")


async def test_the_engine_took_every_setting(house: House) -> None:
    limits = Limits(cpus=0.75, memory=Bytes(48 * MIB), disk=Bytes(16 * MIB), pids=33)
    attempt = house.attempt("sleep", "100", limits=limits)
    try:
        await house.launch(attempt)
        found = await house.inspect(attempt)
        host = found["HostConfig"]
        assert (host["Memory"], host["MemorySwap"]) == (64 * MIB, 64 * MIB)
        assert (host["NanoCpus"], host["PidsLimit"]) == (750_000_000, 34)
        assert f"size={16 * MIB}," in host["Tmpfs"][SHARED_MEMORY]
        assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
        assert (host["NetworkMode"], host["IpcMode"], host["ReadonlyRootfs"]) == ("none", "none", True)
        assert (host["Init"], host["AutoRemove"], host["OomScoreAdj"]) == (False, False, 500)
        assert host["RestartPolicy"]["Name"] == "no"
        assert found["Config"]["NetworkDisabled"] is True
        assert host["LogConfig"] == {
            "Type": "json-file",
            "Config": {"max-size": str(16 * MIB), "max-file": "2"},
        }
        assert set(found["Config"]["Labels"]) == {"runner.worker", "runner.boot", "runner.stack"}
        assert {mount["Destination"]: mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind"} == {
            "/.runner-init": False,
            "/etc/hosts": False,
            "/job": False,
            "/job/output": True,
            "/job/progress": True,
        }
    finally:
        await house.engine.discard(attempt)


TALK = "nc -l -p 7 -e echo heard & until nc localhost 7; do sleep 0.1; done; readlink /proc/self/ns/net"


@pytest.mark.parametrize("read_only", [True, False], ids=["by the runtime", "by the engine"])
async def test_a_job_without_a_network_reaches_itself_in_a_namespace_of_its_own(
    house: House, *, read_only: bool
) -> None:
    stack = Stack(name="busybox", revision="1", image=house.image, read_only=read_only)
    await house.run("sh", "-c", TALK, stack=stack)
    heard, namespace = house.out.decode().splitlines()
    assert heard == "heard", house.err
    assert namespace != str(Path("/proc/self/ns/net").readlink())


async def test_the_start_is_the_inits_own_word(house: House) -> None:
    attempt = house.attempt("true")
    before = datetime.now(UTC)
    try:
        container = await house.launch(attempt)
        assert before <= container.started <= datetime.now(UTC)
        assert container.id == (await house.inspect(attempt))["Id"]
    finally:
        await house.engine.discard(attempt)


async def test_the_smallest_limits_there_are(house: House) -> None:
    limits = Limits(cpus=0.05, memory=Bytes(6 * MIB), disk=Bytes(0), pids=1)
    assert (await house.run("echo", "small", limits=limits)).code == 0
    assert bytes(house.out) == b"small\n"


async def test_the_last_words_are_never_lost(house: House) -> None:
    for number in range(20):
        end = await house.run("sh", "-c", f"printf 'one\\nlast {number}'; printf 'err {number}' >&2")
        assert (bytes(house.out), bytes(house.err)) == (f"one\nlast {number}".encode(), f"err {number}".encode())
        assert end.complete


async def test_a_torrent_arrives_whole_and_in_order(house: House) -> None:
    numbers = "i=0; while [ $i -lt 300 ]; do printf '%09d\\n' $i; i=$((i+1)); done"
    flood = "yes 0123456789abcde | dd bs=64k count=512 iflag=fullblock"
    end = await house.run("sh", "-c", f"{numbers}; {flood}", limits=Limits(cpus=1.5))
    expected = "".join(f"{number:09d}\n" for number in range(300)).encode() + b"0123456789abcde\n" * (32 * MIB // 16)
    assert (end.code, end.complete, len(house.out)) == (0, True, len(expected))
    assert hashlib.sha256(house.out).digest() == hashlib.sha256(expected).digest()


async def test_a_long_output_is_cut_where_it_can_be_told(house: House) -> None:
    end = await house.run("sh", "-c", "head -c 100000 /dev/zero > $JOB_OUTPUT_FILE")
    assert end.output is not None
    assert len(end.output) == OUTPUT_MAX + 1


async def test_the_hosts_disk_is_not_the_jobs(house: House) -> None:
    limits = Limits(disk=Bytes(4 * MIB))
    attempt = house.attempt("dd", "if=/dev/zero", "of=/job/progress", "bs=64k", "count=3200", limits=limits)
    try:
        container = await house.launch(attempt)
        async with asyncio.timeout(30):
            end = await container.wait()
        written = (house.state_dir / "jobs" / attempt.claim / PROGRESS).stat().st_size
        assert end.signal == 25
        assert written <= 4 * MIB + 4096
    finally:
        await house.engine.discard(attempt)


async def test_memory_that_ran_out(house: House) -> None:
    end = await house.run("tail", "/dev/zero", limits=Limits(memory=Bytes(16 * MIB), disk=Bytes(4 * MIB)))
    assert (end.signal, end.disk_full, end.complete) == (9, None, True)
    assert end.oom_kills >= 1
    assert end.usage.memory_peak_bytes is not None
    assert 16 * MIB <= end.usage.memory_peak_bytes <= 20 * MIB


async def test_a_child_that_ran_out_of_memory_is_seen_though_the_job_goes_on(house: House) -> None:
    limits = Limits(memory=Bytes(16 * MIB), disk=Bytes(4 * MIB))
    end = await house.run("sh", "-c", "tail /dev/zero; echo went on", limits=limits)
    assert (end.code, bytes(house.out)) == (0, b"went on\n")
    assert end.oom_kills >= 1


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])  # noqa: S108
async def test_a_full_place_says_so_to_the_job_and_to_us(house: House, place: str) -> None:
    limits = Limits(memory=Bytes(32 * MIB), disk=Bytes(8 * MIB))
    end = await house.run("sh", "-c", f"dd if=/dev/zero of={place}/f bs=64k; exit 4", limits=limits)
    assert (end.code, end.oom_kills) == (4, 0)
    assert end.disk_full == f"{place} was full (8 MiB)"
    assert b"No space left on device" in house.err


async def test_too_many_files_and_too_much_in_all(house: House) -> None:
    limits = Limits(memory=Bytes(64 * MIB), disk=Bytes(4 * MIB))
    end = await house.run("sh", "-c", "cd /work; for i in $(seq 2000); do : > $i || exit 5; done", limits=limits)
    assert end.disk_full == "/work had no room for another file (it had 1024)"
    spread = "head -c 3m /dev/zero > /tmp/f; head -c 3m /dev/zero > /work/f; exit 1"
    end = await house.run("sh", "-c", spread, limits=limits)
    assert end.disk_full == "/work, /tmp, /dev/shm together held more than 4 MiB"


async def test_a_volume_of_the_image_goes_with_the_container(house: House, engine: Endpoint) -> None:
    async with aiodocker.Docker(url=engine.url) as docker:
        source = house.attempt("true")
        await house.launch(source)
        image = None
        try:
            container = docker.containers.container(source.container_name)
            image = (await container.commit(changes=["VOLUME /data"]))["Id"]
        finally:
            await house.engine.discard(source)
        try:
            attempt = house.attempt("true", image=image)
            await house.launch(attempt)
            mounts = (await house.inspect(attempt))["Mounts"]
            [volume] = [mount["Name"] for mount in mounts if mount["Type"] == "volume"]
            await house.engine.discard(attempt)
            left = await docker._query_json("volumes")
            assert volume not in {each["Name"] for each in left["Volumes"] or []}
        finally:
            await docker.images.delete(image, force=True)


async def test_a_privileged_stack_gets_what_its_file_says_and_no_more(house: House) -> None:
    stack = Stack(name="s", revision="1", image=house.image, uid=0, gid=0, cap_add=("CHOWN",), devices=("/dev/fuse",))
    if not Path("/dev/fuse").exists():
        stack = Stack(name="s", revision="1", image=house.image, uid=0, gid=0, cap_add=("CHOWN",))
    await house.run("sh", "-c", "id -u; grep CapEff /proc/self/status; chmod 000 /job/output; ls /dev", stack=stack)
    lines = house.out.decode().splitlines()
    assert lines[:2] == ["0", "CapEff:\t0000000000000001"]
    assert ("fuse" in lines) == bool(stack.devices)


async def test_the_files_are_as_private_as_the_job(house: House) -> None:
    attempt = house.attempt("sleep", "100", payload=json.dumps({"secret": 1}).encode())
    try:
        await house.launch(attempt)
        folder = house.state_dir / "jobs"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in (folder / attempt.claim).iterdir()} == {"payload", OUTPUT, PROGRESS, SECRETS}
    finally:
        await house.engine.discard(attempt)

"""A job's container and its description, as files to read and compare."""

import json
import resource
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.attempts import make_attempt

from runner.adapters.docker.config import Access, Site, create_body, lodge, places
from runner.adapters.docker.description import describe, environment
from runner.job import Bytes, InlineCode, Limits, Stack

GOLDEN = Path(__file__).parent / "golden"
SITE = Site(
    worker="w1",
    boot="6f0c2f0e-0000-4000-8000-000000000000",
    init=Path("/opt/runner/init-x86_64"),
    hosts=Path("/var/lib/runner/hosts"),
)
FOLDER = Path("/var/lib/runner/jobs/0123456789abcdef")
NONCE = b"0123456789abcdef0123456789ABCDEF"
IMAGE = "sha256:" + 64 * "a"

PLAIN = Stack(name="busybox", revision="1", image=IMAGE)
SPECIAL = Stack(
    name="gpu-3.1",
    revision="7",
    image=IMAGE,
    uid=1000,
    gid=100,
    read_only=False,
    cap_add=("SYS_PTRACE",),
    devices=("/dev/kvm", "/dev/sda:/dev/xvda:r", "/dev/a:/dev/b"),
    runtime="runsc",
)
SECRETS_ROOM = 384 * 1024
LARGE = Limits(cpus=3.25, memory=Bytes(8 * 2**30), disk=Bytes(2**30), pids=4096, log_bytes=Bytes(64 * 2**20))
SMALL = Limits(cpus=0.01, memory=Bytes(6 * 2**20), disk=Bytes(0), pids=1, log_bytes=Bytes(0))


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "stack", "limits"),
    [("container-default", PLAIN, Limits()), ("container-large", SPECIAL, LARGE), ("container-small", PLAIN, SMALL)],
)
def test_the_engine_is_asked_for_exactly_this(name: str, stack: Stack, limits: Limits) -> None:
    assert create_body(stack, limits, FOLDER, SITE) == golden(name)


def test_code_is_mounted_so_that_nothing_can_write_to_it() -> None:
    code = Path("/var/lib/runner/code/acme/0123/tree")
    plain, more = (create_body(PLAIN, Limits(), FOLDER, SITE, code=folder) for folder in (None, code))
    mounts = more["HostConfig"]["Mounts"]
    assert mounts[:-1] == plain["HostConfig"].pop("Mounts")
    assert mounts[-1] == {"Type": "bind", "Source": str(code), "Target": "/job/code", "ReadOnly": True}
    del more["HostConfig"]["Mounts"]
    assert plain == more


def test_what_a_job_writes_may_be_elsewhere() -> None:
    results = Path("/var/lib/runner/results/jobs/0123456789abcdef")
    plain, other = (create_body(PLAIN, Limits(), FOLDER, SITE, results=folder) for folder in (None, results))
    differing = [mount for mount in other["HostConfig"].pop("Mounts") if mount not in plain["HostConfig"]["Mounts"]]
    assert differing == [
        {"Type": "bind", "Source": f"{results}/{name}", "Target": f"/job/{name}", "ReadOnly": False}
        for name in ("output", "progress")
    ]
    del plain["HostConfig"]["Mounts"]
    assert plain == other


def test_a_job_hears_of_its_code_where_it_has_some() -> None:
    assert environment(make_attempt("true", code=InlineCode(archive=b"x")))["JOB_CODE_DIR"] == "/job/code"
    assert "JOB_CODE_DIR" not in environment(make_attempt("true"))


@pytest.mark.parametrize("limits", [Limits(), LARGE, SMALL])
def test_nothing_in_the_container_is_without_a_bound(limits: Limits) -> None:
    host = create_body(PLAIN, limits, FOLDER, SITE)["HostConfig"]
    assert host["MemorySwap"] == host["Memory"] == limits.memory + limits.disk
    assert set(host["Tmpfs"]) == {"/work", "/tmp", "/dev/shm", "/job/secrets"}  # noqa: S108
    assert host["IpcMode"] == "none"  # else the engine adds a /dev/shm of its own
    for place, options in host["Tmpfs"].items():
        words = dict(option.partition("=")[::2] for option in options.split(","))
        assert 0 < int(words["size"]) <= (SECRETS_ROOM if place == "/job/secrets" else max(limits.disk, 4096))
        assert 0 < int(words["nr_inodes"]) <= max(limits.disk // 4096, 1024)
    assert 0 < int(host["LogConfig"]["Config"]["max-size"]) <= 256 * 2**20


def test_a_scratch_disk_is_a_volume_that_goes_with_the_container() -> None:
    limits = Limits(scratch=Bytes(2**30))
    body = create_body(PLAIN, limits, FOLDER, SITE, scratch=Path("/dev/loop7"))
    assert body["HostConfig"]["Mounts"][-1] == golden("scratch-mount")
    assert body["HostConfig"]["Mounts"][:-1] == create_body(PLAIN, limits, FOLDER, SITE)["HostConfig"]["Mounts"]
    assert places(limits) == (*places(Limits()), "/scratch")
    description = describe(make_attempt("true", limits=limits), NONCE)
    assert description.places == places(limits)
    assert description.rlimits[resource.RLIMIT_FSIZE] > limits.scratch


def test_a_job_that_reaches_out_differs_in_its_network_and_its_name_servers_alone() -> None:
    access = Access(network="runner0", nameservers=("192.0.2.53",), resolv_conf=Path("/var/lib/runner/resolv.conf"))
    shut, reaching = (
        create_body(PLAIN, Limits(), FOLDER, SITE),
        create_body(PLAIN, Limits(), FOLDER, SITE, access=access),
    )

    mount = reaching["HostConfig"]["Mounts"].pop()
    assert (mount["Source"], mount["Target"]) == ("/var/lib/runner/resolv.conf", "/etc/resolv.conf")
    assert mount["ReadOnly"]
    assert shut["HostConfig"]["Mounts"].pop()["Target"] == "/etc/hosts"
    assert (shut.pop("NetworkDisabled"), reaching.pop("NetworkDisabled")) == (True, False)
    assert reaching["HostConfig"].pop("Dns") == ["192.0.2.53"]
    assert (shut["HostConfig"].pop("NetworkMode"), reaching["HostConfig"].pop("NetworkMode")) == ("none", "runner0")
    assert reaching == shut


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_runtime_makes_the_namespace_where_it_is_known_to_bring_up_the_loopback(runtime: str) -> None:
    body = create_body(replace(PLAIN, runtime=runtime), Limits(), FOLDER, SITE)
    assert (body["NetworkDisabled"], body["HostConfig"]["Runtime"]) == (True, runtime)


@pytest.mark.parametrize(
    "stack", [replace(PLAIN, runtime="runsc"), replace(PLAIN, read_only=False)], ids=["runsc", "rw"]
)
def test_the_engine_makes_the_namespace_where_the_runtime_may_not_do(stack: Stack) -> None:
    body = create_body(stack, Limits(), FOLDER, SITE)
    assert not body["NetworkDisabled"]
    assert body["HostConfig"]["NetworkMode"] == "none"
    assert "/etc/hosts" not in [mount["Target"] for mount in body["HostConfig"]["Mounts"]]


def test_the_init_is_told_exactly_this() -> None:
    attempt = make_attempt(
        "sort",
        "-n",
        claim="0123456789abcdef",
        image=IMAGE,
        env={"A": "b c", "HOME": "/tmp"},  # noqa: S108
        payload=b"{}",
    )
    told = asdict(describe(attempt, NONCE))
    told |= {
        "nonce": NONCE.decode(),
        "argv": list(told["argv"]),
        "places": list(told["places"]),
        "timeout": told["timeout"] / timedelta(seconds=1),
        "rlimits": {str(number): limit for number, limit in told["rlimits"].items()},
    }
    assert told == golden("description")


def test_secrets_are_for_the_init_and_nowhere_else() -> None:
    attempt = replace(make_attempt("true", claim="c1"), secrets={"token": b"hunter22\n"})
    description = describe(attempt, NONCE)
    assert (description.secrets_folder, description.secrets) == ("/job/secrets", {"token": b"hunter22\n"})
    assert description.env["JOB_SECRETS_DIR"] == "/job/secrets"
    assert "hunter22" not in repr((attempt, description, description.env))
    assert "JOB_SECRETS_DIR" not in describe(make_attempt("true"), NONCE).env


def test_the_job_cannot_take_our_words_away() -> None:
    stack = Stack(name="s", revision="1", image=IMAGE, env={"PATH": "/stack", "LANG": "C", "BOTH": "stack"})
    attempt = make_attempt("true", stack=stack, env={"BOTH": "job"})
    told = environment(attempt)
    assert (told["PATH"], told["LANG"], told["BOTH"], told["JOB_STACK"]) == ("/stack", "C", "job", "s")
    assert "JOB_PAYLOAD_FILE" not in told
    assert "TRACEPARENT" not in told


def test_a_full_place_says_so_before_the_size_of_a_file_kills() -> None:
    for limits in (Limits(), LARGE, SMALL):
        description = describe(make_attempt("true", limits=limits), NONCE)
        assert description.rlimits[resource.RLIMIT_FSIZE] > limits.disk


def test_a_container_is_lodged_as_a_user_of_its_own_where_its_stack_names_none() -> None:
    site = replace(SITE, uids=range(200_000, 265_536))
    plain = Stack(name="busybox", revision="1", image="sha256:" + 64 * "0")
    lodged = [lodge(plain, f"claim-{number}", site) for number in range(64)]
    assert {stack.uid for stack in lodged} <= set(range(200_000, 265_536))
    assert len({stack.uid for stack in lodged}) > 60
    assert {stack.gid for stack in lodged} == {65534}
    assert lodge(plain, "claim-1", site) == lodged[1]
    assert lodge(plain, "claim-1", SITE) == plain
    named = replace(plain, uid=1000, gid=100)
    assert lodge(named, "claim-1", site) == named

from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from runner.destination import Destination
from runner.errors import ConfigError
from runner.job import LimitsRequest, Network
from runner.stacks.file import LogFlood, Sockets, StackFile, is_stack_name, read_stack_file

ROOT = Path(__file__).parents[2]


def read(folder: Path, text: str) -> StackFile:
    path = folder / "stack.toml"
    path.write_text(text)
    return read_stack_file(path)


def test_an_empty_file_is_a_stack_with_everything_shut(tmp_path: Path) -> None:
    file = read(tmp_path, "")
    assert file.command is None
    assert file.numeric_user == (65534, 65534)
    assert file.network is Network.NONE
    assert file.limits == LimitsRequest()
    assert file.read_only
    assert file.runtime is None
    assert file.log_flood is LogFlood.TRUNCATE
    assert file.sockets is Sockets.ORDINARY
    assert (file.cap_add, file.devices, file.secrets, file.allow, file.warm) == ((), (), (), (), 0)


def test_every_key_is_read(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        """
        description = "all"
        command = ["python", "-c", ""]
        user = 1000
        network = "egress"
        env = {A = "1"}
        warm = 2
        smoke = ["true"]
        read_only = false
        cap_add = ["NET_RAW"]
        devices = ["/dev/fuse"]
        secrets = ["own", {name = "common", shared = true}]
        runtime = "crun"
        allow = ["203.0.113.0/24", "203.0.113.7:443"]
        log_flood = "kill"
        sockets = "all"
        [limits]
        memory = "64m"
        timeout = 5
        """,
    )
    assert file.command == ("python", "-c", "")
    assert file.numeric_user == (1000, 1000)
    assert file.network is Network.EGRESS
    assert file.env == {"A": "1"}
    assert file.limits == LimitsRequest(memory=2**26, timeout=timedelta(seconds=5))  # type: ignore[arg-type]
    assert [(secret.name, secret.shared) for secret in file.secrets] == [("own", False), ("common", True)]
    assert (file.warm, file.smoke, file.read_only, file.runtime) == (2, ("true",), False, "crun")
    assert (file.cap_add, file.devices) == (("NET_RAW",), ("/dev/fuse",))
    assert file.allow == (
        Destination(range=IPv4Network("203.0.113.0/24")),
        Destination(range=IPv4Network("203.0.113.7/32"), port=443),
    )
    assert [str(destination) for destination in file.allow] == ["203.0.113.0/24", "203.0.113.7:443"]
    assert file.log_flood is LogFlood.KILL
    assert file.sockets is Sockets.ALL


@pytest.mark.parametrize(
    ("user", "numbers"), [("0", (0, 0)), ("1000:100", (1000, 100)), ("nobody", None), ("www-data", None)]
)
def test_a_user_is_a_name_or_numbers(tmp_path: Path, user: str, numbers: tuple[int, int] | None) -> None:
    assert read(tmp_path, f'user = "{user}"').numeric_user == numbers


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("command = [", "this is not TOML"),
        ('command = "echo"', 'command: "echo" is not a list; write for example'),
        ("command = []", "command: must not be empty"),
        ('command = ["a\\u0000"]', "command[0]: must not contain a NUL character"),
        ('comand = ["a"]', 'comand: is unknown; did you mean "command"?'),
        ('user = "no body"', 'user: "no body" is not a user; write a name of the image'),
        ("user = true", "user: true is not text"),
        ('user = "9999999999"', 'user: "9999999999" is not a user'),
        ('network = "host"', "network: \"host\" is none of 'none' or 'egress'"),
        ('env = {JOB_ID = "1"}', 'env: "JOB_ID" is ours; choose a name'),
        ('env = {"A=B" = "1"}', 'env: "A=B" is not the name of a variable'),
        ("env = {A = 1}", "env.A: 1 is not text; put it in quotes"),
        ('[limits]\nmemory = "1m"', 'limits.memory: "1m" is too little; the engine needs at least "6m"'),
        ("[limits]\ncpus = 0", "limits.cpus: 0 is too low; the least is 0.01"),
        ("[limits]\nmem = 1", 'limits.mem: is unknown; did you mean "memory"?'),
        ("warm = -1", "warm: -1 is too low; the least is 0"),
        ('cap_add = ["cap sys"]', 'cap_add[0]: "cap sys" has the wrong form'),
        ('cap_add = ["SYS_PTRACE"]', "cap_add[0]: SYS_PTRACE cannot be given"),
        ('cap_add = ["SYS_ADMIN"]', "cap_add[0]: SYS_ADMIN cannot be given"),
        ('cap_add = ["CAP_SYS_RESOURCE"]', "cap_add[0]: CAP_SYS_RESOURCE cannot be given: a job could"),
        ('devices = ["fuse"]', 'devices[0]: "fuse" has the wrong form'),
        ('devices = ["/dev/../etc/shadow"]', 'devices[0]: "/dev/../etc/shadow" has the wrong form'),
        ('secrets = [{name = "a", share = true}]', 'secrets[0].share: is unknown; did you mean "shared"?'),
        ('secrets = ["../x"]', 'secrets[0].name: "../x" is not the name of a secret; write at most 64'),
        ('secrets = ["a", {name = "a", shared = true}]', 'secrets: "a" stands here twice; leave one'),
        ('allow = ["example.org:443"]', 'allow[0]: "example.org:443" is not a destination; write an IPv4 address'),
        ('allow = ["example.org"]', "not a name, whose addresses change"),
        ('allow = ["203.0.113.7:0"]', 'allow[0]: "203.0.113.7:0" is not a destination'),
        ('allow = ["203.0.113.7:"]', 'allow[0]: "203.0.113.7:" is not a destination'),
        ('allow = ["203.0.113.7/24"]', 'allow[0]: "203.0.113.7/24" is not a destination'),
        ('allow = ["2001:db8::1"]', "jobs reach out over IPv4 alone"),
        ('allow = ["[2001:db8::1]:443"]', "jobs reach out over IPv4 alone"),
        ('allow = ["169.254.169.254:80"]', '"169.254.169.254:80" cannot be opened: 169.254.0.0/16 is shut'),
        ('allow = ["0.0.0.0/0"]', '"0.0.0.0/0" cannot be opened'),
        ("allow = [1]", "allow[0]: 1 is not text; put it in quotes"),
        ('log_flood = "drop"', "log_flood: \"drop\" is none of 'truncate' or 'kill'"),
    ],
)
def test_a_fault_names_file_key_and_remedy(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    (line,) = refused.value.faults
    assert line.startswith(f"{tmp_path}/stack.toml: ")
    assert fault in line
    assert len(line.splitlines()) == 1


def test_a_file_that_is_not_there_or_no_text_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_stack_file(tmp_path / "stack.toml")
    (tmp_path / "stack.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_stack_file(tmp_path / "stack.toml")


@pytest.mark.parametrize("name", ["busybox", "python-3.11", "a_b", "x" * 40])
def test_names_that_a_stack_may_have(name: str) -> None:
    assert is_stack_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A", "-a", "a-", "a..b", "x" * 41, "a\n", "ü"])
def test_names_that_no_stack_may_have(name: str) -> None:
    assert not is_stack_name(name)


def test_the_example_stacks_have_no_fault() -> None:
    files = sorted((ROOT / "config/stacks").glob("*/stack.toml"))
    assert files
    for path in files:
        assert read_stack_file(path).description
        assert is_stack_name(path.parent.name)


def test_the_page_has_every_key() -> None:
    page = (ROOT / "docs/stacks.md").read_text()
    for name, field in StackFile.model_fields.items():
        assert f"| `{field.alias or name}` |" in page


def test_an_image_of_a_registry_is_pinned_by_its_digest(tmp_path: Path) -> None:
    pinned = f"team/python-3.11@sha256:{'0' * 64}"
    assert read(tmp_path, f'image = "{pinned}"').image == pinned


@pytest.mark.parametrize(
    "image",
    [
        "python",
        "python:3.11",
        f"python:3.11@sha256:{'0' * 64}",
        f"python@sha256:{'0' * 63}",
        f"python@sha256:{'A' * 64}",
        f"../python@sha256:{'0' * 64}",
        f"/python@sha256:{'0' * 64}",
        f"python@sha256:{'0' * 64}\\n",
        "",
    ],
)
def test_any_other_image_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(ConfigError, match=r"image: .* is no pinned image"):
        read(tmp_path, f'image = "{image}"')

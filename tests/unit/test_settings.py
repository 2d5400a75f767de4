import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from runner.errors import ConfigError
from runner.job import Bytes, Limits
from runner.settings import Host, LogFormat, Restart, Settings, load_settings

ROOT = Path(__file__).parents[2]
HOST = Host(name="Web-1.example.org", cpus=4, memory=Bytes(16 * 2**30))
NOWHERE = Path("/nonexistent/runner.toml")


def load(environ: dict[str, str] | None = None, host: Host = HOST) -> Settings:
    return load_settings(environ or {}, host, NOWHERE)


def faults(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        load(environ)
    assert all(len(fault.splitlines()) == 1 for fault in refused.value.faults)
    return refused.value.faults


def file_faults(tmp_path: Path, text: str) -> tuple[str, ...]:
    return faults({"RUNNER_CONFIG": write(tmp_path, text)})


def write(folder: Path, text: str) -> str:
    path = folder / "runner.toml"
    path.write_text(text)
    return str(path)


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load()
    assert settings.worker.lease == timedelta(seconds=120)
    assert settings.worker.restart is Restart.DRAIN
    assert settings.amqp.url == ("amqp://guest:guest@127.0.0.1:5672/",)
    assert settings.amqp.history_max_age is None
    assert settings.limits.default == Limits()
    assert settings.limits.max.timeout == timedelta(hours=1)
    assert settings.limits.max.cpus is None
    assert settings.limits.max.memory is None
    assert settings.limits.max.scratch == 0
    assert settings.tenants == {}


def test_some_defaults_depend_on_the_host() -> None:
    settings = load({"RUNNER_CAPACITY__CPU_OVERCOMMIT": "1.5"})
    assert settings.worker.name == "web-1"
    assert settings.capacity.cpus == 6
    assert settings.capacity.memory == int(16 * 2**30 * 0.9)
    assert settings.engine.start_parallelism == 8
    assert settings.warm_memory == settings.capacity.memory // 4


@pytest.mark.parametrize(
    ("host", "worker"),
    [("web", "web"), ("Web_1.x", "web_1"), ("a b!", "a-b-"), ("-x", "x"), ("ü", "worker"), ("x" * 60, "x" * 40)],
)
def test_the_workers_name_is_a_word_whatever_the_host_is_called(host: str, worker: str) -> None:
    assert load(host=Host(name=host, cpus=1, memory=Bytes(2**30))).worker.name == worker


def test_this_host_has_facts() -> None:
    here = Host.here()
    assert here.cpus >= 1
    assert here.memory > 2**20


def test_the_environment_goes_before_credentials_and_these_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[amqp]\nurl = "amqp://file/"\nnamespace = "ns"\n[worker]\nlease = "60s"\npools = ["a"]\n')
    environ = {"RUNNER_CONFIG": file}
    assert load(environ).amqp.url == ("amqp://file/",)

    (tmp_path / "amqp_url").write_text("amqp://one/\namqp://two/\n")
    environ["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    assert load(environ).amqp.url == ("amqp://one/", "amqp://two/")

    environ["RUNNER_AMQP__URL"] = "amqps://environment/"
    environ["RUNNER_WORKER__POOLS"] = '["b", "c"]'
    settings = load(environ)
    assert settings.amqp.url == ("amqps://environment/",)
    assert settings.amqp.namespace == "ns"
    assert settings.worker.pools == ("b", "c")
    assert settings.worker.lease == timedelta(seconds=60)


def test_the_environment_can_say_all_that_the_file_can() -> None:
    settings = load(
        {
            "RUNNER_AMQP__URL": '["amqp://a/", "amqp://b/"]',
            "RUNNER_AMQP__DECLARE": "false",
            "RUNNER_WORKER__LEASE": "90",
            "RUNNER_CAPACITY__MEMORY": "1073741824",
            "RUNNER_LIMITS__MAX__CPUS": "2.5",
            "RUNNER_LIMITS__DEFAULT__TIMEOUT": "1h",
            "RUNNER_TENANTS__ACME__WEIGHT": "3",
            "RUNNER_HTTP__PORT": "0",
            "RUNNER_LOG__FORMAT": "json",
            "RUNNER_HISTORY__MAX_AGE": "",
            "RUNNER_TENANT": "acme",
            "RUNNER_OS": "Linux",
        }
    )
    assert settings.amqp.url == ("amqp://a/", "amqp://b/")
    assert settings.amqp.declare is False
    assert settings.worker.lease == timedelta(seconds=90)
    assert settings.capacity.memory == 2**30
    assert settings.limits.max.cpus == 2.5
    assert settings.limits.default.timeout == timedelta(hours=1)
    assert settings.tenants["acme"].weight == 3
    assert settings.http.port == 0
    assert settings.log.format is LogFormat.JSON
    assert settings.history.max_age == timedelta(days=7)


def test_a_file_that_was_named_has_to_exist_and_the_default_one_need_not(tmp_path: Path) -> None:
    assert load().worker.pools == ("default",)
    assert "there is no such file" in faults({"RUNNER_CONFIG": str(tmp_path / "none.toml")})[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[worker\n", "this is not TOML"),
        ("[wroker]\nlease = 1\n", 'wroker: is unknown; did you mean "worker"?'),
        ('[worker]\nleese = "1s"\n', 'worker.leese: is unknown; did you mean "lease"?'),
        ("[worker]\nxyz = 1\n", "worker.xyz: is unknown; known here are name, pools"),
        ("worker = 3\n", "worker: 3 is not a table of settings"),
        ('[worker]\nlease = "abc"\n', 'worker.lease: "abc" is not a duration; write for example "90s"'),
        ("[worker]\nlease = true\n", "worker.lease: true is not a duration"),
        ("[worker]\nlease = nan\n", "worker.lease: NaN is not a duration"),
        ("[worker]\nlease = 0\n", "worker.lease: must be longer than 0"),
        ('[worker]\npools = "default"\n', 'worker.pools: "default" is not a list'),
        ("[worker]\npools = []\n", "worker.pools: must not be empty"),
        ('[worker]\npools = ["ok", "Not OK"]\n', 'worker.pools[1]: "Not OK" is not a word'),
        ('[worker]\nname = "Up"\n', 'worker.name: "Up" is not a word'),
        ('[worker]\nstate_dir = "here"\n', 'worker.state_dir: "here" is not an absolute path'),
        ('[worker]\nrestart = "now"\n', "worker.restart: \"now\" is none of 'drain' or 'adopt'"),
        ("[capacity]\ncpus = true\n", "capacity.cpus: true is not a number"),
        ("[capacity]\ncpus = inf\n", "capacity.cpus: Infinity is not a number"),
        ("[capacity]\ncpu_overcommit = -1\n", "capacity.cpu_overcommit: -1 is too low"),
        ('[capacity]\nmemory = "5m"\n', 'capacity.memory: "5m" is too little; the engine needs at least "6m"'),
        ("[capacity]\nmax_jobs = 0\n", "capacity.max_jobs: 0 is too low; the least is 1"),
        ("[capacity]\nmax_jobs = 1.5\n", "capacity.max_jobs: 1.5 is not a whole number"),
        ("[amqp]\nurl = []\n", "amqp.url: must not be empty"),
        ('[amqp]\ndeclare = "maybe"\n', 'amqp.declare: "maybe" is neither true nor false'),
        ('[engine]\nurl = "docker"\n', 'engine.url: "docker" is not the address of an engine'),
        ('[limits.default]\ntimeout = "2h"\n', "limits: default timeout is above max timeout"),
        ('[limits.max]\npids = "none"\n', 'limits.max.pids: "none" is not a whole number'),
        ('[engine]\nuids = "0-9"\n', 'engine.uids: "0-9" is not a range of user numbers without root'),
        ('[engine]\nuids = "9-3"\n', 'engine.uids: "9-3" is not a range of user numbers without root'),
        ('[code]\nallow = ["http://x/"]\n', 'code.allow[0]: "http://x/" is not a source of code'),
        ('[code]\nallow = ["https://u@x/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["https://x:99999/p/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["https://x/p/?q=/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["https://x/p/#f/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["https://x/a/../b/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["https://x/%2e%2e/"]\n', "code.allow[0]: "),
        ('[code]\nallow = ["file:///a/../etc/"]\n', "code.allow[0]: "),
        ('[network]\nnameservers = ["example.org"]\n', 'network.nameservers[0]: "example.org" is not an IPv4 address'),
        ("[network]\nnameservers = []\n", "network.nameservers: must not be empty"),
        ("[network]\nconnections = 0\n", "network.connections: 0 is too low"),
        ('[network]\nprivate = ["0.0.0.0/0"]\n', "network: private: 0.0.0.0/0 cannot be opened"),
        ('[network]\nsubnet = "10.9.0.0/16"\nprivate = ["10.0.0.0/8"]\n', "network: private: 10.0.0.0/8 overlaps"),
        ('[network]\nsubnet = "10.0.0.1/8"\n', 'network.subnet: "10.0.0.1/8" is not a range of IPv4 addresses'),
        ('[warm]\nmemory = "125%"\n', 'warm.memory: "125%" is not a part of the whole'),
        ("[tenants.acme]\nwieght = 1\n", 'tenants.acme.wieght: is unknown; did you mean "weight"?'),
        ("[tenants.Acme]\nweight = 1\n", 'tenants.Acme: "Acme" is not a word'),
        ("[http]\nport = 70000\n", "http.port: 70000 is too high; the most is 65535"),
        ('[log]\nlevel = "loud"\n', 'log.level: "loud" is none of'),
    ],
)
def test_a_fault_in_the_file_is_one_line_with_the_remedy(tmp_path: Path, text: str, fault: str) -> None:
    found = file_faults(tmp_path, text)
    assert len(found) == 1
    assert fault in found[0]


def test_all_faults_come_at_once() -> None:
    found = faults(
        {
            "RUNNER_CONFIG": str(NOWHERE),
            "RUNNER_WORKER__LEASE": "abc",
            "RUNNER_WROKER__LEASE": "1s",
            "RUNNER_WORKER__POOLS": '["a',
            "RUNNER_CAPACITY__CPU_OVERCOMMIT": "many",
        }
    )
    assert sorted(fault.partition(":")[0] for fault in found) == [
        str(NOWHERE),
        "capacity.cpu_overcommit",
        "worker.lease",
        "worker.pools",
        "wroker",
    ]


def test_a_text_in_the_place_of_a_table_is_no_crash() -> None:
    assert faults({"RUNNER_TENANTS__ACME": "x", "RUNNER_TENANTS__ACME__WEIGHT": "y"}) == (
        'tenants.acme.weight: "y" is not a whole number',
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@host/",
        "amqp://u:hunter2/x@host/",
        "amqp://u:1234?hunter2@host/",
        "amqp://u:hunter2#@host/",
        "amqp://[u:hunter2@host/",
        "amqp://u:hunter2@host:port/",
        "hunter2",
    ],
)
def test_the_password_of_a_wrong_address_is_not_shown(url: str) -> None:
    (fault,) = faults({"RUNNER_AMQP__URL": url})
    assert fault.startswith("amqp.url[0]: is not the address of a broker; write for example amqp://")
    assert "hunter2" not in fault


def test_a_credential_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "amqp_url").mkdir()
    assert faults({"CREDENTIALS_DIRECTORY": str(tmp_path)})[0].startswith("amqp.url: the credential")


@pytest.mark.parametrize(
    "registry", ["registry.example.com", "registry.example.com:5000/team/images", "localhost:5000", "127.0.0.1:5000"]
)
def test_a_registry_is_a_host_and_a_path(registry: str) -> None:
    assert load({"RUNNER_STACKS__REGISTRY": registry}).stacks.registry == registry


@pytest.mark.parametrize(
    "registry",
    [
        "https://registry.example.com",
        "u:hunter2@registry.example.com",
        "team",
        "registry.example.com/",
        "a.example/x:1",
    ],
)
def test_what_is_no_registry_is_refused(registry: str) -> None:
    (fault,) = faults({"RUNNER_STACKS__REGISTRY": registry})
    assert fault.startswith("stacks.registry: ")
    assert 'write "registry.example.com"' in fault


def test_the_login_for_the_registry_can_be_a_credential(tmp_path: Path) -> None:
    assert load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).stacks.registry_auth is None
    (tmp_path / "registry_auth").touch()
    assert load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).stacks.registry_auth == tmp_path / "registry_auth"


def test_the_effective_tree_can_be_read_back_and_hides_passwords(tmp_path: Path) -> None:
    settings = load(
        {"RUNNER_AMQP__URL": "amqps://u:hunter2@host/v?password=hunter2", "RUNNER_TENANTS__A-B__WEIGHT": "2"}
    )
    text = settings.effective()
    assert "hunter2" not in text
    assert "hunter2" not in repr(settings)
    again = load({"RUNNER_CONFIG": write(tmp_path, text), "RUNNER_AMQP__URL": settings.amqp.url[0]})
    assert again == settings


def test_the_tree_is_frozen() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.worker.lease = timedelta(0)


def fields(model: type[BaseModel], path: str = "") -> list[str]:
    """Every setting there is, by its path; a tenant is called acme."""
    found = []
    for name, field in model.model_fields.items():
        here = f"{path}{field.alias or name}"
        kind: Any = get_args(field.annotation)[-1] if name == "tenants" else field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += fields(kind, f"{here}.acme." if name == "tenants" else f"{here}.")
        else:
            found.append(here)
    return found


def look_up(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


def test_the_example_file_has_every_setting_with_its_default(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?=[a-z\[])", "", (ROOT / "config/runner.toml").read_text())
    tree = tomllib.loads(text)
    ours = tomllib.loads(load({"RUNNER_CONFIG": write(tmp_path, text)}).effective())
    defaults = tomllib.loads(load({"RUNNER_TENANTS__ACME__WEIGHT": "1"}).effective())
    depends = {
        "worker.name",
        "capacity.memory",
        "network.subnet",
        "network.nameservers",
        "stacks.registry",
        "stacks.registry_auth",
        "tenants.acme.stacks",
        "amqp.url",
    }
    for path in fields(Settings):
        assert look_up(tree, path) is not None
        if path not in depends:
            assert look_up(ours, path) == look_up(defaults, path), path


def test_the_example_file_loads_as_it_is() -> None:
    assert load({"RUNNER_CONFIG": str(ROOT / "config/runner.toml")}) == load()


def test_the_settings_page_has_every_setting() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    sections = dict(re.findall(r"(?ms)^## `([a-z.<>]+)`$(.*?)(?=^## |\Z)", page))
    for path in fields(Settings):
        section, _, name = path.replace("tenants.acme", "tenants.<name>").rpartition(".")
        section = "limits" if section.startswith("limits.") else section
        assert f"| `{name}` |" in sections[section], path

"""What `runner check` says of secrets: who has them, who lacks them, and what to do."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.app.secrets import look_at_secrets
from runner.settings import load_settings

STACKS = {
    "plain": "",
    "py": 'secrets = ["token", {name = "registry", shared = true}]',
    "broken": "secrets = 7",
}
TENANTS = '[tenants.acme]\nsecrets = ["vault"]\n[tenants.gamma]\nstacks = ["plain"]\n'
WHOLE = {"acme/token": "t0ken", "acme/vault": "v4ult", "_shared/registry": "r3gistry", "beta/other": "0ther"}


def look(tmp_path: Path, files: Mapping[str, str], *, mode: int = 0o750) -> list[tuple[str, bool]]:
    for name, text in STACKS.items():
        (tmp_path / "stacks" / name).mkdir(parents=True)
        (tmp_path / "stacks" / name / "stack.toml").write_text(text)
    for name, text in files.items():
        (tmp_path / "secrets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "secrets" / name).write_text(text)
        (tmp_path / "secrets" / name).chmod(0o640)
    if files:
        (tmp_path / "secrets").chmod(mode)
    config = tmp_path / "runner.toml"
    config.write_text(f'secrets.dir = "{tmp_path}/secrets"\nstacks.dir = "{tmp_path}/stacks"\n{TENANTS}')
    return list(look_at_secrets(load_settings({"RUNNER_CONFIG": str(config)})))


def test_who_has_what(tmp_path: Path) -> None:
    assert look(tmp_path, WHOLE) == [
        (f"{tmp_path}/secrets", False),
        ("stack py: token for acme; not for beta; registry for acme, beta and everybody", False),
        ("tenant acme: vault for acme", False),
    ]


def test_what_nobody_has(tmp_path: Path) -> None:
    _, stack, tenant = look(tmp_path, {"beta/other": "0ther"})
    place = "put its value in a file TENANT/token under secrets.dir"
    assert stack == (f"stack py: nobody has token; {place}", True)
    assert tenant == ("tenant acme: nobody has vault; put its value in a file acme/vault under secrets.dir", True)


def test_a_folder_that_is_open_to_all(tmp_path: Path) -> None:
    word, fault = look(tmp_path, WHOLE, mode=0o755)[0]
    assert word.endswith(f"/secrets is open to every user of this machine; run: chmod o= {tmp_path}/secrets")
    assert fault


def test_a_value_that_is_open_to_all(tmp_path: Path) -> None:
    look(tmp_path / "one", WHOLE)
    (tmp_path / "one/secrets/acme/token").chmod(0o644)
    settings = load_settings({"RUNNER_CONFIG": str(tmp_path / "one/runner.toml")})
    folder = tmp_path / "one/secrets"
    told = f"secrets.dir: {folder}/acme/token is open to every user of this machine; run: chmod -R o= {folder}"
    assert next(look_at_secrets(settings)) == (told, True)


def test_no_folder_is_no_fault_as_such(tmp_path: Path) -> None:
    word, fault = look(tmp_path, {})[0]
    assert "No such file or directory" in word
    assert not fault


@pytest.mark.parametrize(
    ("value", "word", "fault"),
    [
        ("abc\n", "that of acme is too short to be kept out of logs", False),
        ("x" * 65537, "holds more than 64 KiB", True),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, value: str, word: str, *, fault: bool) -> None:
    told, is_fault = look(tmp_path, WHOLE | {"acme/token": value})[1]
    assert word in told
    assert is_fault is fault


def test_no_value_is_shown(tmp_path: Path) -> None:
    told = repr(look(tmp_path, WHOLE | {"acme/token": "abc"}))
    assert not any(value in told for value in (*WHOLE.values(), "abc"))

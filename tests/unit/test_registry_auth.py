import base64
import json
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.stacks.credentials import registry_auth

HOST = "registry.example.com:5000"


def write(folder: Path, entry: object, host: str = HOST) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {host: entry}}))
    return path


def test_user_and_password_of_the_registrys_host_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, {"auth": base64.b64encode(b"robot:a:b").decode()})
    told = {"username": "robot", "password": "a:b", "serveraddress": HOST}
    assert registry_auth(path, f"{HOST}/team") == told
    assert registry_auth(None, HOST) is None


def test_a_token_goes_before_a_password(tmp_path: Path) -> None:
    path = write(tmp_path, {"auth": "", "identitytoken": "t"})
    assert registry_auth(path, HOST) == {"identitytoken": "t", "serveraddress": HOST}


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ({"auth": base64.b64encode(b"robot:hidden").decode()}, "elsewhere.example.com"),
        ({}, HOST),
        ("hidden", HOST),
        ({"auth": "hidden!"}, HOST),
        ({"auth": base64.b64encode(b"hidden").decode()}, HOST),
        ({"auth": base64.b64encode(b"\xffhidden").decode()}, HOST),
    ],
)
def test_what_is_no_login_is_told_without_its_words(tmp_path: Path, entry: object, host: str) -> None:
    with pytest.raises(ConfigError, match=r"stacks\.registry_auth: .* for registry\.example\.com:5000") as error:
        registry_auth(write(tmp_path, entry, host), HOST)
    assert "hidden" not in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stacks\.registry_auth: .* cannot be read"):
        registry_auth(tmp_path / "absent", HOST)

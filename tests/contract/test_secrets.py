"""What every implementation of the port `Secrets` does."""

from pathlib import Path

import pytest
from tests.fakes import FakeSecrets

from runner.adapters.secrets import FileSecrets
from runner.errors import RejectedError
from runner.job import SecretRef
from runner.ports import Secrets

VALUES = {("acme", "token"): b"of acme\n", ("acme", "raw"): b"\0\xff", ("_shared", "token"): b"of all"}


@pytest.fixture(params=["fake", "files"])
def secrets(request: pytest.FixtureRequest, tmp_path: Path) -> Secrets:
    if request.param == "fake":
        return FakeSecrets(VALUES)
    for (owner, name), value in VALUES.items():
        (tmp_path / owner).mkdir(exist_ok=True)
        (tmp_path / owner / name).write_bytes(value)
    return FileSecrets(tmp_path)


async def test_values_by_name(secrets: Secrets) -> None:
    wanted = (SecretRef(name="token"), SecretRef(name="raw"))
    assert await secrets.read("acme", wanted) == {"token": b"of acme\n", "raw": b"\0\xff"}
    assert await secrets.read("acme", ()) == {}


async def test_what_is_shared_serves_whoever_has_none(secrets: Secrets) -> None:
    shared = (SecretRef(name="token", shared=True),)
    assert await secrets.read("acme", shared) == {"token": b"of acme\n"}
    assert await secrets.read("beta", shared) == {"token": b"of all"}


@pytest.mark.parametrize(("tenant", "name"), [("beta", "token"), ("acme", "other"), ("beta", "raw")])
async def test_a_missing_one_is_the_operators_fault(secrets: Secrets, tenant: str, name: str) -> None:
    with pytest.raises(RejectedError, match=f"secret {name}: tenant {tenant} has none") as refusal:
        await secrets.read(tenant, (SecretRef(name=name),))
    assert refusal.value.operator

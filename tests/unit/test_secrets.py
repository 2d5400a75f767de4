"""Reading the values of secrets from an operator's folder, and nothing from beside it."""

import os
from pathlib import Path

import pytest

from runner.adapters.secrets import FileSecrets
from runner.errors import DeferredError, RejectedError
from runner.job import SECRET_BYTES_MAX, SECRETS_MAX, SecretRef

TOKEN = SecretRef(name="token")
COMMON = SecretRef(name="token", shared=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a value of acme's, one for all, and one outside that nobody is to get."""
    for path, value in {"s/acme/token": b"of acme\n", "s/_shared/token": b"of all", "outside": b"of nobody"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(value)
    (tmp_path / "s/beta").mkdir()
    return tmp_path / "s"


async def refused(folder: Path, tenant: str, *secrets: SecretRef) -> str:
    with pytest.raises(RejectedError) as refusal:
        await FileSecrets(folder).read(tenant, secrets)
    assert refusal.value.operator
    assert str(folder) not in refusal.value.reason
    return refusal.value.reason


async def test_a_value_is_read_byte_for_byte(folder: Path) -> None:
    (folder / "acme/raw").write_bytes(b"\0\xff\n\n")
    names = (TOKEN, SecretRef(name="raw"))
    assert await FileSecrets(folder).read("acme", names) == {"token": b"of acme\n", "raw": b"\0\xff\n\n"}


async def test_a_new_value_counts_at_once(folder: Path) -> None:
    secrets = FileSecrets(folder)
    await secrets.read("acme", (TOKEN,))
    (folder / "acme/token").write_bytes(b"new")
    assert await secrets.read("acme", (TOKEN,)) == {"token": b"new"}


async def test_without_names_there_need_be_no_folder(tmp_path: Path) -> None:
    assert await FileSecrets(tmp_path / "none").read("acme", ()) == {}


async def test_what_is_shared_is_a_tenants_own_first(folder: Path) -> None:
    secrets = FileSecrets(folder)
    assert await secrets.read("acme", (COMMON,)) == {"token": b"of acme\n"}
    assert await secrets.read("beta", (COMMON,)) == {"token": b"of all"}
    assert await secrets.read("gamma", (COMMON,)) == {"token": b"of all"}


async def test_what_is_not_shared_is_never_anybody_elses(folder: Path) -> None:
    reason = await refused(folder, "beta", TOKEN)
    assert (
        reason == "secret token: tenant beta has none on this worker; put its value in beta/token beneath secrets.dir"
    )


async def test_a_missing_one_names_both_places_where_it_may_be(folder: Path) -> None:
    reason = await refused(folder, "acme", SecretRef(name="x", shared=True))
    assert reason.endswith("put its value in acme/x, or in _shared/x for all tenants, beneath secrets.dir")


async def test_a_missing_folder_is_a_missing_secret(tmp_path: Path) -> None:
    assert "tenant acme has none" in await refused(tmp_path / "none", "acme", TOKEN)


@pytest.mark.parametrize("target", ["../../outside", "token"])
async def test_a_link_is_not_followed(folder: Path, target: str) -> None:
    (folder / "acme/link").symlink_to(target)
    assert "links are not followed" in await refused(folder, "acme", SecretRef(name="link"))


async def test_a_link_to_a_folder_is_not_followed(folder: Path) -> None:
    (folder / "gamma").symlink_to("acme")
    assert "links are not followed" in await refused(folder, "gamma", TOKEN)
    assert "links are not followed" in await refused(folder, "gamma", COMMON)


@pytest.mark.parametrize("name", ["..", ".", "", "../acme/token", "../../outside", "/etc/hostname"])
async def test_nothing_outside_the_tenants_folder_is_a_secret(folder: Path, name: str) -> None:
    assert "is not beneath" in await refused(folder, "beta", SecretRef(name=name))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
async def test_only_a_plain_file_is_a_secret(folder: Path, kind: str) -> None:
    path = folder / "acme/odd"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert "is not a plain file" in await refused(folder, "acme", SecretRef(name="odd"))


async def test_a_value_has_a_bound(folder: Path) -> None:
    (folder / "acme/token").write_bytes(b"x" * SECRET_BYTES_MAX)
    assert len((await FileSecrets(folder).read("acme", (TOKEN,)))["token"]) == SECRET_BYTES_MAX
    (folder / "acme/token").write_bytes(b"x" * (SECRET_BYTES_MAX + 1))
    assert "holds more than 64 KiB" in await refused(folder, "acme", TOKEN)


async def test_all_of_a_job_have_bounds_together(folder: Path) -> None:
    names = [SecretRef(name=f"n{number}") for number in range(SECRETS_MAX + 1)]
    for name in names[:5]:
        (folder / "acme" / name.name).write_bytes(b"x" * SECRET_BYTES_MAX)
    assert "the most is 32" in await refused(folder, "acme", *names)
    assert "327680 bytes together; the most is 256 KiB" in await refused(folder, "acme", *names[:5])
    (folder / "acme/token").write_bytes(b"".join(b"line number %d\n" % number for number in range(257)))
    assert "257 lines together; no more than 256" in await refused(folder, "acme", TOKEN)


async def test_a_file_that_this_user_may_not_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, PermissionError(13, "Permission denied"))
    assert "Permission denied" in await refused(folder, "acme", TOKEN)


async def test_a_disk_that_fails_is_not_the_operators_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, OSError(5, "Input/output error"))
    with pytest.raises(DeferredError, match="Input/output error"):
        await FileSecrets(folder).read("acme", (TOKEN,))


def fail_to_open(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "token":
            raise error
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)

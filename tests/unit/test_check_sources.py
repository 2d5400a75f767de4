"""What `runner check` says of the places that code packages may come from."""

import socket
from pathlib import Path

import pytest

from runner.app.finding import Finding
from runner.app.sources import look_at_sources
from runner.settings import load_settings


async def findings(*allowed: str, private: str = "[]") -> list[Finding]:
    text = ", ".join(f'"{source}"' for source in allowed)
    environ = {"RUNNER_CODE__ALLOW": f"[{text}]", "RUNNER_NETWORK__PRIVATE": private}
    return [finding async for finding in look_at_sources(load_settings(environ))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The addresses that names lead to; all others are unknown."""
    known: dict[str, str] = {}

    async def resolve(_: object, host: str, port: int, __: object) -> list[dict[str, object]]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [{"hostname": host, "host": known[host], "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    return known


async def test_nothing_allowed_is_no_fault() -> None:
    (finding,) = await findings()
    assert finding.ok
    assert "in messages alone" in finding.detail


async def test_a_folder_has_to_be_there(tmp_path: Path) -> None:
    good, bad = await findings(f"file://{tmp_path}/", f"file://{tmp_path}/missing/")
    assert (good.ok, good.detail) == (True, f"file://{tmp_path}/")
    assert not bad.ok
    assert bad.detail.startswith(f"code.allow: {tmp_path}/missing is no folder")


async def test_a_name_has_to_lead_where_we_may_go(names: dict[str, str]) -> None:
    names |= {"public.example": "93.184.216.34", "inside.example": "10.1.2.3"}
    sources = [f"https://{name}.example/" for name in ("public", "inside", "unknown")]
    public, inside, unknown = await findings(*sources)
    assert (public.ok, public.detail) == (True, "https://public.example/ at 93.184.216.34")
    assert not inside.ok
    assert inside.detail.startswith("code.allow: inside.example has the address 10.1.2.3, which is not public; ")
    assert not unknown.ok
    assert "unknown.example has no address (Name or service not known)" in unknown.detail
    assert all(finding.ok for finding in await findings(sources[1], private='["10.0.0.0/8"]'))


async def test_an_address_that_is_named_itself_is_meant() -> None:
    assert all(finding.ok for finding in await findings("https://10.1.2.3/x/", "http://127.0.0.1:8000/"))

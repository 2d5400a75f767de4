"""The mirror for the bases comes from what apt of the machine is set to."""

from pathlib import Path

import pytest
from scripts.mirror import MirrorError, find_mirror

DEBIAN = "Debian|Debian|http://mirror.example/debian/"
SECURITY = "Debian|Debian-Security|http://mirror.example/debian-security/"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt of our own, which says what is in the files `targets` and `proxy`."""
    for program, said in (("apt-get", "targets"), ("apt-config", "proxy")):
        (tmp_path / program).write_text(f"#!/bin/sh\nexec cat {tmp_path / said}\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "targets").write_text(f"{DEBIAN}\n{DEBIAN}\n{SECURITY}\nOther|Other|http://other.example/\n")
    (tmp_path / "proxy").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("http_proxy", "https_proxy", "RUNNER_DEBIAN_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_mirror_and_that_of_the_security_updates_are_those_of_apt() -> None:
    assert find_mirror().sources("trixie").splitlines() == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
    ]


def test_one_that_is_named_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DEBIAN_MIRROR", "http://named.example/debian")
    assert find_mirror().sources("trixie").splitlines() == [
        "deb http://named.example/debian trixie main",
        "deb http://named.example/debian trixie-updates main",
    ]


def test_apts_own_proxy_goes_before_that_of_the_environment(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://environment.example:3128")
    assert find_mirror().proxy == 'Acquire::http::Proxy "http://environment.example:3128";'
    (programs / "proxy").write_text('Acquire::http::Proxy "http://apt.example:3128";\nAcquire::https::Proxy "";\n')
    assert find_mirror().proxy == 'Acquire::http::Proxy "http://apt.example:3128";'


def test_a_machine_without_a_debian_mirror_is_told_what_to_do(programs: Path) -> None:
    (programs / "targets").write_text("Ubuntu|Ubuntu|http://mirror.example/ubuntu/\n")
    with pytest.raises(MirrorError, match="RUNNER_DEBIAN_MIRROR"):
        find_mirror()


@pytest.mark.parametrize("said", ["targets", "proxy"])
def test_a_password_is_not_written_where_jobs_could_read_it(programs: Path, said: str) -> None:
    texts = {"targets": "Debian|Debian|http://me:secret@mirror.example/debian/\n"}
    texts["proxy"] = 'Acquire::http::Proxy "http://me:secret@proxy.example:3128";\n'
    (programs / said).write_text(texts[said])
    with pytest.raises(MirrorError, match="password") as raised:
        find_mirror()
    assert "secret@" not in str(raised.value)

"""How a command line becomes a job, and what is told when it cannot."""

import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from runner.cli.options import JSON, broker_options, job_message, job_options
from runner.client.packing import pack


@click.command(context_settings={"allow_interspersed_args": False})
@job_options
@broker_options
@JSON
def show(*, message: dict[str, Any], command: tuple[str, ...], **options: Any) -> None:
    """Print the job that the options make."""
    route = {name: options[name] for name in ("tenant", "pool", "priority")}
    click.echo(json.dumps([job_message(message, command, options), route]))


def parsed(*words: str, stdin: str = "", env: dict[str, str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    result = CliRunner(env={"RUNNER_TENANT": None, **(env or {})}).invoke(show, words, input=stdin)
    assert result.exit_code == 0, result.output
    message, route = json.loads(result.stdout)
    return message, route


def refused(*words: str, stdin: str | bytes = "") -> str:
    result = CliRunner().invoke(show, words, input=stdin)
    assert result.exit_code == 2
    return result.stderr


def test_nothing_is_said_that_was_not_asked_for() -> None:
    assert parsed("--stack", "busybox") == (
        {"stack": "busybox"},
        {"tenant": "default", "pool": "default", "priority": "normal"},
    )


def test_code_is_packed_and_its_size_told(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hi')")
    result = CliRunner().invoke(show, ["--stack", "s", "--code", str(tmp_path)])
    message, _ = json.loads(result.stdout)
    assert message == {"stack": "s", "code": pack(tmp_path).field}
    assert result.stderr == f"runner: code: {pack(tmp_path)}\n"


def test_every_option_has_its_field() -> None:
    words = shlex.split(
        "--stack=s --id=i --name=n --label a=1 --label b=2=3 --env A= --env B=x --payload p --stdin in --cpus 0.5 "
        "--memory 256m --disk 1048576 --pids 10 --timeout 90 --grace 1.5 --log-bytes 4m --start-within 10m "
        "--tenant t --pool big --priority high -- ls -l"
    )
    message, route = parsed(*words)
    assert message == {
        "stack": "s",
        "id": "i",
        "name": "n",
        "labels": {"a": "1", "b": "2=3"},
        "env": {"A": "", "B": "x"},
        "payload": "p",
        "stdin": "in",
        "limits": {
            "cpus": 0.5,
            "memory": "256m",
            "disk": 1048576,
            "pids": 10,
            "timeout": 90,
            "grace": 1.5,
            "log_bytes": "4m",
        },
        "start_within": "10m",
        "command": ["ls", "-l"],
    }
    assert route == {"tenant": "t", "pool": "big", "priority": "high"}


def test_options_that_make_a_job_wait_or_start_again() -> None:
    message, _ = parsed("--stack", "s", "--retries", "3", "--delay", "10m", "--unique", "1h", "--fence")
    assert message == {"stack": "s", "retry": {"max": 3}, "delay": "10m", "unique": "1h", "fence": True}


def test_options_of_the_command_are_the_commands_own() -> None:
    message, _ = parsed("--stack", "busybox", "sh", "-c", "ls --env", "--stack", "x")
    assert message["command"] == ["sh", "-c", "ls --env", "--stack", "x"]


def test_the_tenant_may_stand_in_the_environment() -> None:
    assert parsed("--stack=s", env={"RUNNER_TENANT": "acme"})[1]["tenant"] == "acme"
    assert parsed("--stack=s", "--tenant=me", env={"RUNNER_TENANT": "acme"})[1]["tenant"] == "me"


def test_options_change_a_file_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    job = {"stack": "a", "command": ["x", "y"], "env": {"A": "1", "B": "2"}, "limits": {"cpus": 1, "pids": 5}}
    file.write_text(json.dumps(job | {"payload": {"deep": [1]}}))
    message, _ = parsed("--file", str(file), "--stack=b", "--env", "B=3", "--cpus=2", "--", "z")
    assert message == {
        "stack": "b",
        "command": ["z"],
        "env": {"A": "1", "B": "3"},
        "limits": {"cpus": 2, "pids": 5},
        "payload": {"deep": [1]},
    }
    assert parsed("--file", str(file))[0] == job | {"payload": {"deep": [1]}}


def test_a_field_of_the_wrong_type_in_the_file_is_left_to_the_judge(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"stack": "a", "env": ["A"]}')
    assert parsed("--file", str(file), "--env", "B=1")[0]["env"] == ["A"]


def test_payload_and_stdin_come_from_text_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("from the file\n")
    assert parsed("--stack=s", "--payload", f"@{file}")[0]["payload"] == "from the file\n"
    assert parsed("--stack=s", "--stdin", "-", stdin="piped\n")[0]["stdin"] == "piped\n"
    assert parsed("--file", "-", stdin='{"stack": "piped"}')[0] == {"stack": "piped"}
    assert parsed("--stack=s", "--payload", "")[0]["payload"] == ""


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--env", "A"), "'A' is not KEY=VALUE"),
        (("--label", "=x"), "'=x' is not KEY=VALUE"),
        (("--payload", "@/nowhere/at/all"), "/nowhere/at/all cannot be read: No such file or directory"),
        (("--file", "/nowhere/at/all"), "/nowhere/at/all cannot be read"),
        (("--priority", "urgent"), "'urgent' is not one of"),
        (("--colour", "red"), "No such option"),
    ],
)
def test_a_wrong_option_is_named(words: tuple[str, ...], fault: str) -> None:
    assert fault in refused(*words)


def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"\xff")
    assert "--payload: is not UTF-8" in refused("--payload", f"@{file}").replace("'", "")
    file.write_text("{")
    assert "is not JSON" in refused("--file", str(file))
    file.write_text("[" * 100_000)
    assert "is not JSON" in refused("--file", str(file))
    file.write_text("[]")
    assert "is not a JSON object" in refused("--file", str(file))

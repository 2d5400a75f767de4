"""The command line as a whole: which commands there are, and what their exit codes mean."""

from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runner.app.finding import Finding, Remedy
from runner.cli import Exit, cli
from runner.cli.check import exit_code_for
from runner.cli.exits import exit_code_of, exit_on_errors
from runner.errors import (
    BrokerError,
    ConfigError,
    EngineGone,
    PublishUncertain,
    RejectedError,
    RunnerError,
)
from runner.job import Outcome

COMMANDS = [
    "serve",
    "check",
    "submit",
    "run",
    "exec",
    "logs",
    "status",
    "jobs",
    "cancel",
    "workers",
    "queues",
    "dead",
    "schema",
    "stacks",
    "topology",
    "reap",
]


def invoke(*words: str, **env: str) -> tuple[int, str, str]:
    variables = {"RUNNER_CONFIG": None, "RUNNER_AMQP__URL": "amqp://me:secret@127.0.0.1:1/", **env}
    result = CliRunner(env=variables).invoke(cli, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_each_command_is_there_and_the_list_says_what_its_own_help_says() -> None:
    context = click.Context(cli)
    _, listed, _ = invoke("--help")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").partition("\n")[0] in listed


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["stacks", "build"], ["topology", "apply"]])
def test_there_is_help_on_every_level(words: list[str]) -> None:
    code, out, _ = invoke(*words, "--help")
    assert code == 0
    assert f"Usage: cli {' '.join(words)} " in out


def test_a_command_that_does_not_exist_is_a_usage_error() -> None:
    code, _, told = invoke("fly")
    assert code == Exit.USAGE
    assert "No such command 'fly'" in told


@dataclass
class End:
    outcome: Outcome
    exit_code: int | None = None
    signal: int | None = None


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (End(Outcome.SUCCEEDED, exit_code=0), 0),
        (End(Outcome.FAILED, exit_code=3), 3),
        (End(Outcome.FAILED, exit_code=127), 127),
        (End(Outcome.FAILED, exit_code=0), 1),
        (End(Outcome.FAILED, signal=11), 139),
        (End(Outcome.FAILED), 125),
        (End(Outcome.TIMED_OUT, signal=9), 124),
        (End(Outcome.TIMED_OUT, exit_code=0), 124),
        (End(Outcome.CANCELLED, signal=15), 130),
        (End(Outcome.OOM_KILLED, signal=9), 137),
        (End(Outcome.EXPIRED), 125),
        (End(Outcome.REJECTED), 125),
        (End(Outcome.DISK_LIMIT, exit_code=1), 125),
        (End(Outcome.OUTPUT_LIMIT, signal=9), 125),
        (End(Outcome.LOST), 125),
    ],
)
def test_run_passes_on_how_the_job_ended(end: End, code: int) -> None:
    assert exit_code_of(end) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a: is wrong", "b: is wrong"), 78),
        (RejectedError("stack: is required"), 2),
        (BrokerError("gone"), 69),
        (PublishUncertain("gone"), 69),
        (EngineGone("gone"), 69),
        (RunnerError("odd"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_exit_codes_and_a_line_for_each_fault(error: BaseException, code: int) -> None:
    @click.command()
    @click.pass_context
    def failing(ctx: click.Context) -> None:
        with exit_on_errors(ctx):
            raise error

    result = CliRunner().invoke(failing)
    assert result.exit_code == code
    assert result.stderr == "".join(f"runner: {line}\n" for line in str(error).splitlines())


@pytest.mark.parametrize("command", ["serve", "submit", "run", "exec", "cancel", "reap", "check"])
def test_a_broken_configuration_is_told_a_line_a_fault(command: str, tmp_path: Path) -> None:
    file = tmp_path / "runner.toml"
    file.write_text('[worker]\nnmae = "a"\n[capacity]\ncpus = "many"\n')
    words = {"submit": ["--stack=s"], "run": ["--stack=s"], "exec": ["--stack=s"], "cancel": ["id"]}.get(command, [])
    code, out, told = invoke(command, *words, RUNNER_CONFIG=str(file))
    assert code == Exit.CONFIG
    faults = (out + told).splitlines()
    assert len(faults) == 2
    assert any('worker.nmae: is unknown; did you mean "name"?' in fault for fault in faults)
    assert any('capacity.cpus: "many" is not a number' in fault for fault in faults)


@pytest.mark.parametrize("command", ["submit", "run", "exec"])
def test_a_mistake_in_a_job_is_told_before_the_broker_is_asked(command: str) -> None:
    code, out, told = invoke(command, "--memory", "lots", "--", "ls")
    assert (code, out) == (Exit.USAGE, "")
    assert "stack: is required" in told
    assert "limits.memory" in told
    code, _, told = invoke(command, "--stack=s", "--tenant", "a.b", "--", "ls")
    assert code == Exit.USAGE


def test_a_broker_that_is_not_there_is_told_without_its_password() -> None:
    for words in (["submit", "--stack=s"], ["cancel", "id"], ["logs", "-f", "id"], ["topology", "check"]):
        code, out, told = invoke(*words)
        assert (code, out) == (Exit.UNAVAILABLE, "")
        assert "no broker at 127.0.0.1:1" in told
        assert "secret" not in told


def test_one_id_cannot_be_that_of_several_jobs() -> None:
    assert invoke("submit", "--stack=s", "--id=x", "-n", "2")[0] == Exit.USAGE


def test_the_settings_are_printed_without_the_password() -> None:
    code, out, _ = invoke("check", "--print")
    assert code == 0
    assert 'url = ["amqp://me:****@127.0.0.1:1/"]' in out
    assert "[worker]" in out


@pytest.mark.parametrize(
    ("remedies", "code"),
    [
        ([None, None], 0),
        ([None, Remedy.MACHINE], 1),
        ([Remedy.MACHINE, Remedy.SERVICE], 69),
        ([Remedy.SERVICE, Remedy.CONFIG, Remedy.MACHINE], 78),
    ],
)
def test_the_worst_finding_makes_the_exit_code_of_check(remedies: list[Remedy | None], code: int) -> None:
    findings = [Finding(name="x", detail="", remedy=remedy) for remedy in remedies]
    assert exit_code_for(findings) == code


def test_the_tenants_of_permissions_are_words() -> None:
    code, _, told = invoke("topology", "apply", "--tenant", "a.*")
    assert code == Exit.USAGE
    assert "is not a word" in told

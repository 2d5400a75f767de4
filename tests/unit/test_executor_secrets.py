"""One attempt with secrets: who gets them, and what is told."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.fake_engine import Script
from tests.fakes import until
from tests.unit.test_executor import House, adopted

from runner import executor
from runner.errors import DeferredError, RejectedError
from runner.job import EventKind, Exit, Json, Outcome, SecretRef, StopReason, Stream
from runner.ports import LogPosition

VALUE = b"hunter22\n"
GIVEN = ("given",)
ENDS = Exit(code=1, complete=True)


def with_secret(script: Script | None = None) -> House:
    """A job whose stack names the secret `token`, which its tenant has."""
    house = House(*GIVEN)
    house.attempt = replace(house.attempt, plan=replace(house.attempt.plan, secrets=(SecretRef(name="token"),)))
    house.secrets.values["acme", "token"] = VALUE
    house.engine.scripts[GIVEN] = script or Script()
    return house


class Unreadable:
    """Secrets on a disk that fails `times` times."""

    def __init__(self, house: House, times: float) -> None:
        self.read_well = house.secrets.read
        self.left = times

    async def read(self, tenant: str, secrets: Sequence[SecretRef]) -> Mapping[str, bytes]:
        self.left -= 1
        if self.left >= 0:
            raise DeferredError("secret token: cannot be read: Input/output error")
        return await self.read_well(tenant, secrets)


def progress(house: House) -> list[Json]:
    return [event.progress for event in house.events.published if event.kind is EventKind.PROGRESS]


async def test_the_engine_gets_the_values_when_the_job_starts_and_nobody_else_does() -> None:
    house = with_secret(Script(end=ENDS))
    async with house.run() as (run, _):
        await until(lambda: house.runs)
        assert run.attempt.secrets == {"token": VALUE}
    assert "hunter22" not in repr((run.attempt, house.events.published, house.logs.batches, house.journal))


async def test_a_job_without_secrets_has_none_read() -> None:
    house = House(*GIVEN)
    house.engine.scripts[GIVEN] = Script(end=ENDS)
    async with house.run() as (run, _):
        pass
    assert run.attempt.secrets == {}
    assert house.secrets.asked == [()]


async def test_without_its_secret_the_job_is_not_started_and_the_operator_is_to_blame() -> None:
    house = with_secret()
    house.secrets.values.clear()
    with pytest.raises(ExceptionGroup) as raised:
        await house.result()
    (error,) = raised.value.exceptions
    assert isinstance(error, RejectedError)
    assert (error.reason, error.operator) == ("secret token: tenant acme has none", True)
    assert house.engine.launched == []


async def test_the_log_is_without_secrets_wherever_it_is_cut() -> None:
    output = [(Stream.OUT, b"a hunt"), (Stream.ERR, b"hunter22\n"), (Stream.OUT, b"er22 b\nhun")]
    house = with_secret(Script(output=output, end=ENDS))
    result = await house.result()
    assert sorted(house.logs.text("c1").split("\n")) == ["********", "a ******** b", "hun"]
    assert (result.logs.stdout_bytes, result.logs.stderr_bytes) == (16, 9)
    assert {line.text for line in result.tail} == {"********", "a ******** b", "hun"}


async def test_a_line_waits_for_nothing_but_its_last_letters() -> None:
    house = with_secret()
    async with house.run():
        await until(lambda: house.runs)
        house.container.emit(Stream.OUT, b"password: hunt")
        await until(lambda: house.logs.text("c1") == "password: ")
        house.container.emit(Stream.OUT, b"ing\n")
        await until(lambda: house.logs.text("c1") == "password: hunting\n")
        house.container.finish(ENDS)


async def test_output_and_reason_are_without_secrets() -> None:
    end = Exit(code=0, output=b'{"hunter22": ["a \\u0068unter22", 7]}', complete=True)
    result = await with_secret(Script(end=end)).result()
    assert result.verdict.output == {"********": ["a ********", 7]}
    house = with_secret(Script(end=Exit(lost="the engine said hunter22")))
    assert (await house.result()).verdict.reason == "the engine said ********"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b'{"at": "hunter22"}', {"at": "********"}),
        (b"at hunter22\n", "at ********\n"),
        (b"x" * 4092 + b"hunter22", "x" * 4092),
    ],
)
async def test_progress_is_without_secrets(written: bytes, told: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_EVERY", 0.01)
    house = with_secret(Script(progress=written[:4097]))
    async with house.run():
        await until(lambda: progress(house))
        house.container.finish(ENDS)
    assert progress(house) == [told]


async def test_an_adopted_job_has_its_log_without_secrets_and_nothing_twice() -> None:
    house = with_secret()
    known = b"first ********\n"
    await adopted(house, logged=LogPosition(out=len(known), err=0, seq=4))
    container = house.engine.live[house.attempt.container_name]
    container.emit(Stream.OUT, b"first hunter22\nsecond hunt")
    async with house.run():
        await until(lambda: house.logs.text("c1"))
        container.emit(Stream.OUT, b"er22\n")
        await until(lambda: house.logs.text("c1") == "second ********\n")
        container.finish(ENDS)
    assert house.secrets.asked == [("token",)]


async def test_a_job_is_adopted_although_its_secret_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    house = with_secret()
    house.secrets.values.clear()
    await adopted(house)
    with caplog.at_level(logging.WARNING):
        async with house.run() as (_, running):
            await until(lambda: caplog.records)
            await asyncio.sleep(0)
            house.container.finish(Exit(code=0, complete=True))
    assert running.result().verdict.outcome is Outcome.SUCCEEDED
    assert "a secret is not kept out of an adopted job's log" in caplog.text


async def test_an_adopted_job_waits_until_its_secret_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_READ_AGAIN", 0.001)
    house = with_secret()
    await adopted(house)
    container = house.engine.live[house.attempt.container_name]
    container.emit(Stream.OUT, b"my hunter22\n")
    house.secrets.read = Unreadable(house, times=3).read  # type: ignore[method-assign]
    async with house.run():
        await until(lambda: house.logs.text("c1"))
        container.finish(ENDS)
    assert house.logs.text("c1") == "my ********\n"


async def test_a_secret_that_cannot_be_read_for_good_costs_the_job_and_never_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "_READ_AGAIN", 0.001)
    house = with_secret()
    await adopted(house)
    house.kill_budget = timedelta(milliseconds=20)
    house.engine.live[house.attempt.container_name].emit(Stream.OUT, b"my hunter22\n")
    house.secrets.read = Unreadable(house, times=float("inf")).read  # type: ignore[method-assign]
    async with house.run() as (run, running):
        run.stop(StopReason.CANCELLED)
    assert "Input/output error: the job could not be adopted" in running.result().verdict.reason
    assert house.logs.text("c1") == ""

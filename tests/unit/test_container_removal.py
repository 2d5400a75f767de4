"""What the engine is asked until a container is known to be gone."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.engine_log import EngineLog

from runner.adapters.docker import removal as removal_module
from runner.adapters.docker.census import Census
from runner.adapters.docker.client import Deletion
from runner.adapters.docker.removal import Removal
from runner.errors import EngineError

NAME, ID = "runner-vm1-c1", "c0ffee"


@dataclass(slots=True)
class Engine:
    """Answers deletions as told; a container is gone once it was looked at as often as it `lingers`."""

    deletions: list[Deletion | EngineError]
    lingers: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def delete(self, container: str) -> Deletion:
        self.asked.append(("delete", container))
        answer = self.deletions.pop(0)
        if isinstance(answer, EngineError):
            raise answer
        return answer

    async def inspect(self, container: str) -> dict[str, Any] | None:
        self.asked.append(("inspect", container))
        self.lingers -= 1
        return {"Id": container} if self.lingers >= 0 else None


async def remove(engine: Engine, container: str | None, log: EngineLog) -> bool:
    removal = Removal(cast("Any", engine), Census(log), log, at_once=1)
    async with asyncio.timeout(30):
        return await removal.remove(NAME, container)


@pytest.mark.parametrize(("container", "target"), [(ID, ID), (None, NAME)], ids=["id", "name"])
async def test_two_calls_prove_that_it_is_gone(container: str | None, target: str) -> None:
    """By the id where the engine has told it, by the name where its answer to the creation is not known."""
    engine, log = Engine([Deletion.DONE]), EngineLog()
    assert await remove(engine, container, log)
    assert engine.asked == [("delete", target), ("inspect", target)]
    assert (log.created, log.removed, log.cleanups_failed) == (1, 1, 0)


async def test_who_is_told_that_there_is_none_need_not_ask_again() -> None:
    engine, log = Engine([Deletion.ABSENT]), EngineLog()
    assert not await remove(engine, ID, log)
    assert engine.asked == [("delete", ID)]
    assert (log.created, log.removed) == (0, 0)


async def test_a_deletion_that_was_answered_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal_module, "_pauses", lambda: iter([0.0] * 5))
    engine, log = Engine([Deletion.DONE, EngineError("busy"), Deletion.ABSENT], lingers=1), EngineLog()
    assert await remove(engine, ID, log)
    assert engine.asked == [("delete", ID), ("inspect", ID), ("delete", ID), ("delete", ID)]
    assert (log.created, log.removed, log.cleanups_failed) == (1, 1, 2)


async def test_a_removal_under_way_is_looked_at_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal_module, "_POLL", 0.0)
    engine, log = Engine([Deletion.IN_PROGRESS], lingers=3), EngineLog()
    assert await remove(engine, ID, log)
    assert engine.asked == [("delete", ID), *[("inspect", ID)] * 4]
    assert log.cleanups_failed == 0

"""What the workers know about jobs, as a client asks and reads it."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runner.adapters.amqp.ask import Asker
from runner.client.messages import LogBatch, Result, decode_batch, decode_event, decode_result
from runner.errors import BrokerError
from runner.job import JobKey

PART_PATIENCE = 10.0
"""Seconds between two parts of a log after which its worker is given up."""

_STATES = ("running", "queued", "finished", "retrying", "deferred", "gone")
"""What is said of a job, from what counts most: a worker that has it knows better than one that had it."""
_SURE = frozenset({"running", "finished"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one worker knows of a job.

    `state` is `running`, `queued` (on that worker, and `why` says what it waits for), `finished`, `retrying` (it starts
    again, anywhere), `deferred` (it was passed on) or `gone`. `record` has the fields of an event, `finished` as it was
    published; None when nothing was told yet. `claims` are those whose log the worker has, oldest first.
    """

    worker: str
    state: str
    why: str | None
    record: Mapping[str, Any] | None
    claims: tuple[str, ...]

    @property
    def result(self) -> Result | None:
        """How the job ended; None while it has not. Raises `BrokerError` when that makes no sense."""
        if self.state != "finished" or self.record is None:
            return None
        return decode_result(decode_event(json.dumps(self.record).encode()))


async def find(asker: Asker, key: JobKey, wait: float, *, everyone: bool) -> list[Found]:
    """What the workers that answer within `wait` seconds know of a job: first the one that knows best."""
    answers = await asker.collect(
        asker.names.find_key(key.tenant, key.id),
        wait=wait,
        enough=lambda answer: not everyone and answer.get("state") in _SURE,
    )
    return sorted((_found(answer) for answer in answers), key=_authority)


async def kept_log(asker: Asker, key: JobKey, found: Sequence[Found]) -> AsyncIterator[LogBatch]:
    """The log of a job as its workers keep it, in the order of its claims. Raises `BrokerError`."""
    for claim in sorted({claim for one in found for claim in one.claims}):
        rest = b""
        asked = {"log": True, "claim": claim}
        async for part in asker.parts(asker.names.find_key(key.tenant, key.id), asked, patience=PART_PATIENCE):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield decode_batch(line)


async def recent(
    asker: Asker, *, tenant: str | None, state: str | None, limit: int, wait: float
) -> list[Mapping[str, Any]]:
    """The jobs of all workers that answer, newest first; of a job that several know, what counts most."""
    asked = {"tenant": tenant, "state": state, "limit": limit}
    answers = await asker.collect("all.jobs", asked, wait=wait)
    jobs: dict[tuple[str, str], Mapping[str, Any]] = {}
    for answer in answers:
        for told in answer.get("jobs", ()):
            job = {**told, "worker": answer.get("worker")}
            key = (str(job.get("tenant")), str(job.get("id")))
            if key not in jobs or _weight(job) < _weight(jobs[key]):
                jobs[key] = job
    # Without a time it waits, and is newer than anything.
    return sorted(jobs.values(), key=lambda job: str(job.get("updated") or "~"), reverse=True)[:limit]


def _found(answer: Mapping[str, Any]) -> Found:
    try:
        return Found(
            worker=str(answer["worker"]),
            state=str(answer["state"]),
            why=answer["why"],
            record=answer["record"],
            claims=tuple(str(log["claim"]) for log in answer["logs"]),
        )
    except (KeyError, TypeError) as error:
        told = json.dumps(answer)[:200]
        raise BrokerError(
            f"an answer makes no sense ({error!r} in {told}); are the workers of another version?"
        ) from error


def _authority(found: Found) -> tuple[int, float]:
    time = (found.record or {}).get("time")
    return _rank(found.state), -datetime.fromisoformat(time).timestamp() if time else 0.0


def _weight(job: Mapping[str, Any]) -> int:
    return _rank(str(job.get("state")))


def _rank(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)

"""What this worker knows of jobs: what its history keeps, and what it holds at this moment."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import islice

from runner.adapters.history import History, Kept
from runner.job import JobKey, Json
from runner.worker import Worker

_PATIENCE = 2.0
_REASON_TOLD = 200
_GONE = "this worker does not have it any more, and has not heard how it ended"
_SUMMARY = ("id", "tenant", "name", "pool", "priority", "stack", "attempt", "outcome", "exit_code", "times", "claim")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerKnowledge:
    """Tells about jobs. `worker` gives None until there is one."""

    history: History
    worker: Callable[[], Worker | None]

    async def about(self, key: JobKey) -> dict[str, Json] | None:
        """State, why, record, and which claims have a log here; None when this worker has never heard of the job."""
        await self.history.written(_PATIENCE)
        claims = await self.history.find(key)
        state, why = self._state(key, claims[-1] if claims else None)
        if state is None:
            return None
        record = next((claim.record for claim in reversed(claims) if claim.record is not None), None)
        logs: list[Json] = [{"claim": claim.claim, "bytes": claim.log_bytes} for claim in claims if claim.log_bytes]
        return {"id": key.id, "tenant": key.tenant, "state": state, "why": why, "record": record, "logs": logs}

    async def recent(self, tenant: str | None, state: str | None, most: int) -> list[Json]:
        """What waits here first, then what something was last heard of."""
        await self.history.written(_PATIENCE)
        waiting = (
            [] if state not in (None, "queued") else [key for key in self._waiting() if tenant in (None, key.tenant)]
        )
        jobs: list[Json] = [self._summary(key, None) for key in islice(waiting, most)]
        for claim in await self.history.recent(tenant, state, most):
            record = claim.record or {}
            key = JobKey(tenant=str(record["tenant"]), id=str(record["id"]))
            if key not in waiting:
                jobs.append(self._summary(key, claim))
        return jobs[:most]

    async def log(self, key: JobKey, claim: str | None) -> AsyncIterator[bytes]:
        """The batches that are kept, of one claim of the job or of all of them."""
        await self.history.written(_PATIENCE)
        for kept in await self.history.find(key):
            if claim in (None, kept.claim):
                async for batch in self.history.log(kept.claim):
                    yield batch

    def _state(self, key: JobKey, latest: Kept | None) -> tuple[str | None, str | None]:
        """Where the job is, and why it waits there or is not known any better."""
        waiting = self._waiting()
        if key in waiting:
            return "queued", waiting[key]
        worker = self.worker()
        held = worker.held() if worker is not None else {}
        if any(key == one and (latest is None or claim != latest.claim) for claim, one in held.items()):
            return "queued", None
        if latest is None:
            return None, None
        if latest.state in ("running", "queued") and latest.claim not in held:
            return "gone", _GONE
        return latest.state, None

    def _waiting(self) -> dict[JobKey, str]:
        worker = self.worker()
        return worker.waiting() if worker is not None else {}

    def _summary(self, key: JobKey, latest: Kept | None) -> dict[str, Json]:
        record = latest.record if latest is not None and latest.record is not None else {}
        state, why = self._state(key, latest)
        reason = why or record.get("reason")
        return {
            **{name: record.get(name) for name in _SUMMARY},
            "id": key.id,
            "tenant": key.tenant,
            "state": state,
            "reason": reason[:_REASON_TOLD] if isinstance(reason, str) else None,
            "updated": latest.updated.isoformat() if latest is not None else None,
        }

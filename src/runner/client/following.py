"""What is known of a job that is followed, and for whom it waits. Fed by the client's two queues; no I/O."""

import asyncio
from collections.abc import Callable

from runner.client.feed import Feed
from runner.client.messages import Event, LogBatch, Result, decode_batch, decode_event, decode_result
from runner.errors import BrokerError, RejectedError
from runner.job import EventKind, JobKey

LOG_BUFFER = 8 * 2**20
"""Bytes of a job's log that wait for a reader; of what is beyond that the oldest is dropped."""
EVENT_BUFFER = 2**20
LAST_BATCH = 5.0
"""Seconds after `finished` in which the end of the log may still come: it travels through another queue."""

Alarm = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Following:
    """One job, from its submission to its end, through however many claims. Repeats are dropped."""

    def __init__(self, key: JobKey, alarm: Alarm, *, submitted: bool) -> None:
        self.key = key
        self.batches: Feed[LogBatch] = Feed(LOG_BUFFER)
        self.events: Feed[Event] = Feed(EVENT_BUFFER)
        self._alarm = alarm
        self._late: asyncio.TimerHandle | None = None
        self._submitted = submitted
        self._claimed = False
        self._seen: set[tuple[str, int]] = set()
        self._read: set[int] = set()
        self._logs_over: set[str] = set()
        self._finished: Event | None = None
        self._fault: str | None = None
        self._refusal: str | None = None
        self._known = asyncio.Event()
        self.over = False

    async def result(self) -> Result:
        """How the job ended. Raises `BrokerError`, or `RejectedError` for a duplicate."""
        await self._known.wait()
        if self._refusal is not None:
            raise RejectedError(self._refusal)
        if self._finished is None:
            raise BrokerError(self._fault or "the job is not followed any more")
        return decode_result(self._finished)

    def take_event(self, raw: bytes) -> None:
        """Take in what the queue of events brought."""
        try:
            event = decode_event(raw)
        except BrokerError as error:
            self.fail(str(error))
            return
        if self.over or self._finished or (event.claim, event.seq) in self._seen:
            return
        self._seen.add((event.claim, event.seq))
        self.events.put(event, len(raw))
        if event.kind == EventKind.DUPLICATE:
            self._duplicate()
            return
        self._claimed = True
        if event.finished:
            self._finish(event)

    def take_batch(self, raw: bytes) -> None:
        """Take in what the queue of logs brought."""
        try:
            batch = decode_batch(raw)
        except BrokerError as error:
            self.fail(str(error))
            return
        # The same number may come with other content, from a worker that was restarted.
        if self.over or (digest := hash(raw)) in self._read:
            return
        self._read.add(digest)
        self.batches.put(batch, len(raw))
        if batch.end:
            self._logs_over.add(batch.claim)
            if self._finished and self._finished.claim == batch.claim:
                self.close()

    def fail(self, reason: str) -> None:
        """Nothing more will be heard of the job."""
        if self.over:
            return
        self._fault = reason if self._finished is None else None
        self.events.end(self._fault)
        self.batches.end(reason)
        self._known.set()
        self.close()

    def close(self) -> None:
        """Everything was heard."""
        self.over = True
        self.events.end()
        self.batches.end()
        if self._late is not None:
            self._late.cancel()

    def _duplicate(self) -> None:
        """Our submission is dropped where the worker has that job: then nobody may ever say `finished` again.

        Whoever has heard of a claim since before the submission will hear of its end as well.
        """
        if self._submitted and not self._claimed:
            what = f"a job {self.key} is there already, or ended a short while ago"
            self._refusal = f"id: {what}; submit with another id, or follow that one"
            self._known.set()
            self.close()

    def _finish(self, event: Event) -> None:
        self._finished = event
        self._known.set()
        self.events.end()
        ran = event.body.get("times", {}).get("started") is not None
        if not ran or event.claim in self._logs_over:
            self.close()
        else:
            self._late = self._alarm(LAST_BATCH, self.close)

"""A job that is followed, as its submitter sees it."""

from collections.abc import AsyncIterator, Awaitable, Callable

from runner.client.following import Following
from runner.client.lines import LineReader
from runner.client.messages import Event, LogBatch, Result
from runner.job import Line

Cancel = Callable[[str, str, str], Awaitable[None]]


class SubmittedJob:
    """A job on its way. Each of `logs` (or `batches`) and `events` is for one reader; `result` for any number.

    All raise `BrokerError` when the connection is lost: the job goes on, but nothing more is heard of it here.
    """

    def __init__(self, following: Following, cancel: Cancel) -> None:
        self._following = following
        self._cancel = cancel

    @property
    def tenant(self) -> str:
        """Who it runs for."""
        return self._following.key.tenant

    @property
    def id(self) -> str:
        """Its id, unique for its tenant."""
        return self._following.key.id

    async def logs(self, *, live: bool = False) -> AsyncIterator[Line]:
        """The lines of its log as they come, until the job has ended.

        `live` also shows what is beyond the job's `log_bytes` and may be left out of the log that is kept; then lines
        of the end may be out of order. A line of the stream `sys` tells what is missing.
        """
        reader = LineReader(live=live)
        async for batch in self.batches():
            for line in reader.read(batch):
                yield line

    def batches(self) -> AsyncIterator[LogBatch]:
        """The log in the batches that it came in."""
        return self._following.batches.items()

    def events(self) -> AsyncIterator[Event]:
        """What happens to it, up to `finished`."""
        return self._following.events.items()

    async def result(self) -> Result:
        """How it ended; waits until then, which may be for ever where no worker serves its pool.

        Raises `RejectedError` when it was dropped as a duplicate of another job with its id.
        """
        return await self._following.result()

    async def cancel(self, reason: str = "") -> None:
        """Have it stopped, wherever it is; it has ended when `result` says so."""
        await self._cancel(self.tenant, self.id, reason)

"""Publishes the jobs' logs, on a connection of their own, and rather loses some than holds anything up.

Each job has its own short line of batches, and the lines take turns, so that one job's flood does not delay the others.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import aio_pika

from runner.adapters.amqp.names import Names
from runner.adapters.amqp.publisher import Publisher
from runner.codec import encode_batch, new_id
from runner.errors import BrokerError
from runner.flag import Flag
from runner.job import JobKey
from runner.ports import Batch

_LINE_MOST = 16
"""How many batches (of 64 KiB of text at most) one job may have waiting."""
_UNCONFIRMED_MOST = 16
_AGAIN = 0.2


@dataclass(slots=True)
class _Line:
    """One job's batches, on their way. `unsure` has the numbers of those that are not confirmed, or were lost."""

    waiting: list[Batch] = field(default_factory=list)  # a few: an empty deque takes 600 bytes, of every job
    unconfirmed: int = 0
    lost: bool = False
    last: int = 0
    unsure: set[int] = field(default_factory=set)
    done: Flag = field(default_factory=Flag)
    shorter: Flag = field(default_factory=Flag)

    def check(self) -> None:
        if self.waiting or self.unconfirmed:
            self.done.clear()
        else:
            self.done.set()


@dataclass(slots=True, kw_only=True)
class LogPublisher:
    """The port `LogSink` on RabbitMQ. `run` does the publishing."""

    names: Names
    publisher: Publisher
    dropped: Callable[[int], None]
    _lines: dict[str, _Line] = field(default_factory=dict)
    _turns: dict[str, _Line] = field(default_factory=dict)  # those in which a batch waits, whose turn it is first
    _unconfirmed: int = 0
    _tasks: asyncio.TaskGroup | None = None

    def offer(self, batch: Batch) -> None:
        """Put the batch into its job's line; when that is full, the batch is dropped and its log is incomplete."""
        line = self._lines.get(batch.claim) or self._lines.setdefault(batch.claim, _Line())
        if batch.seq is not None:
            line.last = batch.seq
            line.unsure.add(batch.seq)
        if len(line.waiting) >= _LINE_MOST:
            self._drop(line, batch)
            return
        line.waiting.append(batch)
        self._turns.setdefault(batch.claim, line)
        line.check()
        self._send()

    async def room(self, claim: str) -> None:
        """Return when the claim's line is not full. A writer that outruns the broker waits for it here."""
        line = self._lines.get(claim)
        while line is not None and len(line.waiting) >= _LINE_MOST:
            line.shorter.clear()
            await line.shorter.wait()

    def confirmed(self, claim: str) -> int:
        """The number of the last batch that the broker has with all those before it."""
        line = self._lines.get(claim)
        if line is None:
            return 0
        return min(line.unsure) - 1 if line.unsure else line.last

    async def flush(self, key: JobKey, claim: str, timeout: float) -> bool:  # noqa: ARG002 - the port's
        """Wait until all batches are confirmed. A log that ends without is given up."""
        line = self._lines.get(claim)
        if line is None:
            return True
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                line.check()
                await line.done.wait()
        except TimeoutError:
            for batch in line.waiting:
                self._drop(line, batch)
            line.waiting.clear()
            self._turns.pop(claim, None)
            return False
        return not line.lost

    def forget(self, claim: str) -> None:
        """Nothing more comes for the claim; what is still on its way is given up."""
        line = self._lines.pop(claim, None) or _Line()
        self._turns.pop(claim, None)
        for batch in line.waiting:
            self._drop(line, batch)

    async def run(self) -> None:
        """Publish what is offered, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self._send()
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def _send(self) -> None:
        """Begin to publish what waits, as far as there is room for it on the way."""
        while self._tasks is not None and self._turns and self._unconfirmed < _UNCONFIRMED_MOST:
            line, batch = self._next()
            line.shorter.set()
            line.unconfirmed += 1
            self._unconfirmed += 1
            # Tasks start in the order of their making, so one job's batches are sent in order.
            self._tasks.create_task(self._publish(line, batch))

    def _next(self) -> tuple[_Line, Batch]:
        claim = next(iter(self._turns))
        line = self._turns.pop(claim)
        batch = line.waiting.pop(0)
        if line.waiting:
            self._turns[claim] = line  # behind the others
        return line, batch

    async def _publish(self, line: _Line, batch: Batch) -> None:
        try:
            await self._until_confirmed(line, batch)
        except BaseException:
            self._tasks = None  # it ends all the others, and nothing may be begun among them any more
            raise
        finally:
            line.unconfirmed -= 1
            line.check()
            self._unconfirmed -= 1
            self._send()

    async def _until_confirmed(self, line: _Line, batch: Batch) -> None:
        key = f"{batch.key.tenant}.{batch.key.id}"
        message = aio_pika.Message(encode_batch(batch), content_type="application/json", message_id=new_id())
        route = key if batch.seq is not None else f"{key}.live"
        while True:
            try:
                await self.publisher.publish(self.names.logs, route, message, mandatory=False, timeout=None)
                line.unsure.discard(batch.seq or 0)
            except BrokerError:
                if batch.seq is None or batch.claim not in self._lines:
                    self._drop(line, batch)
                    return
            else:
                return
            await asyncio.sleep(_AGAIN)

    def _drop(self, line: _Line, batch: Batch) -> None:
        if batch.seq is None:
            return  # shown live only; what is left out of the log itself is counted at its end
        line.lost = True
        self.dropped(batch.until_out - batch.out + batch.until_err - batch.err)

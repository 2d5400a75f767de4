"""The dead letters, for an operator: which are meant, and what becomes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from runner.adapters.amqp.connect import connect_once
from runner.adapters.amqp.dead import Fate, Judge, Swept, sweep
from runner.adapters.amqp.letters import Letter
from runner.adapters.amqp.names import Names
from runner.job import Route
from runner.settings import Settings

__all__ = ["Chosen", "Fate", "Letter", "Swept", "go_through"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which letters are meant: those that everything given here is true of. `ids` are of letters or of jobs."""

    ids: frozenset[str] = frozenset()
    code: str | None = None
    reason: str | None = None
    tenant: str | None = None
    older_than: timedelta | None = None

    @property
    def everything(self) -> bool:
        """Whether this says nothing, so that all are meant."""
        return self == Chosen()

    def includes(self, letter: Letter, now: datetime) -> bool:
        """Whether the letter is meant. One that nobody dated is older than anything."""
        if self.ids and not self.ids & {letter.id, letter.job_id}:
            return False
        if self.code not in (None, letter.code) or self.tenant not in (None, letter.tenant):
            return False
        if self.reason is not None and self.reason.casefold() not in letter.reason.casefold():
            return False
        return self.older_than is None or letter.buried is None or letter.buried <= now - self.older_than


async def go_through(
    settings: Settings,
    chosen: Chosen,
    fate: Fate,
    tell: Callable[[Letter], None],
    *,
    now: datetime,
    to: Route | None = None,
) -> Swept:
    """Let that happen to the chosen letters, and keep the others; `tell` hears of each once it has happened.

    `to` is where jobs are replayed to. Raises `BrokerError`; then what was not done yet is as it was.
    """

    def decide(letter: Letter) -> Fate:
        if not chosen.includes(letter, now):
            return Fate.KEEP
        if fate is Fate.KEEP:
            tell(letter)
        return fate

    judge = Judge(decide=decide, done=tell, to=to)
    async with connect_once(settings.amqp.url, "runner:dead") as connection:
        return await sweep(connection, Names(settings.amqp.namespace), judge)

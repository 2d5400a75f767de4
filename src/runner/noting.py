"""Putting on record what the world is to know later, and what no job waits for long."""

import asyncio
import logging
from collections.abc import Awaitable

from runner.errors import JournalError

log = logging.getLogger(__name__)

_NOTED_WITHIN = 5.0
"""Seconds that the journal may take; it goes on writing afterwards."""


async def note(what: str, claim: str, writing: Awaitable[None]) -> None:
    """Put it on record. Where the journal's disk is full or hangs, the job is ended in time all the same."""
    try:
        async with asyncio.timeout(_NOTED_WITHIN):
            await writing
    except (JournalError, TimeoutError) as error:
        fault = str(error) or f"the journal took more than {_NOTED_WITHIN:g} s"
        log.warning("%s was not noted", what, extra={"claim": claim, "fault": fault})

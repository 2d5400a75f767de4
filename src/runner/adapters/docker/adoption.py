"""Going on with a container that an earlier life of the daemon started."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.config import LABEL_BOOT, Site
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.excess import Excess
from runner.adapters.docker.files import JobFolder
from runner.errors import EngineError, EngineGone, NeverStarted
from runner.job import Attempt
from runner.ports import OnOutput

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_PIPE = 64 * 1024
"""What a pipe holds for its reader, see pipe(7)."""
_LONGEST_PAUSE = 5.0
_TRIES = 8
"""How often an answer may be wrong that an engine has just given after its start: some 20 seconds long."""


async def adopt(
    attempt: Attempt,
    *,
    waited: str | None,
    client: EngineClient,
    site: Site,
    folder: JobFolder,
    nonce: bytes,
    on_output: OnOutput,
) -> tuple[DockerContainer, str]:
    """The attempt's container and the name that it has, with all of its output from the beginning.

    One that `waited` is found by that id, whatever its name is by now; where there is none any more, by the name.
    Raises `NeverStarted` when there is no container or no job in it, and `EngineError` when the job is lost for another
    reason. Waits for an engine that does not answer, for as long as it takes.
    """
    found = None if waited is None else await _patiently(lambda: client.inspect(waited))
    if found is None:
        found = await _patiently(lambda: client.inspect(attempt.container_name))
    if found is None:
        raise NeverStarted("its container was gone when the daemon came back")
    if found["Config"]["Labels"].get(LABEL_BOOT) != site.boot:
        raise EngineError("the machine was started anew, and the job ended with it")
    if len(attempt.plan.job.stdin or b"") > _PIPE:
        raise EngineError("the daemon ended while the job had not read all of its input, so that the rest was lost")
    excess = Excess(
        client=client,
        container=str(found["Id"]),
        folder=folder,
        stack=attempt.plan.stack,
        limits=attempt.plan.limits,
        reserve=site.reserve,
    )
    container = DockerContainer(
        client=client,
        container=str(found["Id"]),
        attachment=None,
        folder=folder,
        limits=attempt.plan.limits,
        excess=excess,
        nonce=nonce,
        on_output=on_output,
    )
    began = datetime.fromisoformat(found["State"]["StartedAt"])
    await _patiently(lambda: container.resume(began))
    return container, str(found.get("Name", "")).lstrip("/")


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call until the engine answers it. Answers that are errors are not believed at once."""
    pause, tries = 0.1, 0
    while True:
        try:
            return await call()
        except NeverStarted:
            raise
        except EngineError as error:
            tries += not isinstance(error, EngineGone)
            if tries >= _TRIES:
                raise
            _LOG.warning("a container cannot be adopted yet", extra={"problem": str(error)})
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)

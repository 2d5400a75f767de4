"""A started container in which nothing runs but the init, waiting to be told what to run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.description import describe
from runner.adapters.docker.excess import Excess
from runner.adapters.docker.files import JobFolder, not_made
from runner.errors import StartError
from runner.job import Attempt, Bytes
from runner.ports import OnOutput

GOOD_FOR = timedelta(seconds=55)
"""How long the init may begin with what it was told. Less than its word is awaited for: given up, it must not begin."""


class Sandbox:
    """Nothing about it depends on a job but the stack and the limits, so it can be made before there is one."""

    def __init__(
        self, client: EngineClient, container: str, attachment: Attachment, folder: JobFolder, reserve: Bytes
    ) -> None:
        self.id = container
        self._client = client
        self._attachment = attachment
        self.folder = folder
        self._reserve = reserve

    @property
    def alive(self) -> bool:
        """Whether the init still listens, as far as is known."""
        return not self._attachment.ended

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` if the container ends before it has a job."""
        self._attachment.listen(lambda _stream, _data: None, on_end)

    async def resize(self, resources: Mapping[str, Any]) -> None:
        """Take the limits of the job. Raises `EngineError`."""
        await self._client.update(self.id, resources)

    async def run(self, attempt: Attempt, nonce: bytes, on_output: OnOutput, *, warm: bool) -> DockerContainer:
        """Hand the job over to the init; return when its process was started. Raises `EngineError` or `StartError`."""
        job = attempt.plan.job
        try:
            description = describe(attempt, nonce)
            frame = replace(description, not_after=datetime.now(UTC) + GOOD_FOR).encode()
        except ValueError as error:
            raise StartError(str(error)) from error
        if job.payload is not None:
            try:
                self.folder.write_payload(job.payload)
            except OSError as error:
                raise not_made(error) from error
        excess = Excess(
            client=self._client,
            container=self.id,
            folder=self.folder,
            stack=attempt.plan.stack,
            limits=attempt.plan.limits,
            reserve=self._reserve,
        )
        container = DockerContainer(
            client=self._client,
            container=self.id,
            attachment=self._attachment,
            folder=self.folder,
            limits=attempt.plan.limits,
            excess=excess,
            nonce=nonce,
            on_output=on_output,
            warm=warm,
        )
        self._attachment.send(frame + (job.stdin or b""))
        if not description.leashed:
            self._attachment.end_input()
        await container.begun()
        return container

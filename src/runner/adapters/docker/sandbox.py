"""A started container in which nothing runs but the init, waiting to be told what to run."""

from runner.adapters.docker.attachment import Attachment
from runner.adapters.docker.client import EngineClient
from runner.adapters.docker.container import DockerContainer
from runner.adapters.docker.description import describe
from runner.adapters.docker.files import JobFolder
from runner.errors import StartError
from runner.job import Attempt
from runner.ports import OnOutput


class Sandbox:
    """Nothing about it depends on a job but the stack and the limits, so it can be made before there is one."""

    def __init__(self, client: EngineClient, container: str, attachment: Attachment, folder: JobFolder) -> None:
        self.id = container
        self._client = client
        self._attachment = attachment
        self._folder = folder

    async def run(self, attempt: Attempt, nonce: bytes, on_output: OnOutput) -> DockerContainer:
        """Hand the job over to the init; return when its process was started. Raises `EngineError` or `StartError`."""
        job = attempt.plan.job
        try:
            frame = describe(attempt, nonce).encode()
        except ValueError as error:
            raise StartError(str(error)) from error
        if job.payload is not None:
            self._folder.write_payload(job.payload)
        container = DockerContainer(
            client=self._client,
            container=self.id,
            attachment=self._attachment,
            folder=self._folder,
            limits=attempt.plan.limits,
            nonce=nonce,
            on_output=on_output,
        )
        self._attachment.send(frame + (job.stdin or b""))
        await container.begun()
        return container

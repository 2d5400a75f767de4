"""`runner exec`: one job on this machine, with its settings and stacks, and no broker."""

from runner.adapters.docker.images import open_images
from runner.app.local import Interrupts, Show, open_local
from runner.app.policy import policy_of
from runner.app.stacks import open_catalog
from runner.job import Job, JobResult
from runner.settings import Settings


async def exec_job(settings: Settings, job: Job, show: Show, interrupts: Interrupts) -> JobResult:
    """Run the job as the daemon would; how it ended. Raises `ConfigError` and `EngineError`."""
    async with open_images(settings.engine.url) as images, open_local(settings) as local:
        return await local.run(job, open_catalog(settings, images), policy_of(settings), show, interrupts)

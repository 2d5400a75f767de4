"""A daemon that fills itself from a registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiodocker
import pytest
from tests.e2e.daemon import Site
from tests.e2e.submitter import open_submitter
from tests.integration.image_registry import ImageRegistry, image_registry

pytestmark = [pytest.mark.broker, pytest.mark.engine]


@asynccontextmanager
async def site_registry(site: Site) -> AsyncIterator[ImageRegistry]:
    """A registry; the images of stacks that begin with the site's name are removed at the end."""
    async with image_registry() as registry:
        try:
            yield registry
        finally:
            async with aiodocker.Docker(url=site.engine) as docker:
                for image in await docker.images.list(filters={"reference": [f"runner/{site.ns}-*"]}):
                    for tag in image["RepoTags"]:
                        await docker.images.delete(tag, force=True)


@pytest.mark.slow
async def test_jobs_are_passed_on_until_the_daemon_has_filled_itself(site: Site) -> None:
    stacks = [f"{site.ns}-one", f"{site.ns}-two"]
    async with site_registry(site) as registry, site.daemon(stacks__registry=registry.address) as daemon:
        digest, layer = registry.put(site.ns)
        registry.open.clear()
        for stack in stacks:
            site.write_stack(stack, f'image = "small@{digest}"\nsmoke = ["cat", "/version"]\n')
        await daemon.ready()
        async with open_submitter(site.broker, site.ns) as submitter:
            jobs = [await submitter.submit(["cat", "/version"], stack=stack) for stack in stacks]
            for job in jobs:
                assert "its image is not here yet" in (await job.event("deferred"))["reason"]
            registry.open.set()
            for job in jobs:
                (await job.finished()).ended("succeeded", exit_code=0)
                assert job.text() == site.ns
        assert registry.asked[layer] == 1
        await daemon.stop()

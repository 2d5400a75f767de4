"""Secrets from the operator's folder to the job, and nowhere else."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiodocker
import pytest
from tests.e2e.daemon import Daemon, Site, eventually
from tests.e2e.submitter import Followed, Submitter, open_submitter, sh
from tests.services import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.broker]

STACK = "e2e-secrets"
STACK_FILE = 'secrets = ["token", {name = "registry", shared = true}]\nwarm = 1\nlimits.log_bytes = "2k"\n'
CONFIG = '[tenants.acme]\nsecrets = ["vault"]\n'
VALUES = {
    "acme/token": "0f-acme-hunter22\n",
    "acme/vault": "-----BEGIN KEY-----\nMIIEvgIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n",
    "beta/token": "0f-beta-swordfish",
    "_shared/registry": "0f-everybody-42",
}
LINES = [line for value in VALUES.values() for line in value.splitlines()]


@asynccontextmanager
async def taking(site: Site, engine: Endpoint, image: str) -> AsyncIterator[tuple[Daemon, Submitter]]:
    """A daemon with the secrets and the stack that names them."""
    for name, value in VALUES.items():
        (site.folder / "secrets" / name).parent.mkdir(parents=True, exist_ok=True)
        (site.folder / "secrets" / name).write_text(value)
    site.write_stack(STACK, STACK_FILE)
    async with aiodocker.Docker(url=engine.url) as docker:
        await docker.images.tag(image, repo=f"runner/{STACK}", tag="current")
    async with again(site) as daemon, open_submitter(site.broker, site.ns) as submitter:
        yield daemon, submitter


@asynccontextmanager
async def again(site: Site) -> AsyncIterator[Daemon]:
    """The next life of the daemon."""
    config = site.folder / "runner.toml"
    config.write_text(CONFIG)
    async with site.daemon(
        config=str(config), secrets__dir=str(site.folder / "secrets"), warm__enabled="true"
    ) as daemon:
        await daemon.ready()
        yield daemon


async def waits(daemon: Daemon) -> bool:
    return (await daemon.metrics()).get("runner_warm_containers", 0) > 0


def digest(name: str) -> str:
    return hashlib.sha256(VALUES[name].encode()).hexdigest()


async def all_that_is_known(site: Site, engine: Endpoint, container: str, job: Followed) -> str:
    """All that anybody but the job has of it: the world, this machine's disk, and the engine's records."""
    async with aiodocker.Docker(url=engine.url) as docker:
        inspected: Any = await docker.containers.container(container).show()
    told = json.dumps([job.events, job.batches, job.live, inspected], ensure_ascii=False)
    return told + _files(site)


async def test_a_job_gets_its_tenants_secrets_and_those_of_all(
    site: Site, engine: Endpoint, busybox_image: str
) -> None:
    script = sh('cd "$JOB_SECRETS_DIR" && sha256sum *; cat registry')
    async with taking(site, engine, busybox_image) as (daemon, submitter):
        acme, beta = await asyncio.gather(
            submitter.run(script, stack=STACK),
            submitter.submit(script, stack=STACK, to="default.normal.beta"),
        )
        await beta.finished()
        seen = [{line[66:]: line[:64] for line in job.text().splitlines()[:-1]} for job in (acme, beta)]
        shared = digest("_shared/registry")
        assert seen[0] == {"token": digest("acme/token"), "vault": digest("acme/vault"), "registry": shared}
        assert seen[1] == {"token": digest("beta/token"), "registry": shared}
        assert acme.text().splitlines()[-1] == beta.text().splitlines()[-1] == "*" * 15

        plain = await submitter.run(sh('ls "$JOB_SECRETS_DIR"'))
        assert plain.text() == "vault\n", "a tenant's own come with any stack"

        script = sh("""printf '{"is": "%s", "not": "0f"}' "$(cat /job/secrets/registry)" >/job/output""")
        ended = await submitter.run(script, stack=STACK)
        ended.ended("succeeded", blame="none", exit_code=0, output={"is": "*" * 15, "not": "0f"})

        gamma = await submitter.submit(["true"], stack=STACK, to="default.normal.gamma")
        await gamma.finished()
        reason = "secret token: tenant gamma has none on this worker; put its value in gamma/token beneath secrets.dir"
        gamma.ended("rejected", blame="operator", reason=reason)
        assert gamma.kinds == ["claimed", "rejected", "finished"]
        letter = await submitter.dead_letter()
        assert (letter.headers or {})["x-code"] == "rejected"

        place = site.folder / "secrets/gamma/token"
        place.parent.mkdir()
        place.write_text("new")
        gamma = await submitter.submit(sh("cat /job/secrets/token"), stack=STACK, to="default.normal.gamma")
        await gamma.finished()
        gamma.ended("succeeded", blame="none", exit_code=0)
        await daemon.stop()


TALKS = r"""
cd /job/secrets
slowly() { head -c 7 "$1"; sleep 0.3; tail -c +8 "$1"; }
slowly token; slowly token >&2; cat vault; printf 'end: '; cat registry; echo
printf '{"it is": "%s", "key": "%s"}' "$(cat registry)" "$(head -n 2 vault | tail -n 1)" >/job/output
printf 'at %s' "$(cat token)" >/job/progress
echo told; sleep 2
for i in $(seq 200); do cat token; done
exec sleep 600
"""


async def test_no_secret_is_told_or_kept_anywhere(site: Site, engine: Endpoint, busybox_image: str) -> None:
    async with taking(site, engine, busybox_image) as (daemon, submitter):
        await eventually(lambda: waits(daemon), "a container waits")
        job = await submitter.submit(sh(TALKS), stack=STACK)
        started = await job.event("started")
        assert started["warm"], "a container that knew of no secret serves as well"
        assert (await job.event("progress"))["progress"] == "at " + "*" * 16
        await job.wrote("told\n")
        hidden = [*["*" * len(line) for line in (LINES[0], *LINES[1:5])], "end: " + "*" * 15, "told"]
        assert job.text().splitlines()[:7] == hidden
        assert job.text("err") == "*" * 16 + "\n"
        await job.until(lambda: bool(job.live), "something shown live")
        known = await all_that_is_known(site, engine, started["container"], job)
        await submitter.cancel(job, "enough")
        await job.finished()
        job.ended("cancelled", blame="none", signal=15)
        assert job.result["logs"]["complete"]
        assert job.result["logs"]["stderr_bytes"] == 17
        await daemon.stop()
        known += json.dumps([job.events, job.batches, job.live], ensure_ascii=False) + _files(site)
    assert [line for line in LINES if line in known] == []
    assert "*" * 16 in known


def _files(site: Site) -> str:
    """What the daemon has on the disk: journal, history, log; apart from what the job itself writes to its files."""
    found = [path for path in (*site.folder.glob("*.log"), *site.state_dir.iterdir()) if path.is_file()]
    assert {"journal.db", "history.db"} <= {path.name for path in found}
    return "".join(path.read_bytes().decode(errors="replace") for path in found)


async def test_an_adopted_job_goes_on_without_telling_its_secrets(
    site: Site, engine: Endpoint, busybox_image: str
) -> None:
    flag = "while [ ! -e /work/go ]; do sleep 0.05; done"
    script = sh(f"trap 'touch /work/go' USR1; cd /job/secrets; echo up; cat token; head -c 7 token; {flag}; "
                "tail -c +8 token; cat vault; exit 3")  # fmt: skip
    async with taking(site, engine, busybox_image) as (first, submitter):
        job = await submitter.submit(script, stack=STACK)
        container = (await job.event("started"))["container"]
        await job.wrote("up\n" + "*" * 16 + "\n")
        await first.kill()
        async with again(site) as second:
            async with aiodocker.Docker(url=engine.url) as docker:
                await docker.containers.container(container).kill(signal="USR1")
            await job.finished()
            job.ended("failed", blame="job", exit_code=3)
            hidden = ["*" * len(line) for line in LINES[1:5]]
            assert job.text().splitlines() == ["up", "*" * 16, "*" * 16, *hidden]
            assert job.kinds.count("started") == 1
            assert not any(line in json.dumps([job.events, job.batches]) + _files(site) for line in LINES)
            await second.stop()

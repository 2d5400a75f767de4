"""The way that many people take: a Celery task that calls the Docker SDK. Runs in an environment of its own."""

import os

import celery
import docker

app = celery.Celery("bench", broker=os.environ["BENCH_BROKER"], backend="rpc://")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
_engine = docker.DockerClient(base_url=os.environ["BENCH_ENGINE"])


@app.task
def run(command: list[str]) -> str:
    """What the job wrote; the limits are those of the other subjects."""
    output: bytes = _engine.containers.run(
        os.environ["BENCH_IMAGE"],
        command,
        remove=True,
        network_mode="none",
        mem_limit="320m",
        memswap_limit="320m",
        nano_cpus=500_000_000,
        pids_limit=257,
        user="65534:65534",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={"/tmp": "size=64m", "/work": "size=64m"},
    )
    return output.decode()

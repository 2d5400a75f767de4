"""What the init is told about a job. Pure."""

import resource
from collections.abc import Mapping

from runner.adapters.docker.config import FILES, OPEN_FILES, SECRETS_DIR, WORK, places
from runner.adapters.docker.files import CODE, OUTPUT, PAYLOAD, PROGRESS
from runner.init.wire import Description
from runner.job import OUTPUT_MAX, Attempt

_PAGE = 4096
_RLIMIT_MSGQUEUE = 12
"""See getrlimit(2); Python has no name for it."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def describe(attempt: Attempt, nonce: bytes) -> Description:
    """The attempt's job, as the init runs it."""
    plan = attempt.plan
    return Description(
        nonce=nonce,
        argv=plan.command,
        env=environment(attempt),
        cwd=WORK,
        timeout=plan.limits.timeout,
        rlimits={
            # Bounds its output and its progress. In the other places a file can't get as
            # long: where they are full, the job is told so (ENOSPC), and not killed.
            resource.RLIMIT_FSIZE: max(plan.limits.disk, plan.limits.scratch, OUTPUT_MAX) + _PAGE,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: OPEN_FILES,
            # The kernel counts message queues by user, and all jobs are one: nobody's neighbour may use them up.
            _RLIMIT_MSGQUEUE: 0,
        },
        places=places(plan.limits),
        secrets_folder=SECRETS_DIR,
        secrets=attempt.secrets,
        few_sockets=not plan.stack.all_sockets,
        leashed=not attempt.plan.job.stdin,
    )


def environment(attempt: Attempt) -> Mapping[str, str]:
    """The job's environment; later words win: ours for comfort, the stack's, the job's, ours by contract."""
    job, stack = attempt.plan.job, attempt.plan.stack
    return {"PATH": _PATH, "HOME": WORK} | dict(stack.env) | dict(job.env) | _contract(attempt)


def _contract(attempt: Attempt) -> dict[str, str]:
    job = attempt.plan.job
    named = {
        "JOB_ID": job.key.id,
        "JOB_NAME": job.name or "",
        "JOB_TENANT": job.key.tenant,
        "JOB_ATTEMPT": str(attempt.number),
        "JOB_STACK": attempt.plan.stack.name,
        "JOB_WORKER": attempt.worker,
        "JOB_OUTPUT_FILE": f"{FILES}/{OUTPUT}",
        "JOB_PROGRESS_FILE": f"{FILES}/{PROGRESS}",
    }
    if job.payload is not None:
        named["JOB_PAYLOAD_FILE"] = f"{FILES}/{PAYLOAD}"
    if attempt.secrets:
        named["JOB_SECRETS_DIR"] = SECRETS_DIR
    if job.code is not None:
        named["JOB_CODE_DIR"] = f"{FILES}/{CODE}"
    if job.traceparent is not None:
        named["TRACEPARENT"] = job.traceparent
    return named

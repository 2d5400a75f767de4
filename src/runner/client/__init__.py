"""The Python client: submit jobs, follow them, cancel them. For people: docs/client.md.

::

    async with Client("amqp://user:password@host:5672/") as client:
        job = await client.submit(stack="python-3.11", command=["python", "-c", "print('hi')"], tenant="acme")
        async for line in job.logs():
            print(line.text)
        result = await job.result()
"""

from runner.client.inquiry import Found
from runner.client.jobs import SubmittedJob
from runner.client.messages import Event, LogBatch, Result
from runner.client.session import Client, Submission, check_job
from runner.errors import BrokerError, PublishUncertain, RejectedError
from runner.job import Blame, Line, Outcome, Priority, Stream

__all__ = [
    "Blame",
    "BrokerError",
    "Client",
    "Event",
    "Found",
    "Line",
    "LogBatch",
    "Outcome",
    "Priority",
    "PublishUncertain",
    "RejectedError",
    "Result",
    "Stream",
    "Submission",
    "SubmittedJob",
    "check_job",
]

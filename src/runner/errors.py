"""What can go wrong, named by how one reacts.

::

    RunnerError
    ├── ConfigError        the operator mends a setting or the topology; exit 78
    ├── RejectedError      the submitter mends the job; the message goes to the dead letters
    ├── DeferredError      this worker cannot run the job, another may; it is passed on
    ├── ExpiredError       the job was not started in time; it is over
    ├── EngineError        the container engine failed us; the job is not to blame
    │   ├── EngineGone     the engine does not answer; wait for it
    │   ├── EngineUnfit    the engine can start nothing at all now; the job was not touched, so pass it on
    │   ├── NeverStarted   there is nothing to adopt, and never was; start it
    │   └── ImageMissing   the engine lacks the image; pass the job on
    ├── HostError          this machine lacks something, or refuses it; its operator mends the machine; exit 1
    ├── StartError         the container exists, but the job's process cannot be started
    ├── JournalError       the journal cannot be written: the disk is full or broken
    └── BrokerError        the broker failed us
        └── PublishUncertain   a publish may or may not have arrived; publish again, same id

A job that fails is not an error: it is a value (`runner.job.JobResult`).
"""


class RunnerError(Exception):
    """The root; never raised itself."""


class ConfigError(RunnerError):
    """The configuration or the topology is wrong. `faults` has one sentence for each fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class RejectedError(RunnerError):
    """The job can run nowhere as it is. `operator` is true where an operator has to mend it."""

    def __init__(self, reason: str, *, operator: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.operator = operator


class DeferredError(RunnerError):
    """This worker cannot run the job, but another one may."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExpiredError(RunnerError):
    """The job was to be started by a time that has passed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineError(RunnerError):
    """The engine refused or broke off a call for a reason that is not the job's."""


class EngineGone(EngineError):
    """The engine cannot be reached, or did not answer in time."""


class EngineUnfit(EngineError):
    """The engine can start nothing now, whatever it is: its disk is full, or it is not there."""


class NeverStarted(EngineError):
    """The daemon ended before it had started the job that is to be adopted."""


class ImageMissing(EngineError):
    """The engine no longer has the image that the stack pointed to."""


class HostError(RunnerError):
    """This machine lacks something that was asked for, or does not let us have it."""


class StartError(RunnerError):
    """The engine refused the container's configuration (HTTP 400): the job asks for the impossible."""


class BrokerError(RunnerError):
    """The broker refused or broke off an operation."""


class PublishUncertain(BrokerError):
    """The connection broke before the broker confirmed: the message may have arrived."""


class JournalError(RunnerError):
    """The journal cannot be written or read any more: the disk is full or broken."""

"""What stacks know of an image, whichever engine has it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from runner.errors import RunnerError

Say = Callable[[str], None]
"""Takes a line of progress."""


class BuildError(RunnerError):
    """The stack's operator mends its Dockerfile or its `prepare`."""


class PullError(RunnerError):
    """The registry did not give the image. `final` when asking again would not help."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True, kw_only=True)
class PullLimits:
    """How long a pull may take: as a whole, and without a sign that it goes on."""

    total: timedelta = timedelta(minutes=10)
    idle: timedelta = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that the engine has. `id` is `sha256:…`; `env` is what its Dockerfile set with ENV.

    `content` is a SHA-256 over all of it that a job can notice: unlike the id, it is the same wherever it was built.
    `tags` are all of its names, and `digests` those that it was pulled by.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    content: str = ""
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

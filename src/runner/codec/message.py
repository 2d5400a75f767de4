"""A job's message, field by field."""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from runner.codec.fields import (
    PIDS_MAX,
    SHA256,
    Duration,
    Number,
    Size,
    Span,
    Text,
    Wait,
    address,
    archive,
    at_most,
    environment,
    matching,
    retry_reason,
    sendable,
    stack_name,
)
from runner.codec.ids import ID
from runner.job import (
    InlineCode,
    LinkedCode,
    Network,
)


class Wire(BaseModel):
    """A part of a message, in which every field is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitsMessage(Wire):
    """What the job may use; whatever is left out is the stack's or the operator's default."""

    cpus: Annotated[Number, Field(ge=0.01, description="CPUs, for example 0.5")] | None = None
    memory: Annotated[Size, Field(description="for its processes, at least 6m")] | None = None
    disk: Annotated[Size, Field(description="/work, /tmp and shared memory together; it is RAM")] | None = None
    pids: Annotated[StrictInt, Field(ge=1, le=PIDS_MAX)] | None = None
    scratch: Annotated[Size, Field(description="/scratch on real disk, where the operator allows it")] | None = None
    timeout: Annotated[Span, Field(description="from the start of its process")] | None = None
    grace: Annotated[Duration, Field(description="between SIGTERM and SIGKILL")] | None = None
    log_bytes: Annotated[Size, Field(description="the most log that is kept, both streams together")] | None = None


class RetryMessage(Wire):
    """When the job is started again after it ended badly."""

    max: Annotated[StrictInt, Field(ge=0, le=100)] = 0
    delay: Annotated[Wait, Field(json_schema_extra={"default": "10s"})] = timedelta(seconds=10)
    factor: Annotated[Number, Field(ge=1, le=100)] = 2.0
    max_delay: Annotated[Wait, Field(json_schema_extra={"default": "10m"})] = timedelta(minutes=10)
    on: list[Annotated[StrictStr, AfterValidator(retry_reason)]] = ["failed", "oom_killed", "timed_out"]


class CodeMessage(Wire):
    """A code package, a tar.gz or a zip: either `inline`, or `url` with `sha256`."""

    inline: (
        Annotated[
            bytes,
            PlainValidator(archive),
            WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
            Field(description="the archive itself"),
        ]
        | None
    ) = None
    url: Annotated[StrictStr, AfterValidator(address), Field(description="where it is fetched")] | None = None
    sha256: (
        Annotated[
            StrictStr,
            AfterValidator(partial(matching, SHA256, 64, "the SHA-256 of an archive: 64 of 0-9 and a-f")),
            Field(description="of the archive at url"),
        ]
        | None
    ) = Field(default=None, validate_default=True)

    @field_validator("url")
    @classmethod
    def _one_of_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("inline") is not None:
            raise ValueError("stands beside inline; leave one of them out")
        return value

    @field_validator("sha256")
    @classmethod
    def _beside_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("url") is not None:
            raise ValueError("is required with url: the SHA-256 of the archive, in lower-case hex")
        if value is not None and info.data.get("url", "") is None:
            raise ValueError("belongs to url; leave it out")
        return value

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.inline is None and self.url is None:
            raise ValueError("is empty; name inline, or url with sha256, or leave out code")
        return self

    @property
    def value(self) -> InlineCode | LinkedCode:
        """What the job brings along."""
        if self.inline is not None:
            return InlineCode(archive=self.inline)
        return LinkedCode(url=self.url or "", sha256=self.sha256 or "")


class JobMessage(Wire):
    """A job, as its submitter writes it."""

    id: (
        Annotated[
            StrictStr, AfterValidator(partial(matching, ID, 64, "an id: 1 to 64 letters, digits, dashes, underscores"))
        ]
        | None
    ) = None
    unique: Annotated[Span, AfterValidator(partial(at_most, timedelta(days=7)))] | None = None
    stack: Annotated[StrictStr, AfterValidator(stack_name)]
    command: Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None
    env: Annotated[dict[Text, Text], AfterValidator(environment)] = {}
    payload: Any = None
    code: CodeMessage | None = None
    stdin: Annotated[StrictStr, AfterValidator(sendable)] | None = None
    limits: LimitsMessage = LimitsMessage()
    network: Network | None = None
    retry: RetryMessage = RetryMessage()
    delay: Wait | None = None
    start_within: Duration | None = None
    fence: StrictBool = False
    labels: Annotated[dict[Text, Text], Field(max_length=16)] = {}
    name: Text | None = None


PARTS: Mapping[str, type[Wire]] = {"limits": LimitsMessage, "retry": RetryMessage, "code": CodeMessage}


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job's message."""
    return JobMessage.model_json_schema()

"""What was chosen for a job, for the journal."""

from pydantic import (
    TypeAdapter,
)

from runner.job import (
    Choices,
)

_CHOICES = TypeAdapter(Choices)


def encode_choices(choices: Choices) -> str:
    """For the journal."""
    return _CHOICES.dump_json(choices).decode()


def decode_choices(text: str) -> Choices:
    """From the journal."""
    return _CHOICES.validate_json(text)

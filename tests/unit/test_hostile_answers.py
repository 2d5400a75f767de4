"""JSON that is nested without end is an answer that makes no sense, and no fault of ours."""

import pytest

from runner.client.messages import decode_batch, decode_event
from runner.errors import BrokerError

DEEP = 100_000 * b"["


def test_an_event_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(BrokerError, match="makes no sense"):
        decode_event(DEEP)


def test_a_batch_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(BrokerError, match="makes no sense"):
        decode_batch(DEEP)

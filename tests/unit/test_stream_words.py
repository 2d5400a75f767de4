"""What counts as a cancel and as a claim, and what does not."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.adapters.amqp.cancelled import cancelled_job
from runner.adapters.amqp.claims import decode_claim, encode_claim
from runner.adapters.amqp.memory import UniqueClaim
from runner.job import JobKey

CLAIM = UniqueClaim(
    key=JobKey(tenant="acme", id="Report-1"),
    run="f" * 32,
    worker="w1",
    claim="c1",
    time=datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC),
    span=timedelta(minutes=10),
)


def test_a_cancel_names_tenant_and_job() -> None:
    assert cancelled_job("job.acme.Report-1.cancel") == JobKey(tenant="acme", id="Report-1")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "job.acme.one",
        "job.acme.one.find",
        "job.acme.one.cancel.cancel",
        "task.acme.one.cancel",
        "job.Acme.one.cancel",
        "job..one.cancel",
        "job.acme..cancel",
        f"job.{'a' * 41}.one.cancel",
        f"job.acme.{'a' * 65}.cancel",
        "job.acme.o ne.cancel",
        "job.acme.one\n.cancel",
        "job.*.*.cancel",
    ],
)
def test_other_keys_cancel_nothing(key: str) -> None:
    assert cancelled_job(key) is None


def test_a_claim_comes_back_as_it_went() -> None:
    assert decode_claim(encode_claim(CLAIM).body) == CLAIM


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"tenant": "No Word"},
        {"tenant": None},
        {"id": "with space"},
        {"run": ""},
        {"claim": 7},
        {"time": "yesterday"},
        {"time": "2030-01-01T12:00:00"},
        {"unique": 0},
        {"unique": -1},
        {"unique": True},
        {"unique": "600"},
        {"unique": 7 * 86400 + 1},
        {"unique": float("nan")},
    ],
)
def test_a_malformed_claim_is_refused(change: dict[str, Any]) -> None:
    body = json.loads(encode_claim(CLAIM).body) | change

    with pytest.raises(ValueError):
        decode_claim(json.dumps(body).encode())


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"\xff", b"{", 100_000 * b"[", 100_000 * b'{"v":'])
def test_what_is_no_claim_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_claim(body)

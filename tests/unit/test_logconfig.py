import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from runner.logconfig import bind, configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("runner")
    handlers, levels, loud = root.handlers[:], (root.level, ours.level), logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.raiseExceptions = loud


LOG = logging.getLogger("runner.test")


def line(stream: io.StringIO) -> dict[str, object]:
    (text,) = stream.getvalue().splitlines()
    return dict(json.loads(text))


def test_a_record_is_an_event_with_fields() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    bind(LOG, job_id="a", tenant="acme").warning(
        "job finished", extra={"outcome": "failed", "job_id": "b", "none": None}
    )
    record = line(stream)
    assert datetime.fromisoformat(str(record.pop("ts"))).tzinfo is not None
    assert record == {
        "level": "warning",
        "event": "job finished",
        "logger": "runner.test",
        "job_id": "b",
        "tenant": "acme",
        "outcome": "failed",
    }


def test_bindings_add_up() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    bind(bind(LOG, a=1), b=2).info("x")
    assert line(stream).items() >= {"a": 1, "b": 2}.items()


def test_a_field_never_replaces_the_event_and_an_exception_keeps_the_line_whole() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        int("bad thing")
    except ValueError:
        LOG.exception("it broke", extra={"event": "other", "ts": 0})
    record = line(stream)
    assert record["event"] == "it broke"
    assert record["ts"] != 0
    assert "bad thing" in str(record["trace"])


def test_on_a_terminal_it_is_text_and_a_value_cannot_look_like_two() -> None:
    stream = Terminal()
    configure("info", "auto", stream)
    LOG.info("job started", extra={"job_id": "a", "reason": "two words\nx=1"})
    (text,) = stream.getvalue().splitlines()
    assert text.endswith('INFO    job started  job_id=a reason="two words\\nx=1"')


def test_the_level_holds_for_us_and_libraries_are_quieter() -> None:
    stream = io.StringIO()
    configure("debug", "json", stream)
    LOG.debug("ours")
    logging.getLogger("aio_pika").info("theirs")
    assert line(stream)["event"] == "ours"

    configure("error", "json", stream)
    LOG.warning("not now")
    assert line(stream)["event"] == "ours"

"""The daemon's own log: text on a terminal, JSON otherwise, always on stderr.

A record is an event: the message is a constant sentence in lower case, the facts are fields::

    log = logging.getLogger(__name__)
    log.info("job finished", extra={"job_id": key.id, "outcome": outcome})
    log = bind(log, job_id=key.id)  # the same fields in every record from here on

Never a payload, an environment, a secret, or a message that was put together from values: events are searched by name.
A field must not have the name of an attribute of `logging.LogRecord` (`name`, `args`, `message` …).
"""

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; whatever else it has is a field."""


class _Bound(logging.LoggerAdapter[logging.Logger]):
    """Adds its fields to those of the record; the standard adapter replaces them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def bind(log: Logger, **fields: object) -> Logger:
    """A logger that adds `fields` to each of its records."""
    if isinstance(log, logging.LoggerAdapter):
        return _Bound(log.logger, {**(log.extra or {}), **fields})
    return _Bound(log, fields)


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all records from `level` up to `stream` (stderr), as `style` ("auto", "text" or "json") says."""
    stream = stream or sys.stderr
    text = stream.isatty() if style == "auto" else style == "text"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    # The libraries tell at INFO what concerns nobody but their authors.
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("runner").setLevel(level.upper())
    # Each broken connection is a page of traces there; the link that notices says it in a line.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    # A log that cannot be written must not bring the daemon down, nor fill stderr with traces of itself.
    logging.raiseExceptions = False


class JsonFormatter(logging.Formatter):
    """One object a line: `ts`, `level`, `event`, `logger`, then the fields, and `trace` after an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline at its end."""
        head: dict[str, object] = {
            "ts": _time(record).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        # A field never replaces what stands at the head of the line.
        line = head | {name: value for name, value in _fields(record).items() if name not in head}
        trace = _trace(self, record)
        if trace:
            line["trace"] = trace
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:30:01.123 INFO  job finished  job_id=… outcome=failed`, in the time zone of the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of a trace after an exception."""
        time = _time(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_word(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname:7} {record.getMessage()}{fields and '  ' + fields}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN and value is not None}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None


def _word(value: object) -> str:
    """A value on one line, in quotes where a space or a control character would make it look like two."""
    text = str(value)
    return text if text.isprintable() and text and not set(text) & {" ", '"', "="} else json.dumps(text)

"""Bytes on the wire to values of the domain, and back. The only place that knows the field names of the wire.

Wire format version 1. What comes in is decoded strictly: a message is a whole job or it is `Invalid`, with a reason
that names the field and says what would be right.
"""

from runner.codec.batch import encode_batch
from runner.codec.choices import decode_choices, encode_choices
from runner.codec.event import Notice, encode_event
from runner.codec.ids import ID, WORD, new_id, new_ordered_id
from runner.codec.job import REPLY_TO_MAX, Envelope, decode_job
from runner.codec.line import format_time
from runner.codec.message import JobMessage, job_schema
from runner.codec.route import parse_route, tenant_of
from runner.codec.strict_json import MESSAGE_MAX

__all__ = [
    "ID",
    "MESSAGE_MAX",
    "REPLY_TO_MAX",
    "WORD",
    "Envelope",
    "JobMessage",
    "Notice",
    "decode_choices",
    "decode_job",
    "encode_batch",
    "encode_choices",
    "encode_event",
    "format_time",
    "job_schema",
    "new_id",
    "new_ordered_id",
    "parse_route",
    "tenant_of",
]

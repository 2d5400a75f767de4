"""The names of jobs, and the words that routing keys are made of."""

import re
import secrets
import uuid
from datetime import datetime

WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id() -> str:
    """A random id for a job that came without one."""
    return secrets.token_hex(16)


def new_ordered_id(now: datetime) -> str:
    """A UUID of version 7 (RFC 9562): later ones sort after earlier ones."""
    milliseconds = int(now.timestamp() * 1000) & (1 << 48) - 1
    value = milliseconds << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))

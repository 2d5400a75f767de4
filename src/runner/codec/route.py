"""Routing keys."""

from runner.codec.ids import WORD
from runner.job import (
    Priority,
    Route,
)
from runner.units import quoted


def parse_route(routing_key: str) -> Route:
    """The last three words of a routing key as a route. Raises ValueError that says what is wrong."""
    words = routing_key.split(".")
    if len(words) < 3:  # noqa: PLR2004 - pool, priority, tenant
        raise ValueError(f"routing key {quoted(routing_key)} is not <pool>.<priority>.<tenant>")
    pool, priority, tenant = words[-3:]
    for what, word in (("tenant", tenant), ("pool", pool)):
        if not WORD.fullmatch(word):
            raise ValueError(f"{what} {quoted(word)} is not a word: a-z, 0-9, dashes, underscores, at most 40")
    if priority not in set(Priority):
        raise ValueError(f"priority {quoted(priority)} is none; choose from high, normal, low")
    return Route(pool=pool, priority=Priority(priority), tenant=tenant)


def tenant_of(routing_key: str) -> str | None:
    """The tenant that a routing key names, however wrong the rest of it is."""
    tenant = routing_key.rsplit(".", 1)[-1]
    return tenant if WORD.fullmatch(tenant) else None

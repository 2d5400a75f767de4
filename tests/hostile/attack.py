"""One hostile job: what it does, how it has to end, and what stops it."""

from dataclasses import dataclass, field
from typing import Any

STACK = "hostile"
"""The stack of all attacks: busybox, the programs in `attacks/`, and a setuid copy of them."""
STACKS = {STACK: "", f"{STACK}-terse": 'log_flood = "kill"\nlimits.log_bytes = "64k"\n'}
"""What stands in the stack files that the tables need."""
KEPT_WARM = 2
"""Containers of each stack that wait, where any do."""
_FIXED = ("disk", "log_bytes")
"""Limits that cannot be changed in a container that waits: it was made with those of its stack."""


def attack(*words: str) -> list[str]:
    """The command that runs one of the programs in `attacks/`."""
    return ["attack", *words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A row of the table. `reason` and `out` are regular expressions for all of the reason and of standard output."""

    name: str
    stopped_by: str
    """What a reader of docs/security.md is told."""
    command: list[str]
    stack: str = STACK
    outcome: str = "succeeded"
    reason: str = "exited with code 0"
    blame: str = "none"
    code: int | None = None
    signal: int | None = None
    oom: bool = False
    out: str | None = None
    output: Any = None
    limits: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    within: float = 60.0
    """Seconds that it may run, on a machine that others keep busy: all need a few, or their time-out and grace."""

    @property
    def warm_stack(self) -> str:
        """A stack like its own, whose containers can wait for it."""
        return "-".join([self.stack, *(f"{name}-{self.limits[name]}" for name in _FIXED if name in self.limits)])

    @property
    def warm_stack_file(self) -> str:
        """What stands in the file of that stack."""
        limits = "".join(f'limits.{name} = "{self.limits[name]}"\n' for name in _FIXED if name in self.limits)
        return STACKS[self.stack] + limits


def survived(name: str, *words: str, stopped_by: str, out: str | None = None, **fields: Any) -> Attack:
    """A job that comes to its end by itself, with nothing gained."""
    return Attack(name=name, command=attack(*words), stopped_by=stopped_by, code=0, out=out, **fields)


def failed(name: str, *words: str, stopped_by: str, **fields: Any) -> Attack:
    """A job that ends badly, by its own doing."""
    told = {"outcome": "failed", "blame": "job", **fields}
    return Attack(name=name, command=attack(*words), stopped_by=stopped_by, **told)


def killed_for_memory(name: str, *words: str, stopped_by: str, **fields: Any) -> Attack:
    """A job whose process the kernel kills for its memory."""
    told = {
        "outcome": "oom_killed",
        "blame": "job",
        "signal": 9,
        "oom": True,
        "reason": "a process was killed for using more than 16 MiB of memory, the limit; raise limits.memory",
        **fields,
    }
    return Attack(name=name, command=attack(*words), stopped_by=stopped_by, **told)


def timed_out(name: str, *words: str, stopped_by: str, **fields: Any) -> Attack:
    """A job that does not want to end, and is ended: once it has surely begun with that, and a second later."""
    told = {
        "outcome": "timed_out",
        "blame": "job",
        "signal": 9,
        "reason": "ran for 3s, its time-out; give it more with limits.timeout",
        **fields,
    }
    limits = {"timeout": "3s", "grace": "1s", **told.pop("limits", {})}
    return Attack(name=name, command=attack(*words), stopped_by=stopped_by, limits=limits, **told)

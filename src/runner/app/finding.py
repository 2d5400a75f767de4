"""What a check tells of one thing that it looked at."""

from dataclasses import dataclass
from enum import StrEnum


class Remedy(StrEnum):
    """What kind of thing has to be mended."""

    CONFIG = "config"
    SERVICE = "service"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `detail` says what is there or, where `remedy` is set, what to do."""

    name: str
    detail: str
    remedy: Remedy | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended."""
        return self.remedy is None

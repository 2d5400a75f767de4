"""What the service manager is told (sd_notify(3)). Nothing is sent, and nothing fails, where there is none."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_LOG = logging.getLogger(__name__)
_SEND_TIMEOUT = 1.0


class ServiceManager:
    """Speaks to the socket that `$NOTIFY_SOCKET` names; a leading `@` stands for an abstract one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = _watchdog_seconds(environment)

    def ready(self) -> None:
        """The daemon takes jobs."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The daemon drains, and ends after that."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for people, shown by `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    @asynccontextmanager
    async def watchdog(self) -> AsyncIterator[None]:
        """Say twice in each of the manager's periods that the event loop turns; it alone is what is watched."""
        if self._watchdog_seconds is None:
            yield
            return
        # No task group: it would wrap what goes wrong in the block, which has nothing to do with this.
        feeding = asyncio.create_task(self._feed(self._watchdog_seconds / 2))
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])

    async def _feed(self, pause: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(pause)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(_SEND_TIMEOUT)
                channel.sendto(message.encode(), self._address)
        except OSError as error:
            _LOG.warning("the service manager was not reached", extra={"problem": str(error)})


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The manager's period; None if it does not watch, or watches another process."""
    period = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdecimal() or int(period) == 0 or watched != str(os.getpid()):
        return None
    return int(period) / 1_000_000

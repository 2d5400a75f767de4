"""The hijacked connection to a container's three standard streams."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter

from runner.adapters.docker.connection import Answer
from runner.adapters.docker.frames import FrameParser
from runner.errors import EngineError

READ_BYTES = 16 * 1024
"""What of a container's output is handled at once, before others have their turn.

To look for 256 secrets in it takes half a millisecond; sixty such floods delay nobody by more than a few of those.
"""


class Attachment:
    """Hands the container's output on as it arrives, and takes its input.

    Output is handled where the event loop receives it, without a task; much of it in small parts, and the connection
    is paused until all is handled. Nothing else pauses it: a container whose output is not read stands still. The end
    of the stream says nothing about the container's end.
    """

    def __init__(self, answer: Answer) -> None:
        self._connection = answer.connection
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self._connection.close()
            raise EngineError(f"the engine did not hand over the container's streams (HTTP {answer.status})")
        self._transport = self._connection.transport
        self._frames = FrameParser()
        self._on_data: Callable[[int, bytes], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._ended = False
        self._waiting = bytearray()
        self._broken_off = False
        self._connection.hand_over(self)

    def listen(self, on_data: Callable[[int, bytes], None], on_end: Callable[[], None]) -> None:
        """Call `on_data` with each stream's number and bytes from now on, and `on_end` once. Neither may block."""
        self._on_data, self._on_end = on_data, on_end
        if self._ended:
            on_end()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, nor can be sent."""
        return self._ended

    def send(self, data: bytes) -> None:
        """Give the container input. What it does not read waits in the transport, at no one's cost."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def end_input(self) -> None:
        """Tell the container that there is no more input. May be repeated."""
        if not self._transport.is_closing():
            with suppress(OSError):  # the peer has reset the connection, and the event loop has not noticed yet
                self._transport.write_eof()

    def close(self) -> None:
        """Let go of the connection: input that was not read is dropped, and the stream has ended. May be repeated."""
        self._on_data = None
        self._waiting.clear()
        self._connection.close()
        self.feed_eof()

    def feed_data(self, data: bytes) -> None:
        """Called by the connection with each chunk received, of up to 256 KiB."""
        idle = not self._waiting
        self._waiting += data
        if idle:
            self._handle()
            if self._waiting and not self._transport.is_closing():
                self._transport.pause_reading()

    def feed_eof(self) -> None:
        """Called by the connection when it is gone, for whatever reason."""
        self._broken_off = True
        if not self._waiting:
            self._end()

    def _handle(self) -> None:
        """Hand on a little of what waits; the rest once everybody else has had a turn."""
        part = bytes(self._waiting[:READ_BYTES])
        del self._waiting[:READ_BYTES]
        handled = False
        try:
            # A job that does not buffer makes a frame of each line, and each call costs more than the bytes in it.
            for stream, pieces in groupby(self._frames.feed(part), key=itemgetter(0)):
                data = b"".join(piece for _, piece in pieces)
                if self._on_data is not None:
                    self._on_data(stream, data)
            handled = True
        finally:
            if not handled:
                self.close()  # nobody would go on here; the engine's log has it all
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._handle)
        elif self._broken_off:
            self._end()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._on_end is not None:
                self._on_end()

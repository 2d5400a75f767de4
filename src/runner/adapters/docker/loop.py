"""Loop devices: a file as a block device. Needs no privilege but the right to open the devices (see loop(4))."""

import asyncio
import errno
import fcntl
import os
import struct
from pathlib import Path

_CONTROL = "/dev/loop-control"
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_DIRECT_IO = 16
_BLOCK = 4096
_CONFIG = struct.Struct("=II52xI176x64x")
"""struct loop_config: descriptor, block size, loop_info64 with its flags, reserved."""
_TRIES = 40
_PAUSE = 0.05
_NOT_YET = frozenset({errno.EBUSY, errno.ENOENT, errno.ENXIO, errno.EACCES})
"""Somebody was faster, or the device is so new that its node is still being made."""


class LoopDevice:
    """A device that lasts until it is closed here and mounted nowhere, also when this process is killed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of it; what is mounted stays until it is unmounted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def attach(file: int) -> LoopDevice:
    """A loop device on an open file, which may be closed afterwards. Raises `OSError`."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return _attach(file)
        except OSError as error:
            if error.errno not in _NOT_YET or error.filename == _CONTROL or not tries_left:
                raise
        await asyncio.sleep(_PAUSE)
    raise AssertionError("the last try raises or returns")


def _attach(file: int) -> LoopDevice:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        path = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
    finally:
        os.close(control)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Without the page cache of the file, all that is cached is the job's, and counts as its memory.
        fcntl.ioctl(descriptor, _CONFIGURE, _CONFIG.pack(file, _BLOCK, _AUTOCLEAR | _DIRECT_IO))
    except OSError:
        os.close(descriptor)
        raise
    return LoopDevice(path, descriptor)

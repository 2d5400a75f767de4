"""The values of secrets, as files: `<folder>/<tenant>/<name>`, or `<folder>/_shared/<name>` for what is shared."""

import asyncio
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from runner.errors import DeferredError, RejectedError
from runner.job import SECRET_BYTES_MAX, SECRETS_BYTES_MAX, SECRETS_MAX, SecretRef
from runner.redaction import PATTERNS_MAX, patterns
from runner.units import format_size

SHARED = "_shared"
"""No tenant can be called that."""

_BENEATH = "beneath secrets.dir"
"""Tenants read it, too: where that is on this machine is none of their business."""

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_PASSING = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT})
"""What may be over the next time, or on another machine."""


class FileSecrets:
    """Reads each value when it is asked for, so that a new one counts from the next job on. The port `Secrets`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, tenant: str, secrets: Sequence[SecretRef]) -> Mapping[str, bytes]:
        """The values by name; see `runner.ports.Secrets`."""
        return await asyncio.to_thread(self._read_all, tenant, secrets) if secrets else {}

    def value(self, tenant: str, secret: SecretRef) -> bytes:
        """One value, byte for byte. Raises `RejectedError` and `DeferredError`; waits for the disk."""
        value = self.find(tenant, secret)
        if value is None:
            own, shared = f"{tenant}/{secret.name}", f"{SHARED}/{secret.name}"
            where = f"{own}, or in {shared} for all tenants," if secret.shared else own
            raise _fault(secret.name, f"tenant {tenant} has none on this worker; put its value in {where} {_BENEATH}")
        return value

    def find(self, tenant: str, secret: SecretRef) -> bytes | None:
        """The same; None if there is none."""
        value = self._read(tenant, secret.name)
        return self._read(SHARED, secret.name) if value is None and secret.shared else value

    def _read_all(self, tenant: str, secrets: Sequence[SecretRef]) -> Mapping[str, bytes]:
        if len(secrets) > SECRETS_MAX:
            raise RejectedError(f"secrets: the job would get {len(secrets)}; the most is {SECRETS_MAX}", operator=True)
        values = {secret.name: self.value(tenant, secret) for secret in secrets}
        size, lines = sum(map(len, values.values())), len(patterns(values.values()))
        if size > SECRETS_BYTES_MAX:
            most = format_size(SECRETS_BYTES_MAX)
            raise RejectedError(f"secrets: the job's hold {size} bytes together; the most is {most}", operator=True)
        if lines > PATTERNS_MAX:
            reason = f"the job's have {lines} lines together; no more than {PATTERNS_MAX} can be kept out of its log"
            raise RejectedError(f"secrets: {reason}", operator=True)
        return values

    def _read(self, owner: str, name: str) -> bytes | None:
        """The file's content; None if there is no such file. No link is followed beneath our folder."""
        path = f"{owner}/{name}"
        if any("/" in step or step in ("", ".", "..") for step in (owner, name)):
            raise _fault(name, f"{path} is not {_BENEATH}")
        try:
            return _content(self._folder, owner, name)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _fault(name, f"{path} {error}") from None
        except OSError as error:
            if error.errno in _PASSING:
                raise DeferredError(f"secret {name}: {path} cannot be read: {error.strerror}") from error
            why = "links are not followed" if error.errno in (errno.ELOOP, errno.ENOTDIR) else "let its user read it"
            raise _fault(name, f"{path} cannot be read by this worker ({error.strerror}); {why}") from error


def _content(folder: Path, owner: str, name: str) -> bytes:
    """Raises `OSError`, and `ValueError` for what cannot be a secret."""
    with ExitStack() as opened:
        parent = os.open(folder, _FOLDER)
        opened.callback(os.close, parent)
        parent = os.open(owner, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        opened.callback(os.close, parent)
        file = os.open(name, _FILE, dir_fd=parent)
        opened.callback(os.close, file)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("is not a plain file; put the value in one")
        content = os.read(file, SECRET_BYTES_MAX + 1)
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"holds more than {format_size(SECRET_BYTES_MAX)}, the most that a secret may have")
    return content


def _fault(name: str, what: str) -> RejectedError:
    return RejectedError(f"secret {name}: {what}", operator=True)

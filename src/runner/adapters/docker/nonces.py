"""The words by which the init's records are known in a job's output."""

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from runner.errors import EngineError
from runner.init.wire import NONCE_BYTES

_SECRET_BYTES = 32


class Nonces:
    """Derives each claim's nonce from a secret that outlives the daemon, so that none has to be written down.

    No job can guess it. It is text, because the engine's log keeps nothing else as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, claim: str) -> bytes:
        """The claim's nonce, in this life and in any later one. Raises `EngineError` when the secret is lost."""
        digest = hmac.digest(self._secret, claim.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest)[:NONCE_BYTES]

    @cached_property
    def _secret(self) -> bytes:
        try:
            with suppress(FileExistsError):
                self._make()
            secret = self._path.read_bytes()
        except OSError as error:
            raise EngineError(f"the secret in {self._path} cannot be made or read: {error.strerror}") from error
        if len(secret) != _SECRET_BYTES:
            raise EngineError(f"{self._path} is damaged; remove it while no job runs")
        return secret

    def _make(self) -> None:
        """Put a new secret there, whole or not at all. Raises `FileExistsError` when there is one."""
        if self._path.exists():
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_SECRET_BYTES))
            os.fsync(descriptor)
            os.link(draft, self._path)
        finally:
            os.close(descriptor)
            draft.unlink()

"""Who we are to a registry: the file that `docker login` writes."""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from runner.errors import ConfigError


def registry_auth(path: Path | None, registry: str) -> Mapping[str, str] | None:
    """What the engine is to tell the registry; None to say nothing. Read anew each time, since such words change.

    Raises `ConfigError`, which never quotes the file.
    """
    if path is None:
        return None
    host = registry.partition("/")[0]
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))["auths"][host]
        if token := entry.get("identitytoken"):
            return {"identitytoken": str(token), "serveraddress": host}
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except OSError as error:
        raise ConfigError(f"stacks.registry_auth: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise ConfigError(
            f'stacks.registry_auth: {path} has no "auth" for {host} under "auths"; write it with docker login, without'
            " a helper for credentials"
        ) from None
    if not colon:
        raise ConfigError(f'stacks.registry_auth: {path}: the "auth" for {host} is not a user and a password')
    return {"username": user, "password": password, "serveraddress": host}

"""Whether the secrets that stacks and tenants name are there, for `runner check`."""

import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.adapters.secrets import SHARED, FileSecrets
from runner.errors import ConfigError, DeferredError, RejectedError
from runner.job import SecretRef
from runner.redaction import patterns
from runner.settings import Settings
from runner.stacks.file import FILE, read_stack_file


def look_at_secrets(settings: Settings) -> Iterator[tuple[str, bool]]:
    """What there is to say, a line each, and whether it is something to mend. Reads every value, and shows none."""
    folder, secrets = settings.secrets.dir, FileSecrets(settings.secrets.dir)
    yield _folder(folder)
    for name, wanted in _stacks(settings.stacks.dir):
        tenants = [tenant for tenant in _tenants(settings) if _may_use(settings, tenant, name)]
        look = _Look(secrets=secrets)
        for secret in wanted:
            look.at(secret, tenants)
        yield look.told(f"stack {name}")
    for name, tenant in settings.tenants.items():
        look = _Look(secrets=secrets)
        for secret_name in tenant.secrets:
            look.at(SecretRef(name=secret_name), [name])
        if tenant.secrets:
            yield look.told(f"tenant {name}")


@dataclass(slots=True, kw_only=True)
class _Look:
    """What was seen of the secrets of one stack or tenant."""

    secrets: FileSecrets
    seen: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def at(self, secret: SecretRef, tenants: Collection[str]) -> None:
        """See who has the secret."""
        owners = [SHARED, *tenants] if secret.shared else tenants
        having = {owner for owner in owners if self._has(owner, secret)}
        lacking = [tenant for tenant in tenants if tenant not in having]
        if having:
            word = f"{secret.name} for {', '.join(sorted(having - {SHARED}))}" if having - {SHARED} else secret.name
            self.seen.append(f"{word} and everybody" if SHARED in having else word)
            self.seen += [f"not for {', '.join(lacking)}"] if lacking else []
        elif not self.faults:
            owner = "TENANT" if len(tenants) != 1 else "".join(tenants)
            place = f"{owner}/{secret.name}" + (f", or {SHARED}/{secret.name} for all," if secret.shared else "")
            self.faults.append(f"nobody has {secret.name}; put its value in a file {place} under secrets.dir")

    def told(self, whose: str) -> tuple[str, bool]:
        """A line about all of it."""
        return f"{whose}: {'; '.join(self.faults or self.seen)}", bool(self.faults)

    def _has(self, owner: str, secret: SecretRef) -> bool:
        try:
            value = self.secrets.find(owner, secret)
        except (RejectedError, DeferredError) as error:
            self.faults.append(error.reason)
            return False
        if value is not None and not patterns([value]):
            self.seen.append(f"that of {owner} is too short to be kept out of logs")
        return value is not None


def _folder(folder: Path) -> tuple[str, bool]:
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        return f"secrets.dir: {folder}: {error.strerror}; fine as long as no job is to get any", False
    if mode & stat.S_IRWXO:
        return f"secrets.dir: {folder} is open to every user of this machine; run: chmod o= {folder}", True
    if (path := _open_file(folder)) is not None:
        return f"secrets.dir: {path} is open to every user of this machine; run: chmod -R o= {folder}", True
    return str(folder), False


def _open_file(folder: Path) -> Path | None:
    """A value with a mode that shows it to everybody, should it ever get out of its folder."""
    for path in sorted(folder.glob("*/*")):
        with suppress(OSError):
            if path.lstat().st_mode & stat.S_IRWXO and not path.is_symlink():
                return path
    return None


def _stacks(folder: Path) -> Iterator[tuple[str, tuple[SecretRef, ...]]]:
    """The stacks that name secrets; what is wrong with a stack's file is told elsewhere."""
    for path in sorted(folder.glob(f"*/{FILE}")):
        with suppress(ConfigError):
            named = read_stack_file(path).secrets
            if named:
                yield path.parent.name, tuple(SecretRef(name=one.name, shared=one.shared) for one in named)


def _tenants(settings: Settings) -> list[str]:
    """Those that we know of: from the settings, and by their folders."""
    folder = settings.secrets.dir
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return sorted((found | set(settings.tenants)) - {SHARED})


def _may_use(settings: Settings, tenant: str, stack: str) -> bool:
    named = settings.tenants.get(tenant)
    return named is None or named.stacks is None or stack in named.stacks

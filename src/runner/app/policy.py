"""What the operator of this machine lays down for jobs, from the settings."""

from runner.app.disk import disk_of, total
from runner.job import Bytes
from runner.plan import Policy, Refusal, no_egress
from runner.settings import Settings
from runner.sources import Source, parse_source


def policy_of(settings: Settings, egress: Refusal = no_egress) -> Policy:
    """Defaults, maxima, the machine's size, which tenant may use which stacks, and whose jobs get which secrets."""
    return Policy(
        default=settings.limits.default,
        maximum=settings.limits.max,
        cpus=settings.capacity.cpus,
        memory=settings.capacity.memory,
        tenant_stacks={
            name: frozenset(tenant.stacks) for name, tenant in settings.tenants.items() if tenant.stacks is not None
        },
        tenant_secrets={name: tenant.secrets for name, tenant in settings.tenants.items()},
        egress=egress,
        scratch=Bytes(max(0, total(disk_of(settings.worker.state_dir)) - settings.capacity.disk_free)),
        code=sources_of(settings),
    )


def sources_of(settings: Settings) -> tuple[Source, ...]:
    """The folders that code packages may come from."""
    return tuple(parse_source(folder) for folder in settings.code.allow)

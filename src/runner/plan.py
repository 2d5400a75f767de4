"""From a job and its stack to a plan that can be carried out. Pure."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta

from runner.errors import DeferredError, RejectedError
from runner.job import Bytes, Job, Limits, LimitsRequest, LinkedCode, Network, Plan, SecretRef, Stack
from runner.sources import Source, is_allowed, parse_source
from runner.units import format_duration, format_size, spell_size

MEMORY_MIN = Bytes(6 * 2**20)
"""The engine refuses less."""
CPUS_MIN = 0.01
"""The engine refuses less."""


_NO_SCRATCH = Bytes(0)
SCRATCH_MIN = Bytes(2**20)
"""A file system needs some room for itself."""


_FORGING = frozenset({"NET_RAW", "NET_ADMIN"})
"""Capabilities by which a job could send frames in a neighbour's name, or take its address."""

Refusal = Callable[[Stack], str | None]
"""Why a stack's jobs cannot reach out now; None when they can."""


def no_egress(_: Stack) -> str:
    """What a worker without egress networks says."""
    return "this worker has no egress network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator of this worker lays down: defaults, maxima, and what the machine has to give.

    A maximum of None leaves the matter to the machine's size. `code` has the folders that packages may come from.
    `scratch` is the most of it that the disk could hold.
    """

    default: Limits
    maximum: LimitsRequest
    cpus: float
    memory: Bytes
    tenant_stacks: dict[str, frozenset[str]]
    code: tuple[Source, ...] = ()
    tenant_secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scratch: Bytes = _NO_SCRATCH
    egress: Refusal = no_egress

    def allows(self, tenant: str, stack: str) -> bool:
        """Whether the tenant may use the stack; all stacks unless the operator names some."""
        allowed: Collection[str] | None = self.tenant_stacks.get(tenant)
        return allowed is None or stack in allowed

    def secrets(self, tenant: str, stack: Stack) -> tuple[SecretRef, ...]:
        """What the tenant's jobs of the stack get: the stack's secrets, and those that the tenant gets with any stack.

        One that both name has to be the tenant's own.
        """
        named = {name: SecretRef(name=name) for name in self.tenant_secrets.get(tenant, ())}
        return tuple(({secret.name: secret for secret in stack.secrets} | named).values())


def check_request(job: Job, policy: Policy) -> None:
    """Refuse what no worker of this operator would run, before a stack is looked for.

    Raises `RejectedError` naming the field.
    """
    _check_maxima(job.limits, policy.maximum)
    if isinstance(job.code, LinkedCode):
        _check_source(job.code.url, policy.code)


def _check_source(url: str, folders: Collection[Source]) -> None:
    try:
        source = parse_source(url)
    except ValueError as error:
        raise RejectedError(f"code.url: {error}") from error
    if not is_allowed(source, folders):
        known = f"this operator allows {', '.join(map(str, folders))}" if folders else "this operator allows none"
        raise RejectedError(f"code.url: {source} is not where packages may come from (code.allow); {known}")


def make_plan(job: Job, stack: Stack, policy: Policy) -> Plan:
    """Settle every choice that the job leaves open.

    Raises `RejectedError` naming the field when the job asks for more than the operator allows or the stack's file asks
    for what does not go together, and `DeferredError`
    when only this machine is too small for it, or has no way out for it.
    """
    if not policy.allows(job.route.tenant, stack.name):
        raise RejectedError(f"stack: tenant {job.route.tenant} may not use stack {stack.name}")
    command = job.command if job.command is not None else stack.command
    if not command:
        raise RejectedError(f"command: stack {stack.name} has no command of its own, so the job has to name one")
    limits = limits_of(stack, policy, job.limits)
    _check_machine(limits, policy)
    network = job.network or stack.network
    if network is Network.EGRESS:
        _check_egress(stack, policy)
    secrets = policy.secrets(job.route.tenant, stack)
    return Plan(job=job, stack=stack, command=command, limits=limits, network=network, secrets=secrets)


def _check_egress(stack: Stack, policy: Policy) -> None:
    if forging := [name for name in stack.cap_add if name.removeprefix("CAP_") in _FORGING]:
        raise RejectedError(
            f"network: the stack {stack.name} has {', '.join(forging)} (cap_add), with which a job that reaches out "
            'could forge its address; take it out, or let the job have network "none"',
            operator=True,
        )
    if (why := policy.egress(stack)) is not None:
        raise DeferredError(why)


def limits_of(stack: Stack, policy: Policy, request: LimitsRequest) -> Limits:
    """The limits of a job of that stack which asks for these. Raises `RejectedError` naming the field."""
    limits = request.over(stack.limits.over(policy.default))
    _check_maxima(limits, policy.maximum)
    _check_minima(limits)
    return limits


def _check_maxima(limits: Limits | LimitsRequest, maximum: LimitsRequest) -> None:
    for limit in fields(LimitsRequest):
        top = getattr(maximum, limit.name)
        value = getattr(limits, limit.name)
        if top is not None and value is not None and value > top:
            asked, most = (str(each) if limit.name == "pids" else _show(each) for each in (value, top))
            raise RejectedError(f"limits.{limit.name}: {asked} is over this operator's maximum, {most}")


def _check_minima(limits: Limits) -> None:
    if limits.memory < MEMORY_MIN:
        raise RejectedError(f"limits.memory: {_show(limits.memory)} is too little; ask for {_show(MEMORY_MIN)} or more")
    if limits.cpus < CPUS_MIN:
        raise RejectedError(f"limits.cpus: {limits.cpus} is too little; ask for {CPUS_MIN} or more")
    if 0 < limits.scratch < SCRATCH_MIN:
        least = f"ask for {_show(SCRATCH_MIN)} or more, or for none"
        raise RejectedError(f"limits.scratch: {_show(limits.scratch)} is too little; {least}")


def _check_machine(limits: Limits, policy: Policy) -> None:
    if limits.cpus > policy.cpus:
        raise DeferredError(f"needs {limits.cpus:g} CPUs, this worker has {policy.cpus:g}")
    needed = Bytes(limits.memory + limits.disk)
    if needed > policy.memory:
        raise DeferredError(f"needs {_show(needed)} (memory and disk), this worker has {_show(policy.memory)}")
    if limits.scratch > policy.scratch:
        raise DeferredError(
            f"needs {_show(limits.scratch)} of scratch, this worker's disk holds {_show(policy.scratch)}"
        )


def _show(value: object) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, int):
        # Rounded, two sizes that differ may look the same.
        return format_size(Bytes(value)) if isinstance(spell_size(value), str) else f"{value} bytes"
    return f"{value:g}" if isinstance(value, float) else str(value)

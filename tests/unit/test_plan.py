"""From a job and its stack to what is run, or why it is not."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.fakes import STACK, make_job

from runner.errors import DeferredError, RejectedError
from runner.job import Bytes, Limits, LimitsRequest, Network, SecretRef
from runner.plan import Policy, check_request, make_plan

MIB = 2**20
POLICY = Policy(
    default=Limits(cpus=0.5, timeout=timedelta(minutes=10)),
    maximum=LimitsRequest(timeout=timedelta(hours=1), pids=4096, disk=Bytes(2**30), scratch=Bytes(0)),
    cpus=4,
    memory=Bytes(1024 * MIB),
    tenant_stacks={"poor": frozenset({"busybox"}), "none": frozenset()},
    tenant_secrets={"rich": ("vault", "token")},
)


def test_the_job_is_asked_first_then_the_stack_then_the_operator() -> None:
    stack = replace(STACK, limits=LimitsRequest(cpus=1, pids=7))
    job = make_job(limits=LimitsRequest(cpus=2), command=None)
    plan = make_plan(job, stack, POLICY)
    assert (plan.limits.cpus, plan.limits.pids, plan.limits.timeout) == (2, 7, timedelta(minutes=10))
    assert plan.command == STACK.command


def test_the_jobs_command_is_the_one_that_counts() -> None:
    assert make_plan(make_job(command=("a", "b")), STACK, POLICY).command == ("a", "b")


def test_a_job_and_a_stack_without_a_command() -> None:
    with pytest.raises(RejectedError, match=r"^command: stack busybox has no command of its own"):
        make_plan(make_job(command=None), replace(STACK, command=()), POLICY)


def test_the_jobs_network_is_the_one_that_counts() -> None:
    reaching = replace(STACK, network=Network.EGRESS)
    policy = replace(POLICY, egress=lambda _: None)

    assert make_plan(make_job(), STACK, policy).network is Network.NONE
    assert make_plan(make_job(), reaching, policy).network is Network.EGRESS
    assert make_plan(make_job(network=Network.NONE), reaching, policy).network is Network.NONE
    assert make_plan(make_job(network=Network.EGRESS), STACK, policy).network is Network.EGRESS


@pytest.mark.parametrize("capability", ["NET_RAW", "CAP_NET_ADMIN"])
def test_a_job_that_reaches_out_cannot_forge_its_address(capability: str) -> None:
    stack = replace(STACK, cap_add=("CHOWN", capability))
    policy = replace(POLICY, egress=lambda _: None)

    with pytest.raises(RejectedError, match=rf"^network: the stack busybox has {capability} \(cap_add\)") as rejected:
        make_plan(make_job(network=Network.EGRESS), stack, policy)
    assert rejected.value.operator
    assert make_plan(make_job(), stack, policy).network is Network.NONE
    harmless = replace(STACK, cap_add=("CHOWN",))
    assert make_plan(make_job(network=Network.EGRESS), harmless, policy).network is Network.EGRESS


def test_a_job_that_cannot_reach_out_here_is_passed_on_and_no_other() -> None:
    policy = replace(POLICY, egress=lambda stack: f"{stack.name} cannot reach out")

    with pytest.raises(DeferredError, match="busybox cannot reach out"):
        make_plan(make_job(network=Network.EGRESS), STACK, policy)
    with pytest.raises(DeferredError, match="this worker has no egress network"):
        make_plan(make_job(network=Network.EGRESS), STACK, POLICY)
    assert make_plan(make_job(), STACK, policy).network is Network.NONE


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (LimitsRequest(timeout=timedelta(minutes=61)), "limits.timeout: 61m is over this operator's maximum, 1h"),
        (LimitsRequest(pids=5000), "limits.pids: 5000 is over this operator's maximum, 4096"),
        (LimitsRequest(disk=Bytes(2**31)), "limits.disk: 2 GiB is over this operator's maximum, 1 GiB"),
        (LimitsRequest(scratch=Bytes(1)), "limits.scratch: 1 bytes is over this operator's maximum, 0 bytes"),
    ],
)
def test_more_than_the_operator_allows(limits: LimitsRequest, reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        check_request(make_job(limits=limits), POLICY)
    assert caught.value.reason == reason
    assert not caught.value.operator


def test_what_is_just_allowed_is_allowed() -> None:
    job = make_job(limits=LimitsRequest(timeout=timedelta(hours=1), pids=4096, memory=Bytes(6 * MIB), cpus=0.01))
    check_request(job, POLICY)
    make_plan(job, STACK, POLICY)


def test_a_stack_that_asks_for_too_much_is_refused_as_well() -> None:
    with pytest.raises(RejectedError, match=r"^limits\.pids: 9999"):
        make_plan(make_job(), replace(STACK, limits=LimitsRequest(pids=9999)), POLICY)


@pytest.mark.parametrize(
    ("limits", "field"), [(LimitsRequest(memory=Bytes(6 * MIB - 1)), "memory"), (LimitsRequest(cpus=0.009), "cpus")]
)
def test_less_than_the_engine_takes(limits: LimitsRequest, field: str) -> None:
    with pytest.raises(RejectedError, match=rf"^limits\.{field}: .* is too little"):
        make_plan(make_job(limits=limits), STACK, POLICY)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (LimitsRequest(cpus=4.5), "needs 4.5 CPUs, this worker has 4"),
        (
            LimitsRequest(memory=Bytes(1000 * MIB), disk=Bytes(25 * MIB)),
            "needs 1 GiB (memory and disk), this worker has 1 GiB",
        ),
        (LimitsRequest(memory=Bytes(2**60)), "needs 1048576.1 TiB (memory and disk), this worker has 1 GiB"),
    ],
)
def test_what_only_this_machine_is_too_small_for_is_passed_on(limits: LimitsRequest, reason: str) -> None:
    with pytest.raises(DeferredError) as caught:
        make_plan(make_job(limits=limits), STACK, POLICY)
    assert caught.value.reason.startswith(reason[:8])


def test_a_job_that_fills_the_machine_is_not_too_big() -> None:
    make_plan(make_job(limits=LimitsRequest(cpus=4, memory=Bytes(960 * MIB), disk=Bytes(64 * MIB))), STACK, POLICY)


@pytest.mark.parametrize(
    ("tenant", "stack", "allowed"),
    [("acme", "any", True), ("poor", "busybox", True), ("poor", "python", False), ("none", "busybox", False)],
)
def test_a_tenant_uses_the_stacks_that_it_may(tenant: str, stack: str, *, allowed: bool) -> None:
    job = make_job()
    job = replace(job, route=replace(job.route, tenant=tenant))
    if allowed:
        make_plan(job, replace(STACK, name=stack), POLICY)
        return
    with pytest.raises(RejectedError, match=f"^stack: tenant {tenant} may not use stack {stack}$"):
        make_plan(job, replace(STACK, name=stack), POLICY)


def test_a_job_gets_its_stacks_secrets_and_its_tenants() -> None:
    stack = replace(STACK, secrets=(SecretRef(name="registry", shared=True), SecretRef(name="token", shared=True)))
    registry, token = stack.secrets
    assert make_plan(make_job(), stack, POLICY).secrets == (registry, token)
    assert make_plan(make_job(), STACK, POLICY).secrets == ()
    route = replace(make_job().route, tenant="rich")
    # What the tenant is to have of its own is not taken from what all share.
    own = (SecretRef(name="token"), SecretRef(name="vault"))
    assert set(make_plan(make_job(route=route), stack, POLICY).secrets) == {registry, *own}
    assert set(make_plan(make_job(route=route), STACK, POLICY).secrets) == set(own)


def test_scratch_has_to_fit_the_disk_and_hold_a_file_system() -> None:
    policy = replace(POLICY, maximum=LimitsRequest(scratch=Bytes(2**40)), scratch=Bytes(2**30))
    job = make_job(limits=LimitsRequest(scratch=Bytes(2**30)))
    assert make_plan(job, STACK, policy).limits.scratch == 2**30
    with pytest.raises(DeferredError) as deferred:
        make_plan(make_job(limits=LimitsRequest(scratch=Bytes(2**31))), STACK, policy)
    assert deferred.value.reason == "needs 2 GiB of scratch, this worker's disk holds 1 GiB"
    with pytest.raises(RejectedError) as rejected:
        make_plan(make_job(limits=LimitsRequest(scratch=Bytes(4096))), STACK, policy)
    assert rejected.value.reason == "limits.scratch: 4 KiB is too little; ask for 1 MiB or more, or for none"

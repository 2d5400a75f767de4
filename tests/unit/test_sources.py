"""Where code packages may come from."""

import pytest
from tests.fakes import make_job

from runner.errors import RejectedError
from runner.job import Bytes, InlineCode, Limits, LimitsRequest, LinkedCode
from runner.plan import Policy, check_request
from runner.sources import is_allowed, parse_source

FOLDERS = ("https://a.example/pkg/", "https://b.example:8443/", "file:///srv/code/", "http://127.0.0.1:8000/x/")


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/pkg/x.tgz",
        "https://A.Example:443/pkg/deep/er/x.tgz",
        "https://a.example/pkg/x.tgz?token=1%2F2",
        "https://a.example/pkg/a%20b",
        "https://a.example/%70kg/x",
        "https://b.example:8443/x",
        "file:///srv/code/x.zip",
        "http://127.0.0.1:8000/x/y",
    ],
)
def test_what_is_under_a_folder_is_allowed(url: str) -> None:
    assert is_allowed(parse_source(url), [parse_source(folder) for folder in FOLDERS])


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/pkg",
        "https://a.example/pkgs/x",
        "https://a.example/x",
        "https://a.example:444/pkg/x",
        "https://a.example.evil.example/pkg/x",
        "https://a.example./pkg/x",
        "https://b.example/x",
        "http://127.0.0.1/x/y",
        "https://127.0.0.1:8000/x/y",
        "file:///srv/code-of-others/x",
        "file:///etc/passwd",
    ],
)
def test_what_is_not_is_not(url: str) -> None:
    assert not is_allowed(parse_source(url), [parse_source(folder) for folder in FOLDERS])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "plain ASCII"),
        ("https://a.example/a b", "plain ASCII"),
        ("https://a.example/pkg/\n", "plain ASCII"),
        ("https://ä.example/pkg/", "plain ASCII"),
        ("https://a.example\\@evil.example/pkg/x", "plain ASCII"),
        ("https://a.example@evil.example/pkg/x", "has a user in it"),
        ("https://user:word@a.example/pkg/x", "has a user in it"),
        ("https://a.example/pkg/x#y", "has a fragment"),
        ("https://a.example/pkg/x#", "has a fragment"),
        ("https://a.example:99999/pkg/x", "is not an address"),
        ("https://a.example:0/pkg/x", "is neither"),
        ("https://[::1/pkg/x", "is not an address"),
        ("https:///pkg/x", "is neither"),
        ("ftp://a.example/pkg/x", "is neither"),
        ("a.example/pkg/x", "is neither"),
        ("http://a.example/pkg/x", "in the clear"),
        ("http://10.0.0.1/pkg/x", "in the clear"),
        ("http://localhost/pkg/x", "in the clear"),
        ("file://host/srv/code/x", "is not a file"),
        ("file:///srv/code/x?y", "is not a file"),
        ("https://a.example", "has no plain path"),
        ("https://a.example/pkg/../x", "has no plain path"),
        ("https://a.example/pkg/./x", "has no plain path"),
        ("https://a.example/pkg/%2e%2E/x", "has no plain path"),
        ("https://a.example/pkg/..%2fx", "has no plain path"),
        ("https://a.example/pkg%2fx", "encoded slash"),
        ("https://a.example/pkg/%252e%252e/x", "percent sign"),
        ("https://a.example/pkg/%5c..%5cx", "backslash"),
        ("https://a.example/pkg/%00", "control character"),
        ("https://a.example/pkg/%ff", "not UTF-8"),
    ],
)
def test_an_address_that_two_might_read_differently_is_none(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_source(url)


def test_an_address_is_shown_without_its_query() -> None:
    assert str(parse_source("https://A.example:443/pkg/x?token=secret")) == "https://a.example/pkg/x"
    assert str(parse_source("https://[2001:DB8::1]:8443/x/")) == "https://[2001:db8::1]:8443/x/"
    assert str(parse_source("file:///srv/code/x")) == "file:///srv/code/x"


def policy(*folders: str) -> Policy:
    code = tuple(parse_source(folder) for folder in folders)
    return Policy(default=Limits(), maximum=LimitsRequest(), cpus=1, memory=Bytes(2**30), tenant_stacks={}, code=code)


def test_a_job_brings_its_code_from_where_the_operator_allows_it() -> None:
    job = make_job(code=LinkedCode(url="https://a.example/pkg/x?token=secret", sha256="0" * 64))
    check_request(job, policy(*FOLDERS))
    with pytest.raises(RejectedError) as refusal:
        check_request(job, policy("file:///srv/code/"))
    assert refusal.value.reason == (
        "code.url: https://a.example/pkg/x is not where packages may come from (code.allow); "
        "this operator allows file:///srv/code/"
    )
    with pytest.raises(RejectedError, match="allows none"):
        check_request(job, policy())


def test_a_package_in_the_message_comes_from_nowhere() -> None:
    check_request(make_job(code=InlineCode(archive=b"x")), policy())

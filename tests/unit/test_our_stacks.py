"""The stacks that we ship: each can be read, tested and built from a base that we make."""

from collections import Counter

import pytest
from scripts.bases import named_base
from scripts.stacks import STACKS, all_stacks

from runner.stacks.file import is_stack_name, read_stack_file


@pytest.mark.parametrize("name", all_stacks())
def test_each_says_what_it_is_and_how_it_is_tested(name: str) -> None:
    assert is_stack_name(name)
    file = read_stack_file(STACKS / name / "stack.toml")
    assert file.description
    assert file.command
    assert file.smoke
    assert file.numeric_user != (0, 0)


@pytest.mark.parametrize("name", all_stacks())
def test_each_stands_on_a_base_and_names_the_public_one_for_it(name: str) -> None:
    lines = (STACKS / name / "Dockerfile").read_text().splitlines()
    froms = [line for line in lines if line.startswith("FROM ")]
    if froms == ["FROM scratch"]:
        assert (STACKS / name / "prepare").exists()
        assert any(line.startswith("# From a public base image instead: FROM ") for line in lines)
        return
    release = named_base("\n".join(lines))
    assert release in {"bookworm", "trixie"}
    assert froms == [f"FROM runner-base/{release}"]
    assert f"# From a public base image instead: FROM debian:{release}-slim" in lines


def test_there_are_more_than_ten_and_several_languages_in_two_versions() -> None:
    languages = Counter(name.partition("-")[0] for name in all_stacks())
    assert len(languages) > 10
    assert {language for language, versions in languages.items() if versions > 1} >= {"python", "ruby", "node"}

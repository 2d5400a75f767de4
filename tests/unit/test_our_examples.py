"""The examples that we ship: each is a job that workers take, for a stack that we have."""

import pytest
from scripts.examples import Example, Shown, all_examples
from scripts.stacks import all_stacks

from runner.client import check_job

EXAMPLES = all_examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_each_is_a_job_for_a_stack_that_we_have(example: Example) -> None:
    check_job(example.job)
    assert example.job["stack"] in all_stacks()
    assert example.job["name"] == example.name
    assert any((example.folder / "code").iterdir())


def test_every_language_has_one_and_the_readme_names_it() -> None:
    languages = {name.partition("-")[0] for name in all_stacks()} - {"busybox"}
    assert {str(example.job["stack"]).partition("-")[0] for example in EXAMPLES} == languages
    readme = (EXAMPLES[0].folder.parent / "README.md").read_text()
    assert [example.name for example in EXAMPLES if f"| `{example.name}` |" not in readme] == []


@pytest.mark.parametrize(
    ("outcome", "output", "right", "told"),
    [
        ("succeeded", {"n": 1}, True, "as expected"),
        ("succeeded", {"n": 2}, False, "not what was expected"),
        ("succeeded", None, False, "not what was expected"),
        ("failed", {"n": 1}, False, "exited with code 3"),
    ],
)
def test_only_the_right_output_of_a_job_that_succeeded_is_right(
    outcome: str, output: object, told: str, *, right: bool
) -> None:
    example = Example(name="count", job={"stack": "busybox"}, expected={"n": 1})
    finished = {"outcome": outcome, "output": output, "reason": "exited with code 3", "seconds": {"run": 1.5}}
    shown = Shown(example=example, finished=finished, lines=())
    assert shown.right is right
    assert shown.row == ("count", "busybox", outcome, "-", "1.50 s", told)

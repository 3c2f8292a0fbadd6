"""Checks that a conftest or an installed package brings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_transformer_validate import validate

DOCUMENT = Path(__file__).parents[2] / "docs" / "own-checks.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
CONFTEST, MODEL = (text for kind, text in BLOCKS if kind == "python")
COMMAND = next(text for kind, text in BLOCKS if kind == "console")
OUTPUT = next(text for kind, text in BLOCKS if kind == "text")
HEALTHY = MODEL.replace("std=10.0", "std=0.02")
ONLY = ("--tb-model=model.py", "-k", "calm_start")


@pytest.fixture
def example(pytester: pytest.Pytester) -> pytest.Pytester:
    """The example of the document, beside the bundled checks."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(model=MODEL)
    pytester.makeini("[pytest]\nstrict = true\n")
    return pytester


def test_the_document_shows_what_happens(example: pytest.Pytester) -> None:
    program, *arguments = COMMAND.split()
    assert program == "pytest"
    result = example.runpytest_inprocess(*arguments)
    result.assert_outcomes(failed=2)
    for line in OUTPUT.splitlines():
        assert line in result.stdout.str()


def test_a_model_that_is_as_it_should_be(example: pytest.Pytester) -> None:
    example.makepyfile(model=HEALTHY)
    example.runpytest_inprocess(*ONLY).assert_outcomes(passed=2)


def test_it_stands_among_the_bundled_ones(example: pytest.Pytester) -> None:
    lines = example.runpytest_inprocess("--tb-model=model.py", "--co", "-q").outlines
    ids = [line for line in lines if "::tier1::" in line]
    assert "model.py::tier1::load" in ids
    own = ["model.py::tier1::calm_start[short]", "model.py::tier1::calm_start[long]"]
    assert ids[-2:] == own


def test_one_case_by_its_id(example: pytest.Pytester) -> None:
    id = "model.py::tier1::calm_start[long]"
    example.runpytest_inprocess("--tb-model=model.py", id).assert_outcomes(failed=1)


def test_a_limit_from_the_ini_file(example: pytest.Pytester) -> None:
    example.makeini("[pytest]\ntb_limits = calm_start.most = 1\n")
    example.runpytest_inprocess(*ONLY).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("calm_start.least = 1", "*calm_start has no limit 'least'*known are most*"),
        ("calm_start.most = much", "*the limit must be a number*"),
        ("calm_star.most = 1", "*unknown check 'calm_star'*did you mean calm_start?"),
    ],
)
def test_a_wrong_limit_is_exit_4(example: pytest.Pytester, line: str, words: str) -> None:
    example.makeini(f"[pytest]\ntb_limits = {line}\n")
    result = example.runpytest_inprocess(*ONLY)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_another_task_is_a_skip(example: pytest.Pytester) -> None:
    result = example.runpytest_inprocess(*ONLY, "--tb-task=masked_lm", "-rs")
    result.assert_outcomes(skipped=2)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED  # nothing was judged
    result.stdout.fnmatch_lines(["*calm_start promises nothing about task masked_lm*"])


def test_what_does_not_apply_is_a_skip(example: pytest.Pytester) -> None:
    example.makeconftest(CONFTEST.replace('startswith("loaded")', 'startswith("random")'))
    result = example.runpytest_inprocess(*ONLY, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*the weights were loaded: some tokens should be more likely*"])


def test_a_declared_deviation(example: pytest.Pytester) -> None:
    example.makeini("[pytest]\ntb_expect_fail = calm_start: a loud head, on purpose\n")
    example.runpytest_inprocess(*ONLY).assert_outcomes(xfailed=2)
    example.makepyfile(model=HEALTHY)
    result = example.runpytest_inprocess(*ONLY)
    result.stdout.fnmatch_lines(["*remove this line: 'calm_start'*"])


def test_the_record_holds_its_numbers(example: pytest.Pytester) -> None:
    example.runpytest_inprocess(*ONLY, "--tb-json=out.json")
    found = json.loads((example.path / "out.json").read_text())
    records = {record["case"]: record for record in found["records"]}
    assert set(records) == {"short", "long"}
    assert records["short"]["check"] == "calm_start"
    assert records["short"]["where"] == "head"
    assert records["short"]["numbers"]["value"] > 0.5
    assert records["short"]["numbers"]["limit"] == {"value": 0.5, "rule": "half of all"}


def test_what_it_raises_is_broken(example: pytest.Pytester) -> None:
    example.makeconftest(CONFTEST.replace("largest = float(", "largest = 1 / 0 * float("))
    result = example.runpytest_inprocess(*ONLY)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*calm_start?short? (tier 1): the check raised*"])
    result.stdout.fnmatch_lines(["*ZeroDivisionError*"])


def test_a_name_that_is_taken_is_exit_4(example: pytest.Pytester) -> None:
    taken = "\n\n@check(tier=1)\ndef load(probe):\n    'Mine.'\n"
    example.makeconftest(CONFTEST + taken)
    result = example.runpytest_inprocess(*ONLY)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "a check called 'load' is registered already" in str(result.stderr) + str(result.stdout)


def test_on_workers(example: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = example.runpytest_subprocess(*ONLY, "-n", "2")
    result.assert_outcomes(failed=2)


@pytest.fixture
def package(pytester: pytest.Pytester) -> pytest.Pytester:
    """The same check in an installed package."""
    pytester.makepyfile(my_checks=CONFTEST, model=MODEL)
    information = pytester.mkdir("my_checks-1.0.dist-info")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-checks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[pytest_transformer_validate.checks]\nmy_checks = my_checks\n"
    )
    pytester.syspathinsert()
    return pytester


def test_an_installed_package(package: pytest.Pytester) -> None:
    result = package.runpytest_inprocess(*ONLY)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["calm_start?short? (tier 1): no token may*"])


def test_an_installed_package_is_not_imported_without_a_model(package: pytest.Pytester) -> None:
    (package.path / "my_checks.py").write_text("raise RuntimeError('imported')\n")
    package.makepyfile(test_other="def test_one(): pass\n")
    package.runpytest_subprocess("test_other.py").assert_outcomes(passed=1)


def test_without_pytest(package: pytest.Pytester) -> None:
    result = validate(package.path / "model.py", checks=["calm_start"])
    assert [record.name for record in result.failures] == ["calm_start[short]", "calm_start[long]"]

"""Every folder of conftest_examples is run as its readers run it, and listed."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from pytest_transformer_validate import validate
from pytest_transformer_validate.checks import registry

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "conftest_examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
FEW = "load or causality or determinism"

# By folder: arguments, and what has to come of them.
RUNS = {
    "override_model": (["-k", f"{FEW} or served or weights"], {"passed": 4}),
    "several_models": (["-k", FEW], {"passed": 9}),
    "own_check": (["-k", f"{FEW} or small_tables"], {"passed": 4}),
    "expected_failures": (
        ["-k", f"{FEW} or right or mask"],
        {"passed": 2, "skipped": 1, "xfailed": 3},
    ),
    "own_tests": (["-k", f"{FEW} or test_model"], {"passed": 7}),
    "hugging_face": (["-k", FEW], {"passed": 3}),
    "vision": (["-k", f"{FEW} or image"], {"passed": 3, "skipped": 1}),
    "matrix": (["heads4-pre", "heads2-post", "-k", FEW], {"passed": 6}),
}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what a run imports late: pytester forgets modules, and torch bears it only once."""
    for name in ("session", "start", "fixtures"):
        importlib.import_module(f"pytest_transformer_validate.{name}")
    path = tmp_path_factory.mktemp("warm") / "model.py"
    shutil.copy(EXAMPLES / "own_tests" / "model.py", path)
    str(validate(path, checks=["load", "causality"]))


@pytest.fixture
def example(
    request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A copy of the folder, as the current one; checks that it registers are gone afterwards."""
    registry.all_checks()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    folder = EXAMPLES / request.param
    shutil.copytree(
        folder, pytester.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    return pytester


@pytest.mark.parametrize(("example", "name"), [(n, n) for n in RUNS], indirect=["example"])
def test_it_runs(example: pytest.Pytester, name: str) -> None:
    if name == "hugging_face":
        importlib.import_module("transformers.models.llama.modeling_llama")
    args, outcomes = RUNS[name]
    result = example.runpytest_inprocess(*args, "-p", "no:randomly")
    counted = result.parseoutcomes()
    counted.pop("deselected", None)
    assert counted == outcomes
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("example", ["own_check"], indirect=True)
def test_the_limit_of_the_own_check_is_that_of_the_ini_file(example: pytest.Pytester) -> None:
    tight = "-o=tb_limits=small_tables.most = 0.01"
    result = example.runpytest_inprocess("-k", "small_tables", tight)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*small_tables (tier 1): most parameters should be in the*"])


@pytest.mark.parametrize("example", ["expected_failures"], indirect=True)
def test_the_deviations_are_there(example: pytest.Pytester) -> None:
    result = example.runpytest_inprocess("-k", "causality or right or mask", "--runxfail")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=3, skipped=1)


@pytest.mark.parametrize("example", ["several_models"], indirect=True)
def test_every_model_has_its_own_record(example: pytest.Pytester) -> None:
    example.runpytest_inprocess("-k", "load", "--tb-json=out.json")
    models = json.loads((example.path / "out.json").read_text(encoding="utf-8"))["models"]
    sizes = {model["id"]: model["context"]["parameters"] for model in models}
    assert list(sizes) == ["model.py", "wide", "deep"]
    assert sizes["model.py"] < sizes["deep"] < sizes["wide"]


def test_every_folder_is_run() -> None:
    assert sorted(RUNS) == FOLDERS


@pytest.mark.parametrize("page", [EXAMPLES / "README.md", ROOT / "docs" / "conftest-examples.md"])
def test_every_folder_is_listed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"\]\((?:\.\./conftest_examples/)?(\w+)\)", text))) == FOLDERS

"""--tb-baseline: a run is held against an older one."""

from __future__ import annotations

import json
from typing import Any

import pytest

MODEL = "--tb-model=model.py"
BASELINE = "--tb-baseline=old.json"


@pytest.fixture
def old(healthy: pytest.Pytester) -> pytest.Pytester:
    """A project of which nothing fails, and the file of such a run."""
    assert healthy.runpytest_inprocess(MODEL, "--tb-json=old.json").ret == pytest.ExitCode.OK
    return healthy


def edit(project: pytest.Pytester, before: str, after: str, name: str = "conftest.py") -> None:
    path = project.path / name
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["serial", "two workers"])
def test_a_verdict_that_got_worse_fails_the_run(old: pytest.Pytester, workers: list[str]) -> None:
    args = (MODEL, BASELINE, "--tb-json=new.json", *workers)
    assert old.runpytest_subprocess(*args).ret == pytest.ExitCode.OK
    sound = 'return Measurement(value=0.25, limit=Limit(value=floor, rule="16 u"))'
    edit(old, sound, 'raise NotApplicable("no longer")')
    edit(old, "Linear(8, 32)", "Linear(8, 32, bias=False)", "model.py")
    result = old.runpytest_subprocess(*args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "baseline old.json: 1 thing got worse",
            "  model.py::tier1::sound: skipped, was passed",
            "  changed since: model.py: parameters 544 -> 512",
        ]
    )
    data = json.loads((old.path / "new.json").read_text(encoding="utf-8"))
    assert data["run"]["exit"] == pytest.ExitCode.TESTS_FAILED
    assert data["run"]["workers"] == (2 if workers else 0)


def test_a_declared_budget_is_held(old: pytest.Pytester) -> None:
    edit(old, "value=0.25", "value=0.75")
    assert old.runpytest_inprocess(MODEL, BASELINE).ret == pytest.ExitCode.OK
    limits = ["-o=tb_limits=sound.value_growth = 2"]
    result = old.runpytest_inprocess(MODEL, BASELINE, *limits)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*sound: value 0.75, was 0.25: 3 times (limit 2 = sound.value_growth)"]
    )
    limits = ["-o=tb_limits=sound.value_growth = 3"]
    assert old.runpytest_inprocess(MODEL, BASELINE, *limits).ret == pytest.ExitCode.OK


def test_it_is_an_ini_key_and_says_what_it_could_not_compare(old: pytest.Pytester) -> None:
    ini = "tb_baseline = old.json\ntb_limits = sound.noise_growth = 2\n"
    old.makeini(f"[pytest]\nstrict = true\n{ini}")
    result = old.runpytest_inprocess(MODEL, "-k", "sound")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "baseline old.json: *sound.noise_growth was not held: the baseline does not have *",
            "baseline old.json: 4 checks of it did not run here, the first model.py::tier1::*",
        ]
    )


def test_nothing_is_compared_where_nothing_ran(old: pytest.Pytester) -> None:
    result = old.runpytest_inprocess(MODEL, BASELINE, "--co", "-q")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("baseline*")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 9}, "*--tb-baseline: *old.json has schema_version 9*"),
        ({"records": 3}, "*--tb-baseline: *old.json was not written by --tb-json*"),
    ],
)
def test_a_wrong_file_is_a_usage_error(
    old: pytest.Pytester, change: dict[str, Any], words: str
) -> None:
    path = old.path / "old.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    result = old.runpytest_inprocess(MODEL, BASELINE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])

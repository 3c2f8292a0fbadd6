"""On GitHub Actions: a summary of the step, annotations at the model's own line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "--tb-model=model.py"


@pytest.fixture
def page(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the step's summary, to which an earlier command of the step has written."""
    page = project.path / "summary.md"
    page.write_text("# Before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path))
    return page


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["serial", "two workers"])
def test_the_summary_has_failures_first(
    project: pytest.Pytester, page: Path, workers: tuple[str, ...]
) -> None:
    text = (project.path / "conftest.py").read_text()
    failing = 'if case == "bad"'
    (project.path / "conftest.py").write_text(
        text.replace(failing, f"{failing} and probe.subject.parameters == 544")
    )
    model = (project.path / "model.py").read_text()
    (project.path / "a.py").write_text(model.replace("8, 32)", "8, 32, bias=False)"))
    result = project.runpytest_subprocess("--tb-model=a.py", MODEL, *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[:6] == [
        "# Before",
        "## Transformer validation",
        "",
        "| Model | Tier 1 | Tier 2 |",
        "| --- | --- | --- |",
        r"| model\.py | **1 failed**, 3 passed | 1 skipped |",
    ]
    assert lines[6] == r"| a\.py | 4 passed | 1 skipped |"
    assert r"<details><summary>model\.py\: cased\[bad\] failed</summary>" in lines
    assert "cased[bad] (tier 1): two must be one" in lines
    commands = [line for line in result.outlines if line.startswith("::")]
    (command,) = commands
    assert command.startswith(
        "::error file=model.py,line=3,title=model.py%3A cased[bad] (tier 1)::"
        "cased[bad] (tier 1): two must be one%0A  given 2%0A  again: pytest"
    )


def test_a_model_that_does_not_load_has_its_file(project: pytest.Pytester, page: Path) -> None:
    (project.path / "model.py").write_text("raise RuntimeError('100%\\nof it, broken')\n")
    result = project.runpytest_inprocess(MODEL, "-k", "load", "-q")
    (command,) = (line for line in result.outlines if line.startswith("::"))
    assert command.startswith("::error file=model.py,line=1,title=model.py%3A load (tier 1)::")
    assert "RuntimeError: 100%25%0A" in command
    assert "not loaded" in page.read_text(encoding="utf-8")


def test_a_model_elsewhere_has_no_file(
    project: pytest.Pytester, page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path / "elsewhere"))
    result = project.runpytest_inprocess(MODEL)
    (command,) = (line for line in result.outlines if line.startswith("::"))
    assert command.startswith("::error title=model.py%3A cased[bad] (tier 1)::")


def test_a_worse_verdict_is_in_the_summary(healthy: pytest.Pytester, page: Path) -> None:
    healthy.runpytest_inprocess(MODEL, "--tb-json=old.json")
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("if False", 'if case == "bad"'))
    healthy.runpytest_inprocess(MODEL, "--tb-baseline=old.json")
    shown = page.read_text(encoding="utf-8").replace("\\", "")
    assert "model.py::tier1::cased[bad]: failed, was passed" in shown


def test_a_summary_that_cannot_be_written_leaves_the_verdict(
    project: pytest.Pytester, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "no" / "such.md"))
    result = project.runpytest_inprocess(MODEL)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY: the file could not be written: *"])


def test_a_run_without_models_writes_nothing(project: pytest.Pytester, page: Path) -> None:
    project.makepyfile(test_own="def test_own(): assert False")
    result = project.runpytest_inprocess()
    assert page.read_text(encoding="utf-8") == "# Before\n"
    assert not [line for line in result.outlines if line.startswith("::")]


def test_what_a_model_prints_is_no_command(project: pytest.Pytester, page: Path) -> None:
    (project.path / "model.py").write_text(
        "print('::error file=model.py::of the model')\nraise RuntimeError('::add-mask::all')\n"
    )
    result = project.runpytest_inprocess(MODEL, "-rA")
    assert [line for line in result.outlines if line.strip().startswith("::")] == [
        line for line in result.outlines if line.startswith("::error file=model.py,line=1,")
    ]
    result.stdout.fnmatch_lines([r"\x3a:error file=model.py::of the model"])

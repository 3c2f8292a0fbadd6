"""With pytest-xdist: the same verdicts, a worker for each model, one report."""

from __future__ import annotations

import json

import pytest

MODELS = ("--tb-model=model.py", "--tb-model=other.py")


@pytest.fixture
def two(project: pytest.Pytester) -> pytest.Pytester:
    """Two models, each of which notes the process that builds it."""
    model = project.path / "model.py"
    text = (
        model.read_text()
        + "\nimport os\nwith open(__file__ + '.log', 'a') as log: log.write(f'{os.getpid()} ')"
    )
    model.write_text(text)
    (project.path / "other.py").write_text(text)
    return project


def test_the_verdicts_and_reports_are_those_of_one_process(two: pytest.Pytester) -> None:
    both = []
    for extra in ((), ("-n", "2")):
        args = (*MODELS, "--tb-json=out.json", "--junitxml=out.xml", *extra)
        result = two.runpytest_subprocess(*args)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        data = json.loads((two.path / "out.json").read_text(encoding="utf-8"))
        assert [model["passed"] for model in data["models"]] == [False, False]
        both.append([(r["model"], r["check"], r["case"], r["status"]) for r in data["records"]])
        result.stdout.fnmatch_lines(
            ["*transformer validation*", "tier 3 trains the model; *(2 checks not run)"]
        )
        assert 'name="value" value="2.0"' in (two.path / "out.xml").read_text()
        for name in ("model.py.log", "other.py.log"):
            assert len((two.path / name).read_text().split()) == 1
            (two.path / name).unlink()
    assert both[0] == both[1]
    assert "WholeModelScheduling" in two.runpytest_subprocess(*MODELS, "-n2", "-v").stdout.str()


def test_ids_can_be_typed(two: pytest.Pytester) -> None:
    result = two.runpytest_subprocess(*MODELS, "-n2", "other.py::tier1::cased[good]")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("model.py::tier1::lode",), pytest.ExitCode.USAGE_ERROR),
        (("--tb-seed=abc",), pytest.ExitCode.USAGE_ERROR),
        (("-m", "tier2"), pytest.ExitCode.NO_TESTS_COLLECTED),
        (("-m", "tier2", "--tb-allow-skipped"), pytest.ExitCode.OK),
        (("--tier3",), pytest.ExitCode.OK),
    ],
)
def test_exit_codes(two: pytest.Pytester, args: tuple[str, ...], code: int) -> None:
    assert two.runpytest_subprocess("--tb-model=model.py", "-n2", *args).ret == code


def test_another_distribution_is_respected_and_threads_are_shared(two: pytest.Pytester) -> None:
    two.makepyfile(
        test_own="""
        import os, torch
        def test_threads(tb_model):
            assert torch.get_num_threads() == max(1, (os.cpu_count() or 1) // 2)
        """
    )
    result = two.runpytest_subprocess(
        *MODELS, "-n2", "--dist=load", "-v", "test_own.py", "-k", "threads"
    )
    assert "LoadScheduling" in result.stdout.str()
    result.assert_outcomes(passed=2)

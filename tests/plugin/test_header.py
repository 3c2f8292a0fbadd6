"""The head of a run and its summary, by how much was asked for."""

from __future__ import annotations

import pytest

MODEL = "--tb-model=model.py"
HEAD = "transformer-validate *: model.py (cpu, float64, seed 2)"
ARGS = (MODEL, "--tb-dtype=float64", "--tb-seed=2", "--tb-task=lm", "-k", "sound")


def test_the_head_says_what_is_known_before_a_model_is_loaded(healthy: pytest.Pytester) -> None:
    result = healthy.runpytest_inprocess(*ARGS)
    result.stdout.fnmatch_lines(
        [
            HEAD,
            "  model.py: task causal_lm (declared by --tb-task)",
            "  models run in this process",
            "*transformer validation*",
            "model.py: task causal_lm (declared by --tb-task), 544 parameters, cpu, float64, *",
        ]
    )
    result.stdout.no_fnmatch_line("  limit*")
    result.stdout.fnmatch_lines(["*transformer validation*", "model.py:*"], consecutive=True)


def test_more_is_said_with_v(healthy: pytest.Pytester) -> None:
    lines = "\n  sound.floor = 0.4\n  sound.value_growth = 1.5"
    healthy.makeini(f"[pytest]\ntb_limits = {lines}\ntb_expect_fail = load: on purpose\n")
    result = healthy.runpytest_inprocess(*ARGS, "-v")
    result.stdout.fnmatch_lines(
        [
            "  limit sound.floor = 0.4",
            "  budget sound.value_growth = 1.5",
            "  expected to fail: load: on purpose",
        ]
    )


def test_many_models_are_counted(healthy: pytest.Pytester) -> None:
    text = (healthy.path / "model.py").read_text()
    models = []
    for index in range(7):
        (healthy.path / f"m{index}.py").write_text(text)
        models.append(f"--tb-model=m{index}.py")
    result = healthy.runpytest_inprocess(*models, "--co")
    result.stdout.fnmatch_lines(["*: m0.py, m1.py, m2.py, m3.py, m4.py, and 2 more (cpu, seed 0)"])


@pytest.mark.parametrize(
    ("args", "head", "summary"),
    [(("-q",), False, False), (("--no-header",), False, True), (("--no-summary",), True, False)],
)
def test_less_is_said_where_less_is_asked_for(
    healthy: pytest.Pytester, args: tuple[str, ...], head: bool, summary: bool
) -> None:
    result = healthy.runpytest_inprocess(*ARGS, *args)
    shown = result.stdout.str()
    assert result.ret == pytest.ExitCode.OK
    assert ("transformer-validate" in shown, "  tier 1   " in shown) == (head, summary)


def test_workers_are_counted(healthy: pytest.Pytester) -> None:
    result = healthy.runpytest_subprocess(*ARGS, "-n2")
    result.stdout.fnmatch_lines(["  models run in 2 worker processes"])


def test_a_width_that_was_asked_for_is_kept_without_a_terminal(
    healthy: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    lines = healthy.runpytest_inprocess(*ARGS).outlines
    first = next(n for n, line in enumerate(lines) if "transformer validation" in line)
    assert max(map(len, lines[first:])) <= 50
    monkeypatch.delenv("COLUMNS")
    healthy.runpytest_inprocess(*ARGS).stdout.fnmatch_lines(
        ["model.py: *weights: random (seed 2)"]
    )

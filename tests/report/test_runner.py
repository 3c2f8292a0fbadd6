"""What becomes of an exception: the status, the text, the declared deviations."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_transformer_validate.checks.registry import Check
from pytest_transformer_validate.errors import (
    Blocked,
    CheckFailed,
    MissingDependency,
    NotApplicable,
    SubjectError,
)
from pytest_transformer_validate.measures.measurement import Measurement
from pytest_transformer_validate.runner import ModelRun
from pytest_transformer_validate.task import TaskSpec

PROBE: Any = SimpleNamespace(
    context=lambda: {"device": "cpu"},
    threads=contextlib.nullcontext,
    subject=SimpleNamespace(task=TaskSpec("causal_lm"), quantised=None),
    where_raised=lambda error: None,
)


def make(raises: BaseException | None = None, **more: Any) -> Check:
    def function(probe: Any, *case: str, **limits: Any) -> Measurement:
        if raises is not None:
            raise raises
        return Measurement(value=limits.get("floor"))

    return Check(**{"name": "rule", "tier": 1, "function": function, **more})


def judge(run: ModelRun, check: Check, case: str | None = None) -> Any:
    return run.judge(check, case, lambda: PROBE).record


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "passed"),
        (CheckFailed("must be"), "failed"),
        (NotApplicable("no promise"), "skipped"),
        (Blocked("backward raised in rule"), "blocked"),
        (RuntimeError("crash"), "broken"),
        (SystemExit(0), "broken"),
        (SubjectError("no such input"), "broken"),
        (AssertionError("crash"), "broken"),
    ],
)
def test_each_exception_has_its_status(error: BaseException | None, status: str) -> None:
    outcome = ModelRun("m").judge(make(error), None, lambda: PROBE)
    assert outcome.record.status == status
    assert outcome.error is error
    assert outcome.record.context == {"device": "cpu"}


def test_an_interruption_is_not_caught() -> None:
    with pytest.raises(KeyboardInterrupt):
        judge(ModelRun("m"), make(KeyboardInterrupt()))


def test_limits_reach_the_function() -> None:
    assert judge(ModelRun("m", limits={"rule": {"floor": 3.0}}), make()).numbers["value"] == 3.0


def test_a_package_that_is_missing_is_a_skip_with_the_line_that_installs_it() -> None:
    line = "x is not installed; install it with: y"
    record = judge(ModelRun("m"), make(MissingDependency(line)))
    assert (record.status, record.message) == ("skipped", line)


def test_quantised_models_are_for_checks_that_say_so() -> None:
    subject = SimpleNamespace(task=TaskSpec("causal_lm"), quantised="head has whole numbers")
    probe: Any = SimpleNamespace(**{**vars(PROBE), "subject": subject})
    for quantised, status in ((False, "skipped"), (True, "passed")):
        record = ModelRun("m").judge(make(quantised=quantised), None, lambda: probe).record
        assert record.status == status


def test_a_check_of_another_task_is_skipped() -> None:
    record = judge(ModelRun("m"), make(tasks=frozenset({"masked_lm"})))
    assert record.status == "skipped"
    assert "causal_lm" in record.message


def test_a_failed_load_blocks_and_is_told_in_full_once() -> None:
    run = ModelRun("m", again="repeat {}".format)
    calls = []

    def load() -> Any:
        calls.append(1)
        raise ValueError("cannot")

    checks = [make(name="first"), make(name="load"), make(name="last")]
    records = [run.judge(check, None, load).record for check in checks]
    assert [record.status for record in records] == ["blocked", "broken", "blocked"]
    assert ["File" in record.message for record in records] == [True, True, False]
    assert len(calls) == 1
    assert records[2].message.splitlines() == [
        "last (tier 1): blocked by load: ValueError: cannot",
        "  again: repeat tier1::last",
    ]


@pytest.mark.parametrize(
    ("declared", "outcomes", "statuses"),
    [
        ("rule", [None, "fails"], ["passed", "xfailed"]),
        ("rule", ["fails", None], ["xfailed", "passed"]),
        ("rule", [None, None], ["passed", "stale"]),
        ("rule[a]", [None, "fails"], ["stale", "failed"]),
        ("rule[b]", [None, "fails"], ["passed", "xfailed"]),
        ("other", [None, "fails"], ["passed", "failed"]),
    ],
)
def test_declared_deviations(
    declared: str, outcomes: list[str | None], statuses: list[str]
) -> None:
    run = ModelRun("m", declared={declared: "known"})
    records = [
        judge(run, make(None if word is None else CheckFailed(word), cases=("a", "b")), case)
        for case, word in zip("ab", outcomes, strict=True)
    ]
    assert [record.status for record in records] == statuses


def test_a_declared_check_that_does_not_apply_is_stale() -> None:
    record = judge(ModelRun("m", declared={"rule": "known"}), make(NotApplicable("no")))
    assert record.status == "stale"
    assert "does not apply" in record.message
    assert "remove this line: 'rule'" in record.message


def test_a_check_that_returns_something_else_is_told_so() -> None:
    def wrong(probe: Any) -> int:
        return 3

    record = judge(ModelRun("m"), Check("wrong", 1, wrong))
    assert record.status == "broken"
    assert "the check raised" in record.message
    assert "a check returns a Measurement or None; wrong returned int" in record.message

"""The table over architectures counts what the records say."""

from __future__ import annotations

import pytest

from pytest_transformer_validate import __main__ as command
from pytest_transformer_validate.evidence.architectures import Architecture, architectures
from pytest_transformer_validate.evidence.deviations import DEVIATIONS
from pytest_transformer_validate.evidence.survey import (
    SurveyRow,
    survey,
    survey_row,
    survey_table,
)
from pytest_transformer_validate.report.record import Record

pytest.importorskip("transformers")


def record(model: str, status: str, message: str = "", check: str = "causality") -> Record:
    return Record(model=model, tier=1, check=check, case=None, status=status, message=message)


def test_models_are_counted_by_the_worst_case_and_reasons_without_their_numbers() -> None:
    rows = [
        SurveyRow("causal_lm:a", (record("causal_lm:a", "passed"),)),
        SurveyRow("causal_lm:b", (record("causal_lm:b", "skipped", "a window of 16 tokens"),)),
        SurveyRow("masked_lm:c", (record("masked_lm:c", "skipped", "a window of 8 tokens"),)),
        SurveyRow("masked_lm:d", (record("masked_lm:d", "xfailed", "declared: it leaks"),)),
        SurveyRow("masked_lm:e", (record("masked_lm:e", "blocked", "no forward\nat all"),)),
        SurveyRow("masked_lm:f", problem="ValueError: no"),
    ]
    lines = survey_table(rows)
    assert lines[0] == "5 of 6 architectures build: 2 causal_lm, 3 masked_lm"
    counted = next(line.split() for line in lines if line.startswith("causality"))
    assert counted == ["causality", "1", "0", "1", "2", "1"]
    assert "  causality: 2 x a window of n tokens" in lines
    assert "  masked_lm:d causality xfailed: declared: it leaks" in lines
    assert "  masked_lm:e causality blocked: no forward" in lines
    assert lines[-1] == "no tiny model: masked_lm:f"
    assert [row.architecture for row in rows if row.alarms] == ["masked_lm:e"]


def test_what_does_not_build_is_a_row_with_its_reason() -> None:
    row = survey_row(Architecture("causal_lm", "nothing", "NoSuchModel"))
    assert "NoSuchModel" in row.problem
    assert not row.records


def test_workers_share_the_architectures() -> None:
    chosen = [a for a in architectures("causal_lm") if a.model_type in {"gpt2", "llama"}]
    rows = list(survey(2, chosen))
    assert sorted(row.architecture for row in rows) == ["causal_lm:gpt2", "causal_lm:llama"]
    assert all(row.records and not row.alarms for row in rows)


def test_deviations_name_architectures_that_exist() -> None:
    assert set(DEVIATIONS) <= {str(a) for a in architectures()}


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        command.main(["evidence", "mutant"])
    assert exit_code.value.code == 2
    assert "unknown part 'mutant'; known are mutants, architectures" in capsys.readouterr().err

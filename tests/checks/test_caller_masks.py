"""Verdicts on models whose caller makes the masks."""

from __future__ import annotations

import pytest

from pytest_transformer_validate import validate
from tests.subject.test_callers import Forgets, Ignores, Language, Translator

CHECKS = ["load", "causality", "batch_independence", "shape_robustness", "padding", "kv_cache"]


@pytest.mark.parametrize(
    "model",
    [lambda: Language("hides"), lambda: Language("rows"), lambda: Translator("rows")],
    ids=["pairs", "rows", "seq2seq"],
)
def test_healthy(model):
    result = validate(model(), checks=CHECKS)
    assert not result.failures, str(result)
    causality = next(record for record in result if record.check == "causality")
    assert "the causal mask is given by the caller" in causality.numbers["notes"][0]
    assert causality.context["given"]


def test_a_mask_that_is_not_honoured():
    result = validate(Ignores(), checks=["causality"])
    assert [record.where for record in result.failures] == ["attention.1"]
    assert "given by the caller: mask (T, T), True keeps" in result.failures[0].message


def test_a_mask_that_nobody_makes():
    (failure,) = validate(Forgets(), checks=["causality"]).failures
    assert "without its optional mask: make the causal mask where none is given" in failure.message

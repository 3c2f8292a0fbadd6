from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate.measures.measurement import Limit, Measurement
from pytest_transformer_validate.measures.tolerance import (
    same_shape_limit,
    settle,
    shapes_limit,
    unit,
)

LIMIT = Limit(value=1.0, rule="16 u")


def never() -> tuple[float, str]:
    raise AssertionError("nothing to repeat")


def test_u_is_the_spacing_at_the_scale_of_the_output():
    assert unit(torch.tensor([1.0, -8.0])) == 8 * torch.finfo(torch.float32).eps
    assert unit(torch.tensor([2.0], dtype=torch.float64)) == 2 * torch.finfo(torch.float64).eps
    assert unit(torch.tensor([3.0, float("-inf")])) == 3 * torch.finfo(torch.float32).eps


def test_the_limit_says_where_it_comes_from():
    assert str(same_shape_limit(torch.tensor([1.0]))) == "1.9e-06 = 16 u"


def test_under_the_limit_nothing_is_repeated():
    assert not settle(0.5, LIMIT, never).exceeded
    assert not settle(1.0, LIMIT, never).exceeded


@pytest.mark.parametrize("value", [17.0, float("inf"), float("nan")])
def test_far_over_the_limit_nothing_is_repeated(value):
    assert settle(value, LIMIT, never).exceeded


def test_rounding_disappears_in_float64():
    verdict = settle(2.0, LIMIT, lambda: (2e-8, "in float64"))
    assert not verdict.exceeded
    assert verdict.notes == (
        "2 was over its limit 1 = 16 u; repeated in float64 it is 2e-08: rounding",
    )


def test_a_defect_stays_in_float64():
    verdict = settle(2.0, LIMIT, lambda: (1.99, "in float64"))
    assert verdict.exceeded
    assert verdict.notes == ("close to its limit, so repeated in float64: still 2",)


def test_numbers_are_plain():
    measurement = Measurement(value=float("nan"), limit=LIMIT, notes=("a",))
    assert measurement.numbers() == {
        "value": "nan",
        "limit": {"value": 1.0, "rule": "16 u"},
        "notes": ["a"],
    }


def test_the_models_noise_is_asked_for_only_where_it_is_needed():
    reference = torch.ones(3)
    assert shapes_limit(0.0, reference, lambda: never()[0]).rule == "64 u"
    assert shapes_limit(1.0, reference, lambda: 0.5).value == 8.0
